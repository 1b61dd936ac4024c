from __future__ import annotations

import inspect
import re

import pytest

from edgekd import errors
from edgekd.errors import EdgekdError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgekdError)]
TABLE = {0, 1, 2, 3, 4, 5, 6, 7, 70, 130, 143}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_is_the_tree(kind: type[EdgekdError]) -> None:
    row = re.search(rf"{kind.__name__} +(\d+) ", errors.__doc__ or "")
    assert row, f"{kind.__name__} is not drawn"
    assert int(row.group(1)) == kind.exit_code
    assert kind.exit_code in TABLE


def test_the_docstring_draws_nothing_that_is_not_there() -> None:
    drawn = re.findall(r"([A-Z]\w+) +\d+ ", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)


def test_an_error_says_what_why_and_what_mends_it() -> None:
    error = EdgekdError("it broke", cause="it was old", mend="buy a new one")
    assert str(error) == "it broke: it was old\n  to mend it: buy a new one"
    assert str(EdgekdError("it broke")) == "it broke"
