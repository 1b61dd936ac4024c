"""Everything a training needs to go on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd.distillation import checkpoints
from edgekd.distillation.arithmetic import Arithmetic
from edgekd.distillation.optimization import Average, make_optimizer
from edgekd.errors import ConfigError, IntegrityError
from edgekd.values.codec import decode, encode
from edgekd.values.job import DistillationSection

log = logging.getLogger(__name__)

_OPTIMIZER = "optimizer/"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training has come."""

    arithmetic: Arithmetic
    epoch: int = 0  # epochs done
    losses: tuple[float, ...] = ()  # mean of each epoch
    halvings: int = 0  # of the learning rate, after the loss was not finite
    seconds: float = 0.0


class TrainingState:
    """A module, its average, the adapters beside it and the optimizer of both."""

    def __init__(
        self, module: nn.Module, adapters: nn.ModuleDict, recipe: DistillationSection, arithmetic: Arithmetic
    ) -> None:
        self.module = arithmetic.place(module)
        self.adapters = adapters
        self.average = Average(module, recipe.ema) if recipe.ema else None
        self.optimizer = make_optimizer((module, adapters), recipe)
        self.progress = Progress(arithmetic=arithmetic)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and kept: the averaged weights where there are, without the adapters."""
        if self.average is None:
            return self.module.state_dict()
        counters = {
            name: value for name, value in self.module.state_dict().items() if not value.is_floating_point()
        }
        return {**self.average.tensors, **counters}

    def trained(self) -> list[nn.Parameter]:
        """List every parameter that is clipped and stepped, the adapters' included."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        slots = checkpoints.optimizer_tensors(self.optimizer)
        tensors = {**self.live(), **{f"{_OPTIMIZER}{name}": value for name, value in slots.items()}}
        checkpoints.save_tensors(path, tensors, encode(self.progress))

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Go back to a saved state.

        Raises:
            IntegrityError: the file is damaged or of another training; nothing was changed.

        """
        tensors, note = checkpoints.load_tensors(path)
        progress = progress_from(note, path)
        slots = {
            name.removeprefix(_OPTIMIZER): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(_OPTIMIZER)
        }
        live = self.live()
        if _shapes(tensors) != _shapes(live):
            raise IntegrityError(f"{path} is the state of another training")
        checkpoints.restore_optimizer(self.optimizer, slots)
        for name, value in live.items():
            value.copy_(tensors[name])
        self.progress = progress

    def live(self) -> dict[str, Tensor]:
        """Name every tensor but the optimizer's; they share memory with what is trained."""
        parts = {
            "module": self.module.state_dict(),
            "adapters": self.adapters.state_dict(),
            "average": self.average.tensors if self.average else {},
        }
        return {f"{part}/{name}": value for part, held in parts.items() for name, value in held.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def saved_progress(path: Path) -> Progress | None:
    """Read how far a saved training has come; None where there is none, or none that can be used."""
    if not path.is_file():
        return None
    try:
        return progress_from(checkpoints.load_tensors(path)[1], path)
    except IntegrityError as error:
        log.warning("starting again: %s", error.what)
        return None


def progress_from(note: str, path: Path) -> Progress:
    """Read the note of a state.

    Raises:
        IntegrityError: it is not one.

    """
    try:
        return decode(Progress, json.loads(note), "progress")
    except (ValueError, ConfigError) as error:
        raise IntegrityError(f"{path} is not the state of a training", cause=str(error)[:200]) from error
