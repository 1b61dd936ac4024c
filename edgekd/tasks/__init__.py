"""What a network is asked to do: data, metric and pre-processing, one file a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edgekd.errors import ConfigError
from edgekd.tasks import (
    classification,
    detection,
    generation,
    keywords,
    ranking,
    recognition,
    regression,
    segmentation,
)
from edgekd.tasks.classification import ImageClassification, from_arrays, from_dataset
from edgekd.tasks.task import Split, Stepwise, Task
from edgekd.values.codec import did_you_mean
from edgekd.values.job import TaskSection

__all__ = ["ImageClassification", "Split", "Stepwise", "Task", "from_arrays", "from_dataset", "load"]


class Loader(Protocol):
    """Reads the data of `[task]` and divides it."""

    def __call__(self, section: TaskSection, *, beside: Path, cache: Path, seed: int) -> Task:
        """Return the task."""


LOADERS: Mapping[str, Loader] = {
    "classification": classification.load,
    "recognition": recognition.load,
    "regression": regression.load,
    "ranking": ranking.load,
    "generation": generation.load,
    "keywords": keywords.load,
    "detection": detection.load,
    "segmentation": segmentation.load,
}


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> Task:
    """Read the data of `[task]` and split it.

    Args:
        section: its `kind` is one of `values.job.TASKS`.
        beside: the folder that relative paths start from: the job's.
        cache: where what was decoded may be kept between runs.
        seed: of the split.

    Raises:
        DataError: the data set cannot serve the task.

    """
    if section.kind not in LOADERS:
        raise ConfigError(
            f"there is no task {section.kind!r}", mend=did_you_mean(section.kind, list(LOADERS))
        )
    return LOADERS[section.kind](section, beside=beside, cache=cache, seed=seed)
