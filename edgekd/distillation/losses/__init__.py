"""The losses by name: a new method is a function in the file of its representation, and a line in LOSSES.

A job gives `[distillation] losses = { kd = 0.9 }`, or a table of settings, `[distillation.losses.kd]`. The settings of
a method are the keyword arguments of its function and of its adapter, with their types and defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from edgekd.distillation import adapters, cells, several
from edgekd.distillation.bank import Bank
from edgekd.distillation.knowledge import LABELS, LOGITS, POOLED, Knowledge, teacher_taps
from edgekd.distillation.losses import (
    dense,
    detection,
    generation,
    information,
    intermediate,
    ranking,
    regression,
    relation,
    response,
)
from edgekd.errors import ConfigError
from edgekd.values.codec import did_you_mean
from edgekd.values.job import CLASSIFYING, DistillationSection, LossSection

__all__ = ["LOSSES", "Entry", "Method", "catalogue", "knowledge_from", "teacher_taps"]

R = TypeVar("R")

NAMED = ""  # a tap that only the job can know: the name of a module

_RAMP = 1 / 12  # DKD's and ReviewKD's 20 of 240 epochs


CLASSIFICATION = CLASSIFYING
RECOGNITION, REGRESSION = ("recognition",), ("regression",)
RANKING, GENERATION = ("ranking",), ("generation",)
DETECTION, SEGMENTATION = ("detection",), ("segmentation",)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A loss with what it stands on."""

    loss: Callable[..., Tensor]  # (student, teacher, batch, *, settings)
    source: str
    adapter: Callable[..., nn.Module] | None = None  # (shapes, *, settings)
    student: str = LOGITS  # tap, unless a job names others
    teacher: str = LOGITS
    weight: float = 1.0  # where a job's table gives none
    warm_up: float = 0.0
    least_classes: int = 2  # below, it has no gradient
    least_rows: int = 1  # smaller batches teach nothing
    tasks: tuple[str, ...] = CLASSIFICATION
    gathers: bool = False  # its adapter makes one teacher of all that are tapped

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword arguments of the loss and of the adapter."""
        made = [self.loss, *([self.adapter] if self.adapter else [])]
        found = (parameter for one in made for parameter in inspect.signature(one).parameters.values())
        return {one.name: one for one in found if one.kind is inspect.Parameter.KEYWORD_ONLY}


_FEATURES = (*CLASSIFICATION, *RECOGNITION)
_on_maps = partial(Method, student=NAMED, teacher=NAMED, tasks=_FEATURES)
_on_pooled = partial(Method, student=POOLED, teacher=POOLED, tasks=_FEATURES)

LOSSES: dict[str, Method] = {
    # response
    "ce": Method(loss=response.cross_entropy, teacher=LABELS, source="labels", least_classes=1),
    "kd": Method(loss=response.kd, source="Hinton et al. 2015"),
    "camkd": Method(
        loss=response.kd, source="Zhang et al. 2022 (CA-MKD)",
        adapter=several.Confident, teacher=NAMED, gathers=True,
    ),
    "mse": Method(
        loss=response.mse, source="Ba and Caruana 2014", tasks=(*CLASSIFICATION, *REGRESSION, *RANKING)
    ),
    "dkd": Method(loss=response.dkd, source="Zhao et al. 2022", warm_up=_RAMP, least_classes=3),
    "dist": Method(loss=response.dist, source="Huang et al. 2022", least_classes=3),
    "lskd": Method(loss=response.lskd, source="Sun et al. 2024", weight=9.0, least_classes=3),
    "nkd": Method(loss=response.nkd, source="Yang et al. 2023", least_classes=3),
    "wttm": Method(loss=response.wttm, source="Zheng and Yang 2024"),
    "bkd": Method(loss=response.bkd, source="Hao et al. 2023 (vanillaKD)"),
    "ofa": Method(
        loss=response.ofa, source="Hao et al. 2023 (OFA-KD)",
        adapter=adapters.head, student=NAMED, least_rows=2,
    ),
    # intermediate
    "pooled": _on_pooled(loss=intermediate.features, source="timm's feature task", adapter=adapters.project),
    "fitnet": _on_maps(
        loss=intermediate.features, source="Romero et al. 2015",
        adapter=adapters.regress, weight=100.0, least_rows=2,
    ),
    "directions": _on_pooled(
        loss=intermediate.directions, source="Li and Bilen 2020",
        adapter=adapters.project,
    ),
    "at": _on_maps(loss=intermediate.at, source="Zagoruyko and Komodakis 2017", weight=1000.0),
    "reviewkd": _on_maps(
        loss=intermediate.reviewkd, source="Chen et al. 2021",
        adapter=adapters.Fuse, warm_up=_RAMP, least_rows=2,
    ),
    "mgd": _on_maps(loss=intermediate.mgd, source="Yang et al. 2022", adapter=adapters.generate, weight=7e-5),
    "srd": _on_pooled(
        loss=intermediate.srd, source="Miles and Mikolajczyk 2024",
        adapter=adapters.Standardise, weight=2.0, least_rows=2,
    ),
    # relation
    "embedding": Method(
        loss=intermediate.directions, source="Li and Bilen 2020, no projector", tasks=RECOGNITION
    ),
    "cosface": Method(
        loss=relation.cosface, teacher=LABELS, source="Wang et al. 2018",
        adapter=adapters.Proxies, tasks=RECOGNITION,
    ),
    "rkd": _on_pooled(loss=relation.rkd, source="Park et al. 2019", least_rows=2),
    "sp": _on_pooled(loss=relation.sp, source="Tung and Mori 2019", weight=3000.0),
    "cc": _on_pooled(
        loss=relation.cc, source="Peng et al. 2019",
        adapter=adapters.Embed, weight=0.02, least_rows=2,
    ),
    "pkt": _on_pooled(loss=relation.pkt, source="Passalis and Tefas 2018", weight=30000.0),
    "ickd": _on_maps(loss=relation.ickd, source="Liu et al. 2021", adapter=adapters.project),
    "irg": _on_pooled(loss=relation.irg, source="Liu et al. 2019", weight=5.0, least_rows=2),
    # mutual information
    "vid": _on_maps(loss=information.vid, source="Ahn et al. 2019", adapter=adapters.Gaussian),
    "infonce": _on_pooled(
        loss=information.infonce, source="van den Oord et al. 2018",
        adapter=adapters.Embed, least_rows=2,
    ),
    "crd": _on_pooled(loss=information.crd, source="Tian et al. 2020", adapter=Bank, weight=0.8),
    # dense
    "cwd": _on_maps(
        loss=dense.cwd, source="Shu et al. 2021",
        adapter=adapters.project, weight=3.0, tasks=(*CLASSIFICATION, *SEGMENTATION),
    ),
    "pixels": Method(loss=dense.pixels, source="label-assisted distillation 2024", tasks=SEGMENTATION),
    "masks": Method(loss=dense.masks, teacher=LABELS, source="labels of pixels", tasks=SEGMENTATION),
    "boxes": Method(
        loss=detection.boxes, teacher=LABELS, source="Li et al. 2020 (GFL)", least_classes=1, tasks=DETECTION
    ),
    "ld": Method(
        loss=dense.ld, source="Zheng et al. 2022", adapter=cells.Edges, weight=0.25, least_classes=1, tasks=DETECTION
    ),
    "crosskd_classes": Method(
        loss=dense.crosskd_classes, source="Wang et al. 2024",
        adapter=cells.Classes, least_classes=1, tasks=DETECTION,
    ),
    "crosskd_boxes": Method(
        loss=dense.crosskd_boxes, source="Wang et al. 2024",
        adapter=cells.Edges, weight=4.0, least_classes=1, tasks=DETECTION,
    ),
    # regression
    "squares": Method(loss=response.mse, teacher=LABELS, source="labels", tasks=REGRESSION),
    "bounded": Method(loss=regression.bounded, source="Chen et al. 2017", tasks=REGRESSION),
    "rejecting": Method(loss=regression.rejecting, source="Takamoto et al. 2020", tasks=REGRESSION),
    "ail": Method(loss=regression.ail, source="Saputra et al. 2019", tasks=REGRESSION),
    "aht": _on_pooled(
        loss=regression.aht, source="Saputra et al. 2019",
        adapter=adapters.project, tasks=REGRESSION,
    ),
    "differences": Method(loss=regression.differences, source="pairs of predictions", tasks=REGRESSION),
    # ranking
    "relevance": Method(loss=ranking.relevance, teacher=LABELS, source="Bruch et al. 2019", tasks=RANKING),
    "listnet": Method(loss=ranking.listnet, source="Cao et al. 2007", tasks=RANKING),
    "rank_distillation": Method(loss=ranking.rank_distillation, source="Tang and Wang 2018", tasks=RANKING),
    "rrd": Method(loss=ranking.rrd, source="Kang et al. 2020", weight=1e-3, tasks=RANKING),
    "rankdistil": Method(loss=ranking.rankdistil, source="Reddi et al. 2021", tasks=RANKING),
    "experts": _on_pooled(
        loss=intermediate.features, source="Kang et al. 2020",
        adapter=adapters.Experts, weight=0.01, tasks=RANKING,
    ),
    "score_differences": Method(loss=ranking.score_differences, source="pairs of scores", tasks=RANKING),
    # generation
    "word": Method(loss=generation.word, source="Kim and Rush 2016", tasks=GENERATION),
    "sequence": Method(loss=generation.sequence, teacher=LABELS, source="Kim and Rush 2016", tasks=GENERATION),
    "reverse": Method(loss=generation.reverse, source="Gu et al. 2024", tasks=GENERATION),
    "gkd": Method(loss=generation.gkd, source="Agarwal et al. 2024", tasks=GENERATION),
    "minillm": Method(loss=generation.minillm, source="Gu et al. 2024", tasks=GENERATION),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the catalogue."""

    name: str
    representation: str
    about: str
    source: str
    tasks: tuple[str, ...]
    weight: float
    student: str  # tap; empty: to be named
    teacher: str
    settings: Mapping[str, float | int | None]  # with their defaults; None: to be given


def catalogue() -> tuple[Entry, ...]:
    """List every method with its source and defaults, in the order of LOSSES."""
    return tuple(_entry(name, method) for name, method in LOSSES.items())


def knowledge_from(
    recipe: DistillationSection, *, classes: int, task: str = "classification"
) -> tuple[Knowledge, ...]:
    """Make what `losses` of the recipe names; a weight of 0 leaves a loss out.

    `classes` is the width of what the task is answered by.

    Raises:
        ConfigError: an unknown name or setting, or a loss that cannot serve the task.

    """
    found = []
    for name, given in recipe.losses.items():
        section = given if isinstance(given, LossSection) else LossSection(weight=given)
        if section.weight != 0:
            found.append(_knowledge(name, section, recipe, classes, task))
    return tuple(found)


def _knowledge(
    name: str, section: LossSection, recipe: DistillationSection, classes: int, task: str
) -> Knowledge:
    method = _method(name, classes, task)
    if section.confidence and task not in CLASSIFICATION:
        raise ConfigError(
            f"the loss `{name}` has no confidence in {task}",
            cause="it is the probability of a class",
            mend=f"leave confidence out of [distillation.losses.{name}]",
        )
    settings = _settings(name, method, section, recipe.temperature)
    student, teacher = _taps(name, method, section, task)
    return Knowledge(
        name=name,
        loss=_bound(method.loss, settings),
        student=student,
        teacher=teacher,
        adapter=_bound(method.adapter, settings) if method.adapter else None,
        weight=method.weight if section.weight is None else section.weight,
        warm_up=method.warm_up if section.warm_up is None else section.warm_up,
        confidence=section.confidence,
        least_rows=method.least_rows,
    )


def _method(name: str, classes: int, task: str) -> Method:
    serving = [one for one, method in LOSSES.items() if task in method.tasks]
    if name not in LOSSES:
        raise ConfigError(f"there is no loss {name!r}", mend=did_you_mean(name, serving))
    method = LOSSES[name]
    if task not in method.tasks:
        raise ConfigError(
            f"the loss `{name}` does not serve {task}",
            cause=f"it serves {' and '.join(method.tasks)}",
            mend=f"use one of {', '.join(serving)}",
        )
    if task in CLASSIFICATION and classes < method.least_classes:
        raise ConfigError(
            f"the loss `{name}` needs at least {method.least_classes} classes",
            cause=f"the task has {classes}, where it has no gradient",
            mend="use `kd` in [distillation] losses instead"
            if classes > 1
            else "give data of several classes",
        )
    return method


def _settings(
    name: str, method: Method, section: LossSection, temperature: float | None
) -> dict[str, float | int]:
    known = method.settings
    placed = {"weight", "student", "teacher", "warm_up", "confidence"}
    given = {
        field.name: value
        for field in dataclasses.fields(section)
        if field.name not in placed and (value := getattr(section, field.name)) is not None
    }
    for key in given:
        if key not in known:
            mend = did_you_mean(key, sorted({*known, *placed}))
            raise ConfigError(f"the loss `{name}` has no setting {key!r}", mend=mend)
    if temperature is not None and "temperature" in known:
        given.setdefault("temperature", temperature)
    return given


def _taps(
    name: str, method: Method, section: LossSection, task: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose the taps, which pair off; one of the teacher's can serve all of the student's.

    In recognition it is the end that is compared, an embedding, and not what comes before it.

    Raises:
        ConfigError: a tap is not named, or they do not pair off.

    """
    known = {POOLED: LOGITS} if task in RECOGNITION else {}
    student = _listed(section.student) or _listed(known.get(method.student, method.student))
    teacher = _listed(section.teacher) or _listed(known.get(method.teacher, method.teacher))
    for side, taps in (("student", student), ("teacher", teacher)):
        if not taps or "" in taps:
            raise ConfigError(
                f"the loss `{name}` needs to know what to tap in the {side}",
                mend=f'write [distillation.losses.{name}] and below it {side} = "NAME", a module of the {side}',
            )
    if method.gathers and len(student) == 1:
        student *= len(teacher)
    if len(teacher) not in (1, len(student)):
        raise ConfigError(
            f"the taps of the loss `{name}` do not pair off",
            cause=f"{len(student)} of the student, {len(teacher)} of the teacher",
            mend="name as many of each",
        )
    return student, teacher * len(student) if len(teacher) == 1 else teacher


def _listed(taps: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((taps,) if taps else ()) if isinstance(taps, str) else taps


def _bound(function: Callable[..., R], settings: Mapping[str, float | int]) -> Callable[..., R]:
    """Give a function those settings that it takes."""
    taken = inspect.signature(function).parameters
    own = {key: value for key, value in settings.items() if key in taken}
    return partial(function, **own) if own else function


def _entry(name: str, method: Method) -> Entry:
    about = (inspect.getdoc(method.loss) or "").partition("\n")[0].partition(". ")[0].removesuffix(".")
    return Entry(
        name=name,
        representation=method.loss.__module__.rpartition(".")[2],
        about=about,
        source=method.source,
        tasks=method.tasks,
        weight=method.weight,
        student=method.student,
        teacher=method.teacher,
        settings={
            key: None if one.default is inspect.Parameter.empty else one.default
            for key, one in method.settings.items()
        },
    )
