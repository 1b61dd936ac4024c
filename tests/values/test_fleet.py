from __future__ import annotations

from itertools import combinations
from pathlib import Path

from edgekd.values.fleet import GRAVEST_FIRST, BundleVerdict, Requalified, Standing


def test_every_standing_has_a_rank():
    assert sorted(one.value for one in GRAVEST_FIRST) == sorted(one.value for one in Standing)


def test_a_call_stands_as_its_gravest_bundle_does():
    for graver, milder in combinations(GRAVEST_FIRST, 2):
        verdicts = tuple(
            BundleVerdict(bundle=Path("b"), standing=one, reasons=()) for one in (milder, graver, milder)
        )
        assert Requalified(device="local", bundles=verdicts, seconds=1.0).standing is graver
