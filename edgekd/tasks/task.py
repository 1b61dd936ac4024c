"""What every task gives: samples in three parts, how they become a network's input, and what its outputs are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgekd.values.preprocess import Recipe

Rows = Mapping[
    str, NDArray[Any]
]  # by the name of an input or output: (n, *its whole shape), a row an inference
# What a network answers to rows of inputs. An input with fewer rows than the others is a state: a row a sequence, which
# the output `next_NAME` replaces from row to row of that sequence.
Run = Callable[[Rows], Rows]

_CHUNK = 1024  # samples hashed at a time: the rest stays on disk


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Samples as they are kept, and the truth about them."""

    samples: NDArray[Any]  # (N, ...): uint8 images, int16 sound, float32 features, letters
    labels: NDArray[Any]  # (N, ...): int64 classes, float32 values, masks, boxes

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Split:
        """Return the samples from `start` up to `stop`."""
        return Split(samples=self.samples[start:stop], labels=self.labels[start:stop])

    def spread(self, limit: int) -> Split:
        """Return at most `limit` samples, evenly spread: where classes follow each other, of every class."""
        count = min(limit, len(self))
        chosen = np.arange(count) * len(self) // max(count, 1)
        return Split(samples=self.samples[chosen], labels=self.labels[chosen])


class Task(Protocol):
    """Data, divided: training teaches, validation chooses students, test is for the last verdict alone."""

    @property
    def kind(self) -> str:
        """One of `values.job.TASKS`."""

    @property
    def name(self) -> str:
        """What the data set is called."""

    @property
    def metric(self) -> str:
        """What `score` gives; more is better: "accuracy", "r2", "ndcg@10"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is told apart; none where the task tells nothing apart."""

    @property
    def outputs(self) -> int:
        """Width of a student's end: classes, numbers of an embedding, values, letters, maps."""

    @property
    def channels(self) -> int:
        """Width of a network's input: colours, features; 1 for sound."""

    @property
    def resolution(self) -> int:
        """Side of the teacher's input, in pixels or bins; letters of a text; 1 for a row of features."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families of students that fit."""

    @property
    def losses(self) -> Mapping[str, float]:
        """What a student learns by where the job names nothing: weights by the losses' names."""

    @property
    def criterion(self) -> str:
        """Name of the loss against labels, which a teacher is trained by."""

    @property
    def crop(self) -> int:
        """Pixels, at `resolution`, or samples of sound that a view may be moved by; 0: none."""

    @property
    def flip(self) -> bool:
        """Whether a view may be mirrored."""

    @property
    def train(self) -> Split:
        """What is learnt from."""

    @property
    def validation(self) -> Split:
        """What chooses."""

    @property
    def test(self) -> Split:
        """What judges, once."""

    @property
    def fingerprint(self) -> str:
        """Digest of the samples, labels and settings."""

    def split(self, name: str, /) -> Split:
        """Return the part called train, validation or test."""

    def preprocess(self, resolution: int, /) -> Recipe:
        """Say how a sample becomes the input of a network of this resolution."""

    def prepare(self, samples: NDArray[Any], resolution: int, /) -> NDArray[Any]:
        """Turn samples (n, ...) into inputs (n, ...) by the runner's own code: float32, or int64 letters."""

    def inputs(self, split: Split, resolution: int, limit: int | None = None, /) -> NDArray[Any]:
        """Prepare a split, or `split.spread(limit)`: (n, 1, ...), a row an inference."""

    def answer_shape(self, resolution: int, /) -> tuple[int, ...]:
        """Return the shape of the outputs for one sample, without the batch."""

    def decoding(self, resolution: int, /) -> dict[str, Any]:
        """Say how outputs become answers, as the manifest keeps it for the runner: plain JSON; {} where it is plain."""

    def score(self, outputs: NDArray[Any], labels: NDArray[Any], /) -> float:
        """Return the metric of outputs (n, *answer_shape); a sample with one that is not finite counts as wrong."""


@runtime_checkable
class Placed(Task, Protocol):
    """A task whose labels lie in the image, and move with it."""

    def moved(
        self,
        labels: NDArray[Any],
        down: NDArray[np.int64],
        right: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
        /,
    ) -> NDArray[Any]:
        """Move labels (n, ...) as their images are: by pixels as they are kept, (n,), and then mirrored, (n,)."""


@runtime_checkable
class Stepwise(Task, Protocol):
    """A task whose shipped network is called several times a sample, with a state that it hands on."""

    def answers(self, run: Run, split: Split, inputs: Mapping[str, tuple[int, ...]], /) -> NDArray[Any]:
        """Run the split through the network's steps; return what `score` takes.

        Args:
            run: the network, rows of inputs to rows of outputs. A state can come with a row a sequence, and is then
                handed on from row to row within each.
            split: what to answer.
            inputs: whole shapes of the network's inputs by name; a state starts at 0.

        """


def fingerprint_of(settings: object, parts: Sequence[Split]) -> str:
    """Name a task by its content: the settings as `repr` writes them, the samples and the labels."""
    digest = hashlib.sha256(repr(settings).encode())
    for part in parts:
        digest.update(repr(part.samples.shape).encode())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
        for start in range(0, len(part), _CHUNK):
            digest.update(np.ascontiguousarray(part.samples[start : start + _CHUNK]).data)
    return digest.hexdigest()
