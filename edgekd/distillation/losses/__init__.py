"""The losses by name: a new method is a function in the file of its representation, and a line in LOSSES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekd.distillation.knowledge import LABELS, LOGITS, POOLED, Knowledge
from edgekd.distillation.losses.intermediate import pooled_mse, projector
from edgekd.distillation.losses.response import cross_entropy, dist, kl
from edgekd.errors import ConfigError
from edgekd.values.codec import did_you_mean
from edgekd.values.job import DistillationSection

_DIST_CLASSES = 3  # below, its correlation over classes is constant


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a job says about one loss."""

    weight: float
    temperature: float
    classes: int


def _ce(setting: Setting) -> Knowledge:
    return Knowledge(name="ce", teacher=LABELS, loss=cross_entropy, weight=setting.weight)


def _kd(setting: Setting) -> Knowledge:
    return Knowledge(name="kd", loss=kl(setting.temperature), weight=setting.weight)


def _dist(setting: Setting) -> Knowledge:
    if setting.classes < _DIST_CLASSES:
        raise ConfigError(
            "the loss `dist` needs at least 3 classes",
            cause=f"the task has {setting.classes}, where its correlation over classes has no gradient",
            mend="use `kd` in [distillation] losses instead",
        )
    return Knowledge(name="dist", loss=dist(setting.temperature), weight=setting.weight)


def _pooled(setting: Setting) -> Knowledge:
    return Knowledge(
        name="pooled",
        student=POOLED,
        teacher=POOLED,
        adapter=projector,
        loss=pooled_mse,
        weight=setting.weight,
    )


LOSSES: dict[str, Callable[[Setting], Knowledge]] = {
    "ce": _ce,
    "kd": _kd,
    "dist": _dist,
    "pooled": _pooled,
}


def knowledge_from(recipe: DistillationSection, *, classes: int) -> tuple[Knowledge, ...]:
    """Make what `[distillation] losses` names; a weight of 0 leaves a loss out.

    Raises:
        ConfigError: an unknown name, or a loss that cannot serve the task.

    """
    found = []
    for name, weight in recipe.losses.items():
        if name not in LOSSES:
            raise ConfigError(f"there is no loss {name!r}", mend=did_you_mean(name, list(LOSSES)))
        if weight:
            setting = Setting(weight=weight, temperature=recipe.temperature, classes=classes)
            found.append(LOSSES[name](setting))
    return tuple(found)


def teacher_taps(knowledge: tuple[Knowledge, ...]) -> tuple[str, ...]:
    """Name the teacher's tensors to keep: its logits, and what the losses ask for."""
    return tuple(dict.fromkeys([LOGITS, *(one.teacher for one in knowledge if one.teacher != LABELS)]))
