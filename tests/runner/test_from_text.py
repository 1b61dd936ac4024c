from __future__ import annotations

import numpy as np
import pytest

from edgekd.runner.files import Refusal
from edgekd.runner.from_text import load, one_hot, prepare
from edgekd.values.preprocess import Text

SPEC = Text(alphabet="ab\n")


def test_letters_are_their_places_in_the_alphabet():
    np.testing.assert_array_equal(prepare(load("ab\nb", vars(SPEC)), SPEC), [[0, 1, 2, 1]])


@pytest.mark.parametrize("text", ["", "abc", "A"])
def test_a_text_the_model_cannot_have_seen_is_refused(text: str):
    with pytest.raises(Refusal, match="empty" if not text else "never seen '[cA]'"):
        load(text, vars(SPEC))


@pytest.mark.parametrize("number", [-1, 3])
def test_a_number_of_no_letter_is_refused(number: int):
    with pytest.raises(ValueError, match="0 to 2"):
        prepare(np.asarray([[0, number]]), SPEC)


def test_a_step_takes_a_row_of_one_letter():
    rows = one_hot(np.asarray([2, 0]), 3)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[[0, 0, 1]], [[1, 0, 0]]])
