"""Keyword spotting: which of a few words a recording says, by speakers who were never heard before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ConfigError, DataError
from edgekd.runner.from_spectrogram import prepare
from edgekd.tasks.sounds import Recordings, divide, open_recordings
from edgekd.tasks.task import Split, fingerprint_of
from edgekd.values.job import TaskSection
from edgekd.values.preprocess import Spectrogram

_RESOLUTION = 32  # bins and frames, where the job says nothing
_WINDOW_S = 0.032  # of a frame: speech hardly changes within it
_FLOOR = 1e-6  # of energy, where the loudest sample is 1
_ENOUGH = 2048  # sounds, to know mean and spread by


@dataclass(frozen=True, kw_only=True, eq=False)
class KeywordSpotting:
    """Recordings of words, divided by speaker, and what makes pictures of them."""

    name: str
    classes: tuple[str, ...]
    train: Split  # samples int16 (N, samples), labels int64 (N,)
    validation: Split
    test: Split
    sample_rate: int  # Hz
    mean: float  # of the logarithms
    std: float
    resolution: int = _RESOLUTION  # bins and frames
    crop: int = 0  # samples that a sound may come sooner or later
    kind: str = "keywords"
    metric: str = "accuracy"
    channels: int = 1
    families: tuple[str, ...] = ("residual", "inverted")
    criterion: str = "ce"
    flip: bool = False
    fingerprint: str = field(init=False)  # of the sounds, labels and settings

    def __post_init__(self) -> None:
        settings = (
            self.classes, self.sample_rate, self.mean, self.std, self.resolution, self.crop, self.metric,
        )  # fmt: skip
        parts = (self.train, self.validation, self.test)
        object.__setattr__(self, "fingerprint", fingerprint_of(settings, parts))

    @property
    def outputs(self) -> int:
        """One logit a word."""
        return len(self.classes)

    @property
    def losses(self) -> Mapping[str, float]:
        """The labels, and what the teacher says of all words (DIST); KD where there are but two."""
        return {"ce": 1.0, "dist" if len(self.classes) > 2 else "kd": 1.0}  # noqa: PLR2004 - DIST has no gradient there

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def preprocess(self, resolution: int) -> Spectrogram:
        """Say how a sound becomes a picture of as many bins and frames as `resolution`."""
        samples = int(self.train.samples.shape[1])
        return _recipe(self.sample_rate, samples, resolution, self.mean, self.std)

    def prepare(self, samples: NDArray[Any], resolution: int) -> NDArray[np.float32]:
        """Turn sounds (n, samples) into pictures (n, 1, resolution, resolution)."""
        return prepare(np.asarray(samples), self.preprocess(resolution))

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.float32]:
        """Prepare a split, or `split.spread(limit)`: (n, 1, 1, bins, frames), a row an inference."""
        chosen = split if limit is None else split.spread(limit)
        return self.prepare(chosen.samples, resolution)[:, None]

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One logit a word, whatever the resolution."""
        del resolution
        return (self.outputs,)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Return nothing: the largest logit names the word."""
        del resolution
        return {}

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return the accuracy of logits (N, words); a row that is not finite counts as wrong."""
        rows = outputs.reshape(len(labels), -1)
        right = (rows.argmax(axis=1) == labels) & np.isfinite(rows).all(axis=1)
        return float(right.mean())


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> KeywordSpotting:
    """Read the recordings that `[task]` names.

    Raises:
        DataError: they cannot serve the task.
        ConfigError: `mean` and `std` are not one number each.

    """
    del cache  # sounds are small
    return from_recordings(open_recordings(section.data, beside), section=section, seed=seed)


def from_recordings(recordings: Recordings, *, section: TaskSection, seed: int = 0) -> KeywordSpotting:
    """Divide recordings, and measure what normalises them.

    Raises:
        DataError: a word is missing from a part, or the recordings are shorter than a frame.
        ConfigError: `mean` and `std` are not one number each.

    """
    found = divide(recordings, section.validation, seed, section.validation_from)
    train, validation, test = (
        Split(samples=recordings.sounds[part], labels=recordings.labels[part])
        for part in (found.train, found.validation, found.test)
    )
    resolution = section.resolution or _RESOLUTION
    mean, std = _statistics(section, train, recordings.sample_rate, resolution)
    return KeywordSpotting(
        name=recordings.name,
        classes=recordings.classes,
        train=train,
        validation=validation,
        test=test,
        sample_rate=recordings.sample_rate,
        mean=mean,
        std=std,
        resolution=resolution,
        crop=section.crop,
    )


def _statistics(section: TaskSection, train: Split, sample_rate: int, resolution: int) -> tuple[float, float]:
    """Return mean and standard deviation of the logarithms: the given ones, or the training sounds' own."""
    if section.mean is not None and section.std is not None:
        if len(section.mean) != 1:
            raise ConfigError("[task] mean and std of sounds are one number each")
        return section.mean[0], section.std[0]
    plain = _recipe(sample_rate, int(train.samples.shape[1]), resolution, 0.0, 1.0)
    pictures = prepare(train.spread(_ENOUGH).samples, plain).astype(np.float64)
    return round(float(pictures.mean()), 6), max(round(float(pictures.std()), 6), 1e-3)


def _recipe(sample_rate: int, samples: int, resolution: int, mean: float, std: float) -> Spectrogram:
    """Spread frames of 32 ms over the whole sound.

    Raises:
        DataError: the sound is shorter than that.

    """
    window = max(8, round(_WINDOW_S * sample_rate))
    hop = (samples - window) // max(resolution - 1, 1)
    if hop < 1:
        raise DataError(
            f"recordings of {samples} samples cannot be divided into {resolution} frames",
            cause=f"at {sample_rate} Hz a frame has {window}",
            mend="set task.resolution lower, or give longer recordings",
        )
    return Spectrogram(
        sample_rate=sample_rate,
        samples=samples,
        bins=resolution,
        frames=resolution,
        window=window,
        hop=hop,
        floor=_FLOOR,
        mean=mean,
        std=std,
    )
