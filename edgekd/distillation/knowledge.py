"""What is transferred: a tap on the student, a tap on the teacher, an adapter where shapes differ, a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.values.codec import did_you_mean

LOGITS = "logits"  # the module's output
POOLED = "pooled"  # the input of its last linear layer: the pooled features
LABELS = "labels"  # on the teacher's side: the ground truth


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a loss may know beside the two tapped tensors."""

    labels: Tensor  # (B,) int64, or (B, C) shares where images are mixed


Loss = Callable[[Tensor, Tensor, Batch], Tensor]  # (student, teacher, batch) -> scalar, in fp32
Adapter = Callable[[int, int], nn.Module]  # (student width, teacher width) -> module on the student's side


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One thing to learn from a teacher; taps are "logits", "pooled" or the name of a module."""

    name: str
    loss: Loss
    student: str = LOGITS
    teacher: str = LOGITS
    adapter: Adapter | None = None
    weight: float = 1.0


def total_loss(
    knowledge: Sequence[Knowledge],
    adapters: nn.ModuleDict,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    batch: Batch,
) -> Tensor:
    """Sum the weighted losses, in fp32.

    Args:
        knowledge: what to learn.
        adapters: by name of the knowledge, where it has one.
        student: tapped tensors by tap.
        teacher: likewise; the labels are added here.
        batch: labels.

    """
    given = {**teacher, LABELS: batch.labels}
    terms = []
    for one in knowledge:
        tapped = student[one.student].float()
        if one.name in adapters:
            tapped = adapters[one.name](tapped)
        terms.append(one.weight * one.loss(tapped, given[one.teacher], batch))
    return torch.stack(terms).sum()


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
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        for name, place in self._places.items():
            if name == POOLED:
                self._handles.append(place.register_forward_pre_hook(partial(self._keep_input, name)))
            else:
                self._handles.append(place.register_forward_hook(partial(self._keep_output, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run the module and return its tensors by tap."""
        self._outputs[LOGITS] = self._module(images)
        outputs, self._outputs = self._outputs, {}
        return outputs

    def _keep_input(self, name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._outputs[name] = inputs[0]

    def _keep_output(self, name: str, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        self._outputs[name] = output


def _place(module: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(module.named_modules())
    if name == POOLED:
        linear = [one for one in modules.values() if isinstance(one, nn.Linear)]
        if not linear:
            raise UsageError(
                'the tap "pooled" needs a linear layer after the pooled features',
                cause=f"{type(module).__name__} has none",
                mend="leave `pooled` out of [distillation] losses",
            )
        return linear[-1]
    if name not in modules or not name:
        raise UsageError(
            f"{type(module).__name__} has no module {name!r} to tap",
            mend=did_you_mean(name, list(modules)[1:]),
        )
    return modules[name]
