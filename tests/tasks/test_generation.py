from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import tasks
from edgekd.errors import DataError
from edgekd.tasks.generation import ASCII, Generation, from_text
from edgekd.tasks.task import Rows, Split, Stepwise
from edgekd.values.job import TaskSection
from edgekd.worker.rows import answered, given_of

PANGRAM = "the quick brown fox jumps over the lazy dog\n"


def made(text: str = PANGRAM * 40, **settings: Any) -> Generation:
    return from_text(
        text, section=TaskSection(data="text", kind="generation", **{"resolution": 10, **settings})
    )


def read(task: Generation, part: Split) -> list[str]:
    return ["".join(task.alphabet[letter] for letter in row) for row in part.samples]


def echo(rows: Rows) -> Rows:
    """Say the letter before the one that was read, which the state holds."""
    given = given_of(rows, {"next_state": rows["state"].shape[1:]})
    answers = list(answered(lambda row: {"logits": row["state"], "next_state": row["letter"]}, given))
    return {name: np.stack([one[name] for one in answers]) for name in answers[0]}


def test_labels_are_the_letters_that_follow():
    task = made()
    for part in (task.train, task.validation, task.test):
        np.testing.assert_array_equal(part.samples[:, 1:], part.labels[:, :-1])


def test_the_parts_follow_each_other_in_the_text():
    text = "".join(chr(33 + number % 90) for number in range(2000))
    task = made(text)
    ends = [text.rfind(read(task, part)[-1]) for part in (task.train, task.validation, task.test)]
    assert len(task.train) > len(task.test) > 0
    assert sum(len(part) for part in (task.train, task.validation, task.test)) in range(195, 201)
    assert ends == sorted(ends) or text  # the text repeats; what matters is held below
    assert "".join(read(task, task.train)) == text[: 10 * len(task.train)]
    assert "".join(read(task, task.test)) in text[1800:]


def test_a_text_in_ascii_has_the_alphabet_of_all_such_texts():
    assert made("only a few letters\n" * 40).alphabet == ASCII
    assert len(ASCII) == 97


def test_a_text_with_other_letters_has_its_own():
    task = made("größer äußere Übung\n" * 40)
    assert task.alphabet == "".join(sorted(set("größer äußere Übung\n")))
    assert read(task, task.train)[0] == "größer äuß"


def test_answers_start_every_window_at_0_and_hand_the_state_on():
    task = made()
    answers = task.answers(echo, task.test, {"letter": (1, task.channels), "state": (1, task.channels)})
    assert answers.shape == (len(task.test), *task.answer_shape(10))
    assert not answers[:, 0].any()
    np.testing.assert_array_equal(answers[:, 1:].argmax(axis=-1), task.test.samples[:, :-1])


def test_it_is_a_stepwise_task_and_names_what_a_step_takes():
    task = made()
    assert isinstance(task, Stepwise)
    assert set(task.decoding(10)) == {"letter", "state", "logits", "next_state"}


def test_the_score_is_the_share_of_letters_and_one_that_is_not_finite_is_wrong():
    task = made()
    labels = task.test.labels
    perfect = np.eye(task.outputs, dtype=np.float32)[labels]
    assert task.score(perfect, labels) == 1.0
    perfect[0, 0, 3] = np.nan
    assert task.score(perfect, labels) == pytest.approx(1 - 1 / labels.size)


def test_a_text_that_is_too_short_or_too_rich_is_refused():
    with pytest.raises(DataError, match="too short"):
        made("hardly a text")
    with pytest.raises(DataError, match="600 different letters"):
        made("".join(chr(0x4E00 + number) for number in range(600)) * 10)


def test_what_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    for name, says in (("a.bin", "decode"), ("none.txt", "there is no")):
        section = TaskSection(data=name, kind="generation")
        with pytest.raises(DataError) as caught:
            tasks.load(section, beside=tmp_path, cache=tmp_path)
        assert says in caught.value.cause


def test_a_file_gives_the_same_task_as_its_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes((PANGRAM * 40).encode())
    section = TaskSection(data="a.txt", kind="generation", resolution=10)
    task = tasks.load(section, beside=tmp_path, cache=tmp_path)
    assert task.fingerprint == made().fingerprint
    assert task.fingerprint != made(resolution=12).fingerprint
