"""Where knowledge comes from: a torch module of the user's, loaded without running anything in its weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from edgekd.distillation.arithmetic import Arithmetic, choose_arithmetic
from edgekd.distillation.checkpoints import load_module, load_tensors
from edgekd.distillation.foreign import OnnxTeacher, Program, program
from edgekd.distillation.mixture import Member, Mixture, renormalised
from edgekd.errors import BackendMissing, IntegrityError, TeacherError
from edgekd.tasks.task import Task
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.codec import did_you_mean
from edgekd.values.job import CLASSIFYING, TeacherSection
from edgekd.values.preprocess import Preprocess

_FORMS = "FILE.py:FUNCTION, FILE.onnx or FILE.pt2, with FILE beside the job, or timm:NAME"
_TRIAL_BATCH = 64
_FEW = 2  # samples that a teacher is tried on


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A frozen module in eval mode, and the resolution of its input."""

    module: nn.Module
    resolution: int
    sample: Tensor  # (k, ...): a few inputs as the task makes them, for trials
    fingerprint: str  # of its architecture and weights

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic it answers fastest in; measured once, at the first use."""
        device = next((weight.device for weight in self.module.parameters()), torch.device("cpu"))
        rows = torch.arange(_TRIAL_BATCH) % len(self.sample)
        return choose_arithmetic(self.module, self.sample[rows].to(device), training=False)


def load_teacher(section: TeacherSection, *, beside: Path, task: Task, module: object = None) -> Teacher:
    """Make the module that `[teacher]` names and give it its weights.

    Args:
        section: `model` is FILE.py:FUNCTION, the user's own code, called without arguments; FILE.onnx, which a child
            runs; FILE.pt2, of torch.export; or timm:NAME.
        beside: the folder that relative paths start from: the job's.
        task: its samples are what the teacher must take.
        module: a live torch module in place of the one that `section` names.

    Raises:
        TeacherError: it cannot be made, the weights are another network's, or its outputs do not fit the task.
        IntegrityError: the weights are not a plain state dict.
        BackendMissing: timm is not installed.

    """
    if module is not None:
        return from_module(module, task)
    made, source = _made(section.model, beside, task, trusted=section.trusted)
    if section.weights is not None:
        _put(made, beside / Path(section.weights).expanduser())
    if section.epochs and (section.others or isinstance(made, (OnnxTeacher, Program))):
        what = "several teachers" if section.others else f"the teacher {section.model}"
        raise TeacherError(f"{what} cannot be trained here", mend="leave [teacher] epochs out")
    if section.others:
        made = _together(made, section, beside, task)
    return _frozen(made, task, source)


def module_from(model: str, weights: Path | None, *, beside: Path) -> nn.Module:
    """Make the module that FILE.py:FUNCTION or timm:NAME names, in evaluation mode, for no task in particular.

    Raises:
        TeacherError: it cannot be made, or the weights are another network's.
        IntegrityError: the weights are not a plain state dict.
        BackendMissing: timm is not installed.

    """
    module, _ = _made(model, beside, None)
    if weights is not None:
        _put(module, weights)
    return module.eval().requires_grad_(False)


def from_module(module: object, task: Task) -> Teacher:
    """Take a live module as the teacher; it is copied, so that what the caller does later changes nothing.

    Raises:
        TeacherError: it is no torch module, or its outputs do not fit the task.

    """
    if not isinstance(module, nn.Module):
        raise TeacherError(f"the teacher is a {type(module).__name__}", mend="give a torch.nn.Module")
    return _frozen(copy.deepcopy(module), task, "")


def with_weights(teacher: Teacher, checkpoint: Checkpoint) -> Teacher:
    """Return the teacher with trained weights; the given one stays as it is.

    Raises:
        IntegrityError: the file changed, or holds another network's weights.

    """
    module = load_module(copy.deepcopy(teacher.module), checkpoint.weights)
    return dataclasses.replace(
        teacher, module=module, fingerprint=fingerprint_of(module, teacher.fingerprint)
    )


def fingerprint_of(module: nn.Module, source: str = "") -> str:
    """Hash a module's architecture, weights and buffers, and the text it was made from."""
    digest = hashlib.sha256(f"{source}\n{module!r}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or what torch.save wrote of tensors alone.

    A wrapping {"state_dict": ...} and the prefix "module." of parallel training are taken off.

    Raises:
        TeacherError: there is no such file.
        IntegrityError: it is not a state dict, or holds code to run; none of it was run.

    """
    if not path.is_file():
        raise TeacherError(f"the teacher's weights {path} do not exist")
    held: object = load_tensors(path)[0] if path.suffix == ".safetensors" else _unpickled(path)
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if (
        not isinstance(held, Mapping)
        or not held
        or not all(isinstance(value, Tensor) for value in held.values())
    ):
        raise IntegrityError(
            f"{path} is not a state dict",
            cause=f"it holds a {type(held).__name__}",
            mend="save it with torch.save(model.state_dict(), path), or as safetensors",
        )
    return {str(name).removeprefix("module."): value for name, value in held.items()}


def _unpickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of another pickle protocol: what matters is whether it can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        OSError,
    ) as error:
        raise IntegrityError(
            f"{path} was refused: it is not a file of plain tensors",
            cause=" ".join(str(error).split())[:300] or type(error).__name__,
            mend="save only the state dict, with torch.save(model.state_dict(), path), or as safetensors",
        ) from error


def _made(model: str, beside: Path, task: Task | None, *, trusted: bool = False) -> tuple[nn.Module, str]:
    """Return the module, and the text it was made from."""
    if model.startswith("timm:"):
        return _from_timm(model.removeprefix("timm:"), task), ""
    if model.endswith(".onnx"):
        return OnnxTeacher(beside / Path(model).expanduser(), os.cpu_count() or 1), ""
    if model.endswith(".pt2"):
        return program(beside / Path(model).expanduser(), trusted=trusted), ""
    name, colon, function = model.rpartition(":")
    if not colon or not name.endswith(".py"):
        raise TeacherError(f"[teacher] model = {model!r} is not understood", mend=f"give {_FORMS}")
    path = beside / Path(name).expanduser()
    if not path.is_file():
        raise TeacherError(f"[teacher] model = {model!r}: there is no {path}", mend=f"give {_FORMS}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = _called(_imported(path), function, path)
    return module, path.read_text(encoding="utf-8", errors="replace")


def _together(first: nn.Module, section: TeacherSection, beside: Path, task: Task) -> Mixture:
    """Make the others that `[teacher]` names, each tried alone, and let all answer as one."""
    members = [Member(module=first, weight=section.weight)]
    recipe = task.preprocess(task.resolution)
    sample = torch.from_numpy(task.prepare(task.train.spread(_FEW).samples, task.resolution))
    for other in section.others:
        module, _ = _made(other.model, beside, task, trusted=other.trusted)
        if other.weights is not None:
            _put(module, beside / Path(other.weights).expanduser())
        _check_outputs(module.eval(), task, sample)
        scale: tuple[float, ...] = ()
        shift: tuple[float, ...] = ()
        if other.mean is not None and other.std is not None:
            if not isinstance(recipe, Preprocess) or len(other.mean) != len(recipe.mean):
                what = f"[[teacher.others]] mean of {other.model} has {len(other.mean)} values"
                raise TeacherError(what, mend="give one a channel of the task's images")
            scale, shift = renormalised(recipe.mean, recipe.std, own_mean=other.mean, own_std=other.std)
        members.append(Member(module=module, weight=other.weight, scale=scale, shift=shift))
    return Mixture(members, probabilities=task.kind in (*CLASSIFYING, "segmentation"))


def _called(code: ModuleType, function: str, path: Path) -> nn.Module:
    make = getattr(code, function, None)
    if not callable(make):
        names = [name for name, value in vars(code).items() if callable(value) and not name.startswith("_")]
        raise TeacherError(f"{path} has no function {function!r}", mend=did_you_mean(function, names))
    try:
        module = make()
    except Exception as error:  # the user's own code may raise anything
        raise TeacherError(
            f"{function}() of {path} failed",
            cause=f"{type(error).__name__}: {error}"[:300],
            mend="it is called without arguments and must return the teacher, a torch.nn.Module",
        ) from error
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"{function}() of {path} returned a {type(module).__name__}", mend="return a torch.nn.Module"
        )
    return module


def _imported(path: Path) -> ModuleType:
    name = f"edgekd_teacher_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101 - the name ends with .py
    assert spec.loader is not None  # noqa: S101 - likewise
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # dataclasses and typing look their module up there
    try:
        with _importing_beside(path):
            spec.loader.exec_module(code)
    except Exception as error:  # the user's own code may raise anything
        raise TeacherError(
            f"{path} cannot be imported", cause=f"{type(error).__name__}: {error}"[:300]
        ) from error
    return code


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let the user's file import its neighbours."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _from_timm(name: str, task: Task | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise BackendMissing(
            f"the teacher timm:{name} needs timm", cause=str(error), mend="run `pip install edgekd[timm]`"
        ) from error
    try:
        shape = {"num_classes": task.outputs, "in_chans": task.channels} if task else {}
        module = timm.create_model(name, pretrained=True, **shape)
    except Exception as error:  # timm raises what its models and its hub raise
        raise TeacherError(
            f"timm cannot make {name!r}",
            cause=f"{type(error).__name__}: {error}"[:300],
            mend="see timm.list_models()",
        ) from error
    assert isinstance(module, nn.Module)  # noqa: S101 - for the type checker: timm is untyped
    return module


def _put(module: nn.Module, path: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(read_weights(path), strict=False)
    except RuntimeError as error:  # a shape differs
        cause = " ".join(str(error).split())[:300]
        raise TeacherError(f"{path} holds the weights of another network", cause=cause) from error
    if missing or unexpected:
        raise TeacherError(
            f"{path} holds the weights of another network",
            cause=f"missing: {_some(missing)}; unexpected: {_some(unexpected)}",
            mend=f"give the weights of {type(module).__name__}, or the function that makes their network",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown  # noqa: PLR2004 - a few are enough


def _frozen(module: nn.Module, task: Task, source: str) -> Teacher:
    module.eval().requires_grad_(False)
    sample = torch.from_numpy(task.prepare(task.train.spread(_FEW).samples, task.resolution))
    _check_outputs(module, task, sample)
    return Teacher(
        module=module,
        resolution=task.resolution,
        sample=sample,
        fingerprint=fingerprint_of(module, source),
    )


def _check_outputs(module: nn.Module, task: Task, sample: Tensor) -> None:
    """Look at what the teacher says of a few samples (k, ...)."""
    wanted = (len(sample), *task.answer_shape(task.resolution))
    where = next((weight.device for weight in module.parameters()), sample.device)
    try:
        with torch.inference_mode():
            outputs = module(sample.to(where))
    except Exception as error:  # the user's own code may raise anything
        raise TeacherError(
            f"the teacher cannot take inputs of shape {tuple(sample.shape[1:])}",
            cause=f"{type(error).__name__}: {error}"[:300],
            mend="set [task] resolution to what its input asks for",
        ) from error
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TeacherError(
            "the teacher's outputs do not fit the task",
            cause=f"{len(sample)} samples gave {found}; {_asked(task)} a tensor {wanted}",
            mend="give a teacher that answers this task, such as with one logit a class, or the data it was made for",
        )
    if not torch.isfinite(outputs).all():
        raise TeacherError("the teacher's outputs are not finite", cause="NaN or infinity in its weights")


def _asked(task: Task) -> str:
    return f"{len(task.classes)} classes ask for" if task.classes else f"{task.kind} asks for"
