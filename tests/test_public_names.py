"""What `import edgekd` offers."""

from __future__ import annotations

import pytest

import edgekd


@pytest.mark.parametrize("name", edgekd.__all__)
def test_every_public_noun_is_the_one_its_module_defines(name: str) -> None:
    found = getattr(edgekd, name)
    assert found.__name__ == name
    assert found.__module__.startswith("edgekd.values.")


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bugdet'"):
        edgekd.Bugdet  # noqa: B018 - the look-up is the test
