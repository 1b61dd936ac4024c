from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import DataError
from edgekd.tasks.sounds import Recordings, divide, open_recordings
from tests.tasks import sine_words


def heard(recordings: Recordings, part: np.ndarray) -> set[str]:
    return {recordings.speakers[at] for at in part}


def opened(path: Path) -> Recordings:
    return open_recordings(str(path), Path())


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_heard_in_two_parts(tmp_path: Path, seed: int):
    found = opened(sine_words.npz(tmp_path / "words.npz"))
    parts = divide(found, 0.1, seed)
    groups = [heard(found, part) for part in (parts.train, parts.validation, parts.test)]
    assert set.union(*groups) == set(sine_words.SPEAKERS)
    assert [len(group) for group in groups] == [3, 1, 1]
    assert len(parts.train) + len(parts.validation) + len(parts.test) == len(found.labels)


def test_without_speakers_every_word_is_divided_alike(tmp_path: Path):
    found = opened(sine_words.npz(tmp_path / "words.npz", speaker=None))
    parts = divide(found, 0.25, 0)
    assert np.bincount(found.labels[parts.test]).tolist() == [4, 4, 4]
    assert np.bincount(found.labels[parts.validation]).tolist() == [4, 4, 4]
    assert not set(parts.train) & (set(parts.test) | set(parts.validation))


def test_a_split_of_the_data_decides_the_test(tmp_path: Path):
    mask = np.tile(np.repeat([0, 0, 0, 1, 1], 4), 3)
    found = opened(sine_words.npz(tmp_path / "words.npz", split=mask))
    assert heard(found, divide(found, 0.1, 0).test) == {"dee", "eve"}
    late = divide(found, 0.5, 0, "test")
    assert heard(found, late.train) == {"ann", "bob", "cid"}
    assert heard(found, late.test) | heard(found, late.validation) == {"dee", "eve"}


def test_a_word_that_only_the_test_speaker_says_is_refused(tmp_path: Path):
    found = opened(sine_words.npz(tmp_path / "words.npz"))
    alone = np.asarray(
        [at for at, name in enumerate(found.speakers) if name != "ann" or found.labels[at] == 0]
    )
    few = Recordings(
        name="few", sounds=found.sounds[alone], labels=found.labels[alone], classes=found.classes,
        sample_rate=found.sample_rate, speakers=tuple(found.speakers[at] for at in alone),
        test=np.asarray([found.speakers[at] == "ann" for at in alone]),
    )  # fmt: skip
    with pytest.raises(DataError, match="'high' in few is left for test"):
        divide(few, 0.1, 0)


@pytest.mark.parametrize("names", ["{speaker}_nohash_{take}.wav", "{speaker}/{take}.wav"])
def test_folders_of_wav_files_say_who_is_heard(tmp_path: Path, names: str):
    found = opened(sine_words.folders(tmp_path / "words", names))
    assert found.classes == tuple(sorted(sine_words.WORDS))
    assert set(found.speakers) == set(sine_words.SPEAKERS)
    assert found.sample_rate == sine_words.RATE
    at = next(at for at, name in enumerate(found.speakers) if name == "cid")
    word = found.classes[found.labels[at]]
    wanted = sine_words.said(word, "cid", 0)
    np.testing.assert_array_equal(np.trim_zeros(found.sounds[at])[:200], np.trim_zeros(wanted)[:200])


def test_files_that_name_nobody_leave_the_speakers_open(tmp_path: Path):
    assert opened(sine_words.folders(tmp_path / "words", "{speaker}{take}.wav")).speakers == ()


def test_recordings_are_heard_whole_up_to_the_95th_percentile(tmp_path: Path):
    found = opened(sine_words.npz(tmp_path / "words.npz"))
    with np.load(tmp_path / "words.npz") as held:
        lengths = np.diff(held["offset"])
    assert (lengths <= found.sounds.shape[1]).mean() >= 0.95
    assert found.sounds.shape[1] <= lengths.max()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"audio": None}, "holds no 'audio'"),
        ({"offset": np.arange(5)}, "not put together"),
        ({"audio": np.zeros(10, np.float32)}, "not put together"),
        ({"classes": np.asarray(["low", "high"])}, "out of range"),
        ({"label": np.zeros(60, np.int64), "classes": np.asarray(["low"])}, "one word"),
        ({"speaker": np.asarray(["ann"])}, "who is heard"),
        ({"sample_rate": np.asarray(0)}, "sample rate of 0"),
    ],
)
def test_an_npz_of_another_form_is_refused(tmp_path: Path, content: dict[str, object], says: str):
    with pytest.raises(DataError, match=says):
        opened(sine_words.npz(tmp_path / "words.npz", **content))


def test_what_is_not_there_or_is_no_sound_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    sine_words.folders(tmp_path / "words", takes=1)
    (tmp_path / "words/low/ann_nohash_9.wav").write_bytes(b"no sound")
    for name, says in (("none", "there is no"), ("empty", "no WAV files"), ("words", "ann_nohash_9.wav")):
        with pytest.raises(DataError) as caught:
            opened(tmp_path / name)
        assert says in f"{caught.value.what} {caught.value.cause}"
