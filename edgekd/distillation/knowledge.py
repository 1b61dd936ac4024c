"""What is transferred: a tap on the student, a tap on the teacher, an adapter where shapes differ, a loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.values.codec import did_you_mean

LOGITS = "logits"  # the module's output
POOLED = "pooled"  # the input of its last linear layer: the pooled features
LABELS = "labels"  # on the teacher's side: the ground truth
OWN = "own:"  # on the teacher's side, before a tap: the student's own, such as of a peer or its deepest exit
BALANCE = "(balance)"  # among the adapters: no loss is called so


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loss may know beside the two tapped tensors."""

    labels: Tensor  # (B,) int64, or (B, C) shares where images are mixed; or what the task has instead
    indices: Tensor | None = None  # (B,) int64: which of the training samples these are
    progress: float = 1.0  # share of the training that is done, this step included
    outputs: Tensor | None = None  # of the teacher, where they are known
    valid: Tensor | None = None  # bool: the tokens, boxes or pixels that count; None: all

    @property
    def numbers(self) -> Tensor:
        """The class (B,) of each sample: of mixed images the larger one."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(dim=1)

    def rows(self, kept: Tensor) -> Batch:
        """Return the samples that a mask (B,) keeps."""
        return dataclasses.replace(
            self,
            labels=self.labels[kept],
            indices=None if self.indices is None else self.indices[kept],
            outputs=None if self.outputs is None else self.outputs[kept],
            valid=None if self.valid is None else self.valid[kept],
        )


Loss = Callable[[Tensor, Tensor, Batch], Tensor]  # (student, teacher, batch) -> scalar
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What an adapter has to match: shapes of one sample by tap, without the batch."""

    name: str  # of the loss, for messages
    student: tuple[torch.Size, ...]
    teacher: tuple[torch.Size, ...]
    samples: int  # in the training set
    classes: int


# Makes what learns beside the student: a module (students, teachers, batch) -> (students, teachers).
Adapter = Callable[[Shapes], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One thing to learn from a teacher; taps are "logits", "pooled" or names of modules.

    Several taps are compared in pairs, and summed.
    """

    name: str
    loss: Loss
    student: tuple[str, ...] = (LOGITS,)
    teacher: tuple[str, ...] = (LOGITS,)
    adapter: Adapter | None = None
    weight: float = 1.0
    warm_up: float = 0.0  # share of the training over which the weight rises from 0
    confidence: float = 0.0  # samples whose label the teacher gives less are left out
    least_rows: int = 1  # a smaller batch teaches nothing

    def weight_at(self, progress: float) -> float:
        """Return the weight when a share of the training is done."""
        return self.weight * min(1.0, progress / self.warm_up) if self.warm_up else self.weight


def student_taps(knowledge: Sequence[Knowledge]) -> tuple[str, ...]:
    """Name the student's tensors that are compared, and those of its own that teach it."""
    compared = (tap for one in knowledge for tap in one.student)
    teaching = (tap.removeprefix(OWN) for one in knowledge for tap in one.teacher if tap.startswith(OWN))
    return tuple(dict.fromkeys([*compared, *teaching]))


def teacher_taps(knowledge: Sequence[Knowledge]) -> tuple[str, ...]:
    """Name the teacher's tensors to keep: its logits, and what the losses ask for."""
    taps = (tap for one in knowledge for tap in one.teacher if tap != LABELS and not tap.startswith(OWN))
    return tuple(dict.fromkeys([LOGITS, *taps]))


def given_to(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor
) -> dict[str, Tensor]:
    """Return what can teach: the teacher's tensors by tap, the labels, and what the student itself says."""
    return {**teacher, LABELS: labels, **{f"{OWN}{tap}": tensor for tap, tensor in student.items()}}


def total_loss(
    knowledge: Sequence[Knowledge],
    adapters: nn.ModuleDict,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    batch: Batch,
) -> Tensor:
    """Sum the weighted losses: in fp32 or finer, and with no gradient to the teacher, whatever comes in.

    Args:
        knowledge: what to learn.
        adapters: by name of the knowledge, where it has one; under BALANCE, what sums.
        student: tapped tensors by tap.
        teacher: likewise; the labels are added here.
        batch: labels.

    """
    given = given_to(student, teacher, batch.labels)
    known = dataclasses.replace(batch, outputs=teacher.get(LOGITS))
    with _no_autocast(next(iter(student.values())).device):
        terms = [term(one, adapters, student, given, known) for one in knowledge]
        weights = [one.weight_at(batch.progress) for one in knowledge]
        if BALANCE in adapters:
            balanced: Tensor = adapters[BALANCE](terms, weights)
            return balanced
        weighted = [one if weight == 1 else weight * one for weight, one in zip(weights, terms)]
        return functools.reduce(torch.add, weighted)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave autocast, where it is on: a softmax or a Gram matrix in bf16 loses what small terms say."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def term(
    one: Knowledge,
    adapters: nn.ModuleDict,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    batch: Batch,
) -> Tensor:
    """Compute one loss, unweighted; with too few samples for it, a 0 that has a gradient of 0."""
    students = tuple(fine(student[tap]) for tap in one.student)
    teachers = tuple(fine(teacher[tap].detach()) for tap in one.teacher)
    if one.confidence:
        kept = _confident(batch, one.confidence)
        students, teachers = tuple(s[kept] for s in students), tuple(t[kept] for t in teachers)
        batch = batch.rows(kept)
    if len(students[0]) < max(one.least_rows, 1):
        return functools.reduce(torch.add, [tensor[:0].sum() for tensor in students])
    if one.name in adapters:
        students, teachers = adapters[one.name](students, teachers, batch)
    losses = [one.loss(learnt, given, batch) for learnt, given in zip(students, teachers)]
    return functools.reduce(torch.add, losses)


def fine(tensor: Tensor) -> Tensor:
    """Return half precision as fp32, and anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _confident(batch: Batch, least: float) -> Tensor:
    if batch.outputs is None:
        raise UsageError(
            "confidence needs what the teacher says of the classes", mend="label the views again"
        )
    given = torch.softmax(fine(batch.outputs), dim=1)
    return given.gather(1, batch.numbers[:, None])[:, 0] >= least


class Taps:
    """A module whose tapped tensors can be read: `with Taps(module, names) as taps: outputs = taps(images)`."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        """Resolve the names.

        Raises:
            UsageError: there is no such module, or no linear layer for "pooled".

        """
        self._module = module
        self._places = {name: _place(module, name) for name in names if name != LOGITS}
        self._outputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        for name, place in self._places.items():
            if name.rpartition("/")[2] == POOLED:
                self._handles.append(
                    place.register_forward_pre_hook(functools.partial(self._keep_input, name))
                )
            else:
                self._handles.append(place.register_forward_hook(functools.partial(self._keep_output, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the module and return its tensors by tap.

        Raises:
            UsageError: what follows a tapped module overwrites its output, or the module did not run.

        """
        self._outputs[LOGITS] = self._module(images)
        outputs, self._outputs = self._outputs, {}
        versions, self._versions = self._versions, {}
        for name in self._places:
            if name not in outputs:
                raise UsageError(f"the tap {name!r} saw nothing", cause="its module was not called")
        for name, version in versions.items():
            if outputs[name]._version != version:  # noqa: SLF001 - torch has no other way to ask
                raise UsageError(
                    f"the tap {name!r} is overwritten in place by what follows it",
                    mend="tap the activation behind it, or the block around it",
                )
        return outputs

    def _keep_input(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._outputs[name] = inputs[0]

    def _keep_output(self, name: str, _: nn.Module, __: tuple[Tensor, ...], output: object) -> None:
        if not isinstance(output, Tensor):
            cause = f"it gives a {type(output).__name__}"
            raise UsageError(f"the tap {name!r} is no tensor", cause=cause, mend="tap a module inside it")
        if output.is_inference():  # keeps no count of changes, and a copy is cheap beside labelling
            output = output.clone()
        else:
            self._versions[name] = output._version  # noqa: SLF001 - as above
        self._outputs[name] = output


def _place(module: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(module.named_modules())
    owner, _, last = name.rpartition("/")
    if owner in modules and owner and last == POOLED:  # "peers.1/pooled"
        return _place(modules[owner], POOLED)
    if name == POOLED:
        linear = [one for one in modules.values() if isinstance(one, nn.Linear)]
        if not linear:
            raise UsageError(
                'the tap "pooled" needs a linear layer after the pooled features',
                cause=f"{type(module).__name__} has none",
                mend="name a module to tap in its place, or leave out the losses that need it",
            )
        return linear[-1]
    if name not in modules or not name:
        raise UsageError(
            f"{type(module).__name__} has no module {name!r} to tap",
            mend=did_you_mean(name, list(modules)[1:]),
        )
    return modules[name]
