"""Generation: the next letter of a text, from a network that reads letter by letter and hands its state on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.runner.from_text import one_hot, prepare
from edgekd.tasks.task import Run, Split, fingerprint_of
from edgekd.values.job import TaskSection
from edgekd.values.preprocess import Text

ASCII = "\t\n" + "".join(chr(number) for number in range(32, 127))
_CONTEXT = 64  # letters of a window, where the job says nothing
_MOST_WINDOWS = 4096  # for training: the teacher's labels of a view take V x 2 bytes a letter
_MOST_JUDGED = 256  # windows for validation and for the test: each letter is an inference
_TEST_SHARE = 0.1  # of the text, its end
_MOST_LETTERS = 512  # of an alphabet
_LIMIT_BYTES = 1 << 30
_LETTER, _STATE, _LOGITS = "letter", "state", "logits"


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """Windows of a text, and the letter that follows each letter; the network starts every window anew."""

    name: str
    alphabet: str
    train: (
        Split  # samples int64 (N, T): letters, by their places in the alphabet; labels (N, T): the next ones
    )
    validation: Split
    test: Split
    resolution: int = _CONTEXT  # letters of a window
    kind: str = "generation"
    metric: str = "accuracy"  # of the next letter
    classes: tuple[str, ...] = ()
    families: tuple[str, ...] = ("gru",)
    criterion: str = "sequence"
    crop: int = 0
    flip: bool = False
    fingerprint: str = field(init=False)  # of the letters and settings

    def __post_init__(self) -> None:
        settings = (self.alphabet, self.resolution, self.metric)
        parts = (self.train, self.validation, self.test)
        object.__setattr__(self, "fingerprint", fingerprint_of(settings, parts))

    @property
    def outputs(self) -> int:
        """One logit a letter of the alphabet."""
        return len(self.alphabet)

    @property
    def channels(self) -> int:
        """Letters of the alphabet: a step reads one as so many numbers, all 0 but one."""
        return len(self.alphabet)

    @property
    def losses(self) -> Mapping[str, float]:
        """What the teacher says of every next letter, and the letter itself."""
        return {"word": 1.0, "sequence": 0.5}

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def preprocess(self, resolution: int) -> Text:
        """Name the alphabet, which is the same whatever the context."""
        del resolution
        return Text(alphabet=self.alphabet)

    def prepare(self, samples: NDArray[Any], resolution: int) -> NDArray[np.int64]:
        """Return windows (n, T) as they are."""
        return prepare(samples, self.preprocess(resolution))

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.int64]:
        """Return the windows of a split, or of `split.spread(limit)`: (n, 1, T)."""
        chosen = split if limit is None else split.spread(limit)
        return self.prepare(chosen.samples, resolution)[:, None]

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One logit a letter of the alphabet, after each letter of a window."""
        return (resolution, self.outputs)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Name what a step takes and gives."""
        del resolution
        return {"letter": _LETTER, "state": _STATE, "logits": _LOGITS, "next_state": f"next_{_STATE}"}

    def answers(self, run: Run, split: Split, inputs: Mapping[str, tuple[int, ...]]) -> NDArray[np.float32]:
        """Read the windows of a split, each letter by letter from the state 0.

        Returns:
            Logits (n, T, V).

        """
        letters = self.prepare(split.samples, self.resolution)
        rows = {
            _LETTER: one_hot(letters.reshape(-1), self.channels),
            _STATE: np.zeros((len(letters), *inputs[_STATE]), np.float32),
        }
        return np.asarray(run(rows)[_LOGITS], np.float32).reshape(*letters.shape, self.outputs)

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return the share of letters (N, T) that the largest logit names; one that is not finite counts as wrong."""
        rows = outputs.reshape(*labels.shape, -1)
        right = (rows.argmax(axis=-1) == labels) & np.isfinite(rows).all(axis=-1)
        return float(right.mean())


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> Generation:
    """Read the text that `[task]` names.

    Raises:
        DataError: it is no text, or too short.

    """
    del cache, seed  # the text is divided in its order
    path = beside / Path(section.data).expanduser()
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise DataError(f"{path} is larger than {_LIMIT_BYTES >> 20} MiB", mend="give a part of it")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = f"there is no {path}" if not path.exists() else str(error)[:200]
        mend = "give a text file in UTF-8"
        raise DataError(f"[task] data = {section.data!r} cannot be read", cause=cause, mend=mend) from error
    return from_text(text, section=section)


def from_text(text: str, *, section: TaskSection) -> Generation:
    """Divide a text: its end is for the test, what comes before that for validation, the rest for training.

    The alphabet is all of ASCII that can be printed, so that a teacher fits any such text; or the text's own letters,
    where it has others.

    Raises:
        DataError: it is too short, or has more letters than an alphabet.

    """
    alphabet = ASCII if set(text) <= set(ASCII) else "".join(sorted(set(text)))
    if len(alphabet) > _MOST_LETTERS:
        raise DataError(
            f"{section.data} has {len(alphabet)} different letters",
            cause=f"a model here tells {_MOST_LETTERS} apart",
            mend="give a text in an alphabet, not one of pictographs, or clean it of stray signs",
        )
    places = np.full(max(map(ord, alphabet)) + 1, -1, np.int64)
    places[[ord(letter) for letter in alphabet]] = np.arange(len(alphabet))
    letters = places[np.frombuffer(text.encode("utf-32-le"), "<u4")]
    context = section.resolution or _CONTEXT
    judged = round(len(letters) * (1 - _TEST_SHARE))
    start = judged - round(judged * section.validation)
    train, validation, test = (
        _windows(section.data, part, context, most)
        for part, most in (
            (letters[:start], _MOST_WINDOWS),
            (letters[start:judged], _MOST_JUDGED),
            (letters[judged:], _MOST_JUDGED),
        )
    )
    return Generation(
        name=section.data,
        alphabet=alphabet,
        train=train,
        validation=validation,
        test=test,
        resolution=context,
    )


def _windows(name: str, letters: NDArray[np.int64], context: int, most: int) -> Split:
    """Cut windows that do not overlap, evenly spread where there are more than `most`."""
    count = (len(letters) - 1) // context
    if count < 1:
        raise DataError(
            f"{name} is too short",
            cause=f"a part of {len(letters)} letters holds no window of {context} and the letter after it",
            mend="give a longer text, or set task.resolution lower",
        )
    starts = (np.arange(count) * context)[:, None] + np.arange(context)
    return Split(samples=letters[starts], labels=letters[starts + 1]).spread(most)
