"""A text that goes on as the training texts do, letter by letter."""

import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal
from edgekd.runner.from_text import load, one_hot, prepare
from edgekd.runner.student import Student

_MOST_LETTERS = 1_000_000


def describe() -> str:
    """Say what the bundle does, for `--help`."""
    return "Write on from a prompt with the bundle beside this file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is asked of a writer."""
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    parser.add_argument("--length", type=int, default=200, metavar="N", help="letters to write (200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest letter (0.8)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another text (0)")


def answer(student: Student, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the text that was written, and the model's inputs of the first step."""
    if not 0 < options.length <= _MOST_LETTERS:
        raise Refusal(f"--length must be 1 to {_MOST_LETTERS}", 2)
    if not (options.temperature >= 0 and math.isfinite(options.temperature)):
        raise Refusal("--temperature must be at least 0", 2)
    if options.seed < 0:
        raise Refusal("--seed must be at least 0", 2)
    prompt = prepare(load(options.prompt, student.recipe), student.recipe)[0]
    rng, alphabet = np.random.Generator(np.random.PCG64(options.seed)), student.recipe["alphabet"]
    step = Step(student)
    first = step.inputs(int(prompt[0]))
    for letter in prompt:
        logits = step(int(letter))
    written = []
    for _ in range(options.length):
        written.append(drawn(logits, options.temperature, rng))
        logits = step(written[-1])
    text = "".join(alphabet[letter] for letter in written)
    return {"prompt": options.prompt, "text": text}, first


def show(found: Mapping[str, Any]) -> None:
    """Print the prompt and what follows it."""
    text = found["prompt"] + found["text"]
    print("".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text))


class Step:
    """A model that reads one letter at a time, and the state that it hands on."""

    def __init__(self, student: Student) -> None:
        self._student, self._names = student, student.post
        self._size = len(student.recipe["alphabet"])
        try:
            self._state = np.zeros(student.inputs[str(self._names["state"])], np.float32)
        except KeyError as error:
            raise Refusal(f"the model has no input for {error}", 6) from None

    def inputs(self, letter: int) -> dict[str, NDArray[Any]]:
        """Return what the next inference takes."""
        row = one_hot(np.asarray([letter]), self._size)[0]
        return {self._names["letter"]: row, self._names["state"]: self._state}

    def __call__(self, letter: int) -> NDArray[np.float64]:
        """Read a letter; return the logits (V,) of the one that follows."""
        outputs = self._student.infer(self.inputs(letter))
        self._state = outputs[self._names["next_state"]]
        logits = np.asarray(outputs[self._names["logits"]], np.float64).reshape(-1)
        if len(logits) != self._size:
            raise Refusal(f"the model gives {len(logits)} outputs for {self._size} letters", 6)
        return logits


def drawn(logits: NDArray[np.float64], temperature: float, rng: np.random.Generator) -> int:
    """Draw a letter from logits (V,), sharpened by a temperature below 1."""
    if temperature == 0:
        return int(logits.argmax())
    powers = np.exp((logits - logits.max()) / temperature)
    chances = np.cumsum(powers) / powers.sum()
    return min(int(np.searchsorted(chances, rng.random(), side="right")), len(logits) - 1)
