"""What a network is asked to do: data, metric and pre-processing, one file a task."""

from __future__ import annotations

from pathlib import Path

from edgekd.tasks.classification import ImageClassification, Split, from_arrays, from_dataset
from edgekd.tasks.classification import load as load_classification
from edgekd.values.job import TaskSection

__all__ = ["ImageClassification", "Split", "from_arrays", "from_dataset", "load"]

LOADERS = {"classification": load_classification}


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> ImageClassification:
    """Read the data of `[task]` and split it.

    Args:
        section: its `kind` is one of `values.job.TASKS`.
        beside: the folder that relative paths start from: the job's.
        cache: where decoded images may be kept between runs.
        seed: of the split.

    Raises:
        DataError: the data set cannot serve the task.

    """
    return LOADERS[section.kind](section, beside=beside, cache=cache, seed=seed)
