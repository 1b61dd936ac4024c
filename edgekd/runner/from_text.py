"""Text: letters as numbers, by the alphabet that a model was trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.runner.files import Refusal


def prepare(letters: NDArray[np.integer[Any]], spec: Mapping[str, Any] | object) -> NDArray[np.int64]:
    """Turn numbers of letters (N, T) into the model's input, which they are.

    Raises:
        ValueError: a number is none of the alphabet's.

    """
    recipe = spec if isinstance(spec, Mapping) else vars(spec)
    numbers, count = np.asarray(letters, np.int64), len(recipe["alphabet"])
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
        raise ValueError(f"letters are numbered 0 to {count - 1}")
    return numbers


def load(text: str, spec: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the numbers of a text's letters, (1, T).

    Raises:
        Refusal: the text is empty, or has a letter that the model has never seen.

    """
    alphabet = str(spec["alphabet"])
    if not text:
        raise Refusal("the text is empty", 2)
    if unknown := sorted(set(text) - set(alphabet)):
        shown = ", ".join(repr(letter) for letter in unknown[:5])
        raise Refusal(f"the model has never seen {shown}; it knows {alphabet!r}", 2)
    places = {letter: at for at, letter in enumerate(alphabet)}
    return np.asarray([[places[letter] for letter in text]], np.int64)


def one_hot(letters: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """Return letters (n,) as rows (n, 1, size) of one 1 among zeros: what one step of a model takes."""
    rows = np.zeros((len(letters), 1, size), np.float32)
    rows[np.arange(len(letters)), 0, letters] = 1
    return rows
