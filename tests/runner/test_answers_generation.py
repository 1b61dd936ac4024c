from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest

from edgekd.runner import answers_generation
from edgekd.runner.answers_generation import add_arguments, answer, drawn
from edgekd.runner.files import Refusal

ALPHABET = "abc"


class Counting:
    """Says the letter after the last, as surely as it has read letters: a state that must be handed on."""

    recipe = {"alphabet": ALPHABET}  # noqa: RUF012 - never changed
    post = {"letter": "x", "state": "h", "logits": "y", "next_state": "n"}  # noqa: RUF012 - never changed
    inputs = {"x": (1, 3), "h": (1, 1)}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        self.states: list[float] = []

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.states.append(float(inputs["h"][0, 0]))
        return {"y": np.roll(inputs["x"], 1, axis=1) * (1 + inputs["h"]), "n": inputs["h"] + 1}


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--prompt", "ab", *given])


def written(student: Any, *given: str) -> str:
    return str(answer(student, options(*given))[0]["text"])


def test_it_writes_on_from_the_prompt_and_hands_the_state_on():
    student = Counting()
    found, first = answer(student, options("--length", "5", "--temperature", "0"))
    assert found == {"prompt": "ab", "text": "cabca"}
    assert student.states == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(first["x"], [[1, 0, 0]])
    np.testing.assert_array_equal(first["h"], [[0]])


def test_a_seed_gives_the_same_text_again_and_another_seed_another():
    texts = [written(Counting(), "--seed", seed, "--temperature", "3") for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_letters_are_drawn_as_often_as_the_logits_say():
    rng, logits = np.random.default_rng(0), np.log(np.asarray([0.5, 0.3, 0.2]))
    for temperature in (1.0, 0.5):
        powers = np.asarray([0.5, 0.3, 0.2]) ** (1 / temperature)
        counts = np.bincount([drawn(logits, temperature, rng) for _ in range(4000)], minlength=3)
        np.testing.assert_allclose(counts / 4000, powers / powers.sum(), atol=0.03)


@pytest.mark.parametrize(
    "given", [("--length", "0"), ("--temperature", "-1"), ("--temperature", "nan"), ("--seed", "-1")]
)
def test_options_out_of_range_are_refused(given: tuple[str, str]):
    with pytest.raises(Refusal, match=given[0]) as caught:
        answer(Counting(), options(*given))
    assert caught.value.exit_code == 2


def test_a_model_without_the_state_that_the_manifest_names_is_refused():
    student = Counting()
    student.inputs = {"x": (1, 3)}
    with pytest.raises(Refusal, match="no input for 'h'"):
        answer(student, options())


def test_what_a_terminal_would_obey_is_not_printed(capsys: pytest.CaptureFixture[str]):
    answers_generation.show({"prompt": "a\n", "text": "\x1b[31mb"})
    assert capsys.readouterr().out == "a\n\N{REPLACEMENT CHARACTER}[31mb\n"
