"""Recordings of words: from an .npz or from WAV files, and divided so that nobody is heard in two parts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.runner.files import Refusal
from edgekd.runner.from_spectrogram import fitted, read_wav, resampled
from edgekd.tasks.npz import read_arrays, split_of

_FORMS = (
    "an .npz {audio int16 back to back, offset, label, sample_rate}, with classes, speaker and split if you like; or a "
    "folder with one folder of WAV files a word, in folders by speaker or named SPEAKER_nohash_NUMBER.wav if you like"
)
_SPEAKER_ENDS = "_nohash_"  # in the file names of Speech Commands (Warden 2018)
_LONGEST = 95  # percentile of the recordings' lengths that a model hears whole
_TEST_SHARE = 0.2  # of recordings that bring no split of their own
_LEAST_WORDS = 2

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recordings:
    """Words that were said, before they are divided."""

    name: str
    sounds: NDArray[np.int16]  # (N, samples): all of one length
    labels: NDArray[np.int64]  # (N,)
    classes: tuple[str, ...]
    sample_rate: int  # Hz
    speakers: tuple[str, ...] = ()  # who said each; none: not known
    test: NDArray[np.bool_] | None = None  # the split they bring


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which recordings are for what."""

    train: Indices
    validation: Indices
    test: Indices


def open_recordings(data: str, beside: Path) -> Recordings:
    """Read what `[task] data` names, before it is divided.

    Raises:
        DataError: nothing is there, or it is not of a known form.

    """
    path = beside / Path(data).expanduser()
    if path.is_dir():
        found = _from_folders(path, data)
    elif path.is_file() and path.suffix == ".npz":
        found = _from_npz(path, data)
    else:
        cause = f"{path} is not an .npz file" if path.exists() else f"there is no {path}"
        raise DataError(f"[task] data = {data!r} cannot be read", cause=cause, mend=f"give {_FORMS}")
    _check(found)
    return found


def divide(recordings: Recordings, validation: float, seed: int, validation_from: str = "train") -> Parts:
    """Set aside test and validation: whole speakers where they are known, else the same share of each word.

    A split that the data bring decides the test; else it is 20 % of all. Validation is a share of the rest, or of
    the test where the teacher has heard the rest already.

    Raises:
        DataError: a word or a speaker is missing from a part.

    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    rest = np.arange(len(recordings.labels), dtype=np.int64)
    if recordings.test is None:
        test, rest = _set_aside(recordings, rest, _TEST_SHARE, rng)
    else:
        test, rest = rest[recordings.test], rest[~recordings.test]
    if validation_from == "test":
        chosen, test = _set_aside(recordings, test, validation, rng)
    else:
        chosen, rest = _set_aside(recordings, rest, validation, rng)
    for part, indices in (("training", rest), ("validation", chosen), ("test", test)):
        counts = np.bincount(recordings.labels[indices], minlength=len(recordings.classes))
        if not counts.all():
            word = recordings.classes[int(np.argmin(counts))]
            raise DataError(
                f"no recording of {word!r} in {recordings.name} is left for {part}",
                mend="add recordings, or speakers who say every word",
            )
    return Parts(train=rest, validation=chosen, test=test)


def _set_aside(
    recordings: Recordings, among: Indices, share: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    names = [recordings.speakers[at] for at in among] if recordings.speakers else []
    if len(set(names)) > 1:
        taken = _speakers_taken(Counter(names), share, rng)
        mask = np.asarray([name in taken for name in names])
        return among[mask], among[~mask]
    drawn = []
    for number in range(len(recordings.classes)):
        members = among[recordings.labels[among] == number]
        drawn.append(rng.permutation(members)[: max(1, round(share * len(members)))])
    chosen = np.sort(np.concatenate(drawn))
    return chosen, np.setdiff1d(among, chosen, assume_unique=True)


def _speakers_taken(counts: Mapping[str, int], share: float, rng: np.random.Generator) -> set[str]:
    """Draw speakers until their recordings come nearest to the share; one at least is left."""
    order = [str(name) for name in rng.permutation(sorted(counts))][:-1]
    sums = np.cumsum([counts[name] for name in order])
    return set(order[: int(np.argmin(np.abs(sums - share * sum(counts.values())))) + 1])


def _from_npz(path: Path, name: str) -> Recordings:
    arrays = read_arrays(path, _FORMS)
    label = next((key for key in ("label", "labels", "digit") if key in arrays), "label")
    if lacking := {"audio", "offset", "sample_rate", label} - arrays.keys():
        raise DataError(f"{path} holds no {min(lacking)!r}", mend=f"give {_FORMS}")
    audio, offset, numbers = arrays["audio"], arrays["offset"], arrays[label]
    count = len(numbers) if numbers.ndim == 1 and numbers.dtype.kind in "iu" else -1
    ends = (
        offset.astype(np.int64) if offset.dtype.kind in "iu" and offset.ndim == 1 else np.empty(0, np.int64)
    )
    fits = len(ends) == count + 1 and count > 0 and audio.dtype == np.int16 and audio.ndim == 1
    if not fits or ends[0] < 0 or ends[-1] > len(audio) or (np.diff(ends) <= 0).any():
        cause = f"audio {audio.dtype} {audio.shape}, offset {offset.shape}, {label} {numbers.shape}"
        raise DataError(f"{path} is not put together as recordings are", cause=cause, mend=f"give {_FORMS}")
    labels = numbers.astype(np.int64)
    named = arrays.get("classes", np.arange(int(labels.max()) + 1))
    spoken = np.atleast_1d(arrays["speaker"]).tolist() if "speaker" in arrays else []
    cut = [audio[start:stop] for start, stop in itertools.pairwise(ends)]
    return Recordings(
        name=name,
        sounds=_one_length([np.asarray(sound, np.int16) for sound in cut]),
        labels=labels,
        classes=tuple(str(one) for one in np.atleast_1d(named).tolist()),
        sample_rate=int(np.asarray(arrays["sample_rate"]).reshape(-1)[0]),
        speakers=tuple(str(one) for one in spoken),
        test=split_of(path, arrays, count),
    )


def _from_folders(root: Path, name: str) -> Recordings:
    words = sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith((".", "_")))
    files = [
        (number, file) for number, word in enumerate(words) for file in sorted(word.rglob("*.[wW][aA][vV]"))
    ]
    if not files:
        raise DataError(f"{root} holds no WAV files in folders", mend=f"give {_FORMS}")
    try:
        heard = [read_wav(file) for _, file in files]
    except Refusal as refusal:
        raise DataError(str(refusal), mend="take the file out, or save it as 16-bit PCM") from None
    rate = Counter(rate for _, rate in heard).most_common(1)[0][0]
    speakers = tuple(_speaker(file, words[number]) for number, file in files)
    return Recordings(
        name=name,
        sounds=_one_length([resampled(*one, rate) for one in heard]),
        labels=np.asarray([number for number, _ in files], np.int64),
        classes=tuple(word.name for word in words),
        sample_rate=rate,
        speakers=speakers if all(speakers) else (),
    )


def _speaker(file: Path, word: Path) -> str:
    """Return who is heard, as the folder or the name of the file says it; empty where neither does."""
    inside = file.relative_to(word).parts
    if len(inside) > 1:
        return inside[0]
    speaker, found, _ = file.name.partition(_SPEAKER_ENDS)
    return speaker if found else ""


def _one_length(sounds: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
    samples = int(np.ceil(np.percentile([len(sound) for sound in sounds], _LONGEST)))
    return np.stack([fitted(sound, samples) for sound in sounds])


def _check(recordings: Recordings) -> None:
    """Refuse recordings that cannot be learnt from."""
    labels, classes, name = recordings.labels, recordings.classes, recordings.name
    if labels.min() < 0 or labels.max() >= len(classes):
        cause = f"labels are {labels.min()} to {labels.max()}, there are {len(classes)} words"
        raise DataError(f"{name} holds a label out of range", cause=cause, mend="number the words from 0")
    if len(classes) < _LEAST_WORDS:
        raise DataError(
            f"{name} holds one word, {classes[0]!r}", mend="give recordings of at least two words"
        )
    if recordings.speakers and len(recordings.speakers) != len(labels):
        cause = f"{len(recordings.speakers)} speakers, {len(labels)} recordings"
        raise DataError(f"{name} does not say who is heard in each recording", cause=cause)
    if not 0 < recordings.sample_rate <= 768_000:  # noqa: PLR2004 - no recorder is faster
        raise DataError(f"{name} has a sample rate of {recordings.sample_rate} Hz")
