"""The verb about shipped bundles hands over what it was given, and ends with the right code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from edgekd.cli import fleet as verbs
from edgekd.cli.ending import ending
from edgekd.pipeline import fleet
from edgekd.values.fleet import (
    BundleVerdict,
    Change,
    HeldLimit,
    Requalified,
    Standing,
)
from edgekd.values.model import Precision

LIMIT = HeldLimit(
    percentile="p99", limit_ms=2.0, measured_ms=2.5, low_ms=2.4, high_ms=None, standing=Standing.BREAKS
)

Answer = tuple[int, str, str]


def verdict(standing: Standing, name: str = "one") -> BundleVerdict:
    return BundleVerdict(
        bundle=Path(f"shipped/[{name}]"),
        standing=standing,
        reasons=("p99 is [2.5] ms",),
        name=name,
        runtime="openvino",
        precision=Precision.INT8,
        threads=1,
        limits=(LIMIT, replace(LIMIT, percentile="p50")) if standing is Standing.BREAKS else (),
        changes=(Change(what="openvino", then="2026.1", now="2027.1"),),
        same_hardware=True,
    )


def requalified(*standings: Standing) -> Requalified:
    return Requalified(
        device="local", bundles=tuple(verdict(one, one.value.lower()) for one in standings), seconds=12.0
    )


@pytest.fixture
def edgekd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """Run the verbs as the console script would; return exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)  # or the only command would be the program itself
    app.command("requalify")(verbs.requalify)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["edgekd", *arguments])
        with pytest.raises(SystemExit) as end, ending():
            app(prog_name="edgekd")
        streams = capsys.readouterr()
        return int(end.value.code or 0), streams.out, streams.err

    return run


def answering(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def answer(*given: object, **named: object) -> object:
        asked.update(named, given=given)
        return value

    monkeypatch.setattr(fleet, name, answer)
    return asked


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("requalify",), "BUNDLE"),
        (("requalify", "nowhere"), "nowhere"),
        (("requalify", "x", "--inconclusive", "maybe"), "warn"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_mend(edgekd: Any, arguments: tuple[str, ...], word: str):
    code, out, err = edgekd(*arguments)
    assert (code, out) == (2, "")
    assert word in err


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ((Standing.MEETS,), 0),
        ((Standing.MEETS, Standing.BREAKS), 1),
        ((Standing.BREAKS, Standing.UNAVAILABLE), 1),
        ((Standing.UNAVAILABLE, Standing.INCOMPARABLE, Standing.INCONCLUSIVE), 4),
        ((Standing.INCOMPARABLE, Standing.INCONCLUSIVE), 5),
        ((Standing.BREAKS, Standing.REFUSED, Standing.MEETS), 6),
    ],
)
def test_requalify_ends_with_the_gravest_standing(
    edgekd: Any, monkeypatch: Any, standings: tuple[Standing, ...], expected: int
):
    answering(monkeypatch, "requalify_bundles", requalified(*standings))
    code, out, _ = edgekd("requalify", "a", "b")
    assert code == expected
    for standing in standings:
        assert f"1 {standing.value}" in out
        assert f"[{standing.value.lower()}]" in out  # a path is text, never markup


@pytest.mark.parametrize(
    ("choice", "expected", "told"), [("fail", 3, False), ("warn", 0, True), ("pass", 0, False)]
)
def test_what_is_inconclusive_ends_as_was_asked_for(
    edgekd: Any, monkeypatch: Any, choice: str, expected: int, *, told: bool
):
    answering(monkeypatch, "requalify_bundles", requalified(Standing.MEETS, Standing.INCONCLUSIVE))
    code, _, err = edgekd("requalify", "a", "--inconclusive", choice)
    assert code == expected
    assert ("warning" in err) is told


def test_requalify_warns_of_the_inconclusive_unless_told_otherwise(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, "requalify_bundles", requalified(Standing.INCONCLUSIVE))
    code, _, err = edgekd("requalify", "a")
    assert (code, "inconclusive" in err) == (0, True)


def test_requalify_hands_over_its_options_and_says_why(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, "requalify_bundles", requalified(Standing.BREAKS))
    code, out, _ = edgekd("requalify", "a", "b", "--same-hardware", "--out", "there")
    bundles, _ = asked["given"]
    assert (code, bundles) == (1, [Path("a"), Path("b")])
    assert (asked["out"], asked["same_hardware"]) == (Path("there"), True)
    for part in (
        "p99 2.000 ms",
        "p50 2.000 ms",
        "2.400",
        "unbounded",
        "p99 is [2.5] ms",
        "openvino 2026.1 -> 2027.1",
    ):
        assert part in out


def test_requalify_as_json_has_the_standing_at_the_top(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, "requalify_bundles", requalified(Standing.MEETS, Standing.BREAKS))
    code, out, _ = edgekd("requalify", "a", "--json")
    data = json.loads(out)
    assert (code, data["standing"], data["schema_version"]) == (1, "BREAKS", 1)
    assert [one["standing"] for one in data["bundles"]] == ["MEETS", "BREAKS"]
    assert data["bundles"][1]["limits"][0]["high_ms"] is None
