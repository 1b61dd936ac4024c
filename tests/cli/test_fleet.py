"""Each verb about machines and shipped bundles hands over what it was given, and ends with the right code."""

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
from edgekd.errors import UsageError
from edgekd.pipeline import fleet
from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.fleet import (
    BundleVerdict,
    Calibrated,
    CalibrationReport,
    Change,
    Fleet,
    HeldLimit,
    KnownCalibration,
    KnownDevice,
    Requalified,
    Resolution,
    Standing,
)
from edgekd.values.gate import Calibration, Clock
from edgekd.values.model import Precision

CALIBRATION = Calibration(
    fingerprint="ab" * 32,
    device="local",
    runtime="openvino",
    reference="compute",
    decade=0,
    noise=0.0123,
    cpu_noise=0.0045,
    p50_ms=1.5,
    pair_seconds=2.5,
    pairs=40,
    date="2026-02-03T04:05:06+00:00",
)
EASY = Resolution(effect=0.05, margin=0.03, clock=Clock.WALL, pairs=14, minutes=0.8, within_reach=True)
HARD = Resolution(
    effect=0.01,
    margin=0.005,
    clock=Clock.CPU,
    pairs=1254,
    minutes=62.0,
    within_reach=False,
    honest_margin=0.02,
)
HOPELESS = replace(HARD, honest_margin=None)
REPORT = CalibrationReport(
    device="local",
    threads=1,
    history=Path("history.sqlite"),
    calibrated=(Calibrated(calibration=CALIBRATION, resolutions=(EASY, HARD, HOPELESS)),),
    problems=("onnxruntime was left out: [no] module",),
)
CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="a [fast] one", cores=2, memory_mib=8192, features=()),
    software=Software(
        system="Linux", kernel="6", python="3.11", runtimes={"openvino": "2026.1-x"}, governor="unknown"
    ),
    load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
)
FLEET = Fleet(
    devices=(KnownDevice(name="local", fingerprint="ab" * 32, conditions=CONDITIONS),),
    calibrations=(KnownCalibration(calibration=CALIBRATION, outdated="17 days old"),),
    history=Path("history.sqlite"),
)
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
    app.add_typer(verbs.devices, name="devices")
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


def test_devices_lists_what_can_be_reached_and_what_was_calibrated(
    edgekd: Any, monkeypatch: Any, tmp_path: Path
):
    asked = answering(monkeypatch, "list_devices", FLEET)
    code, out, _ = edgekd("devices")
    assert code == 0
    assert asked["history"] == tmp_path / "state" / "edgekd" / "history.sqlite"
    for part in (
        "a [fast] one",
        "openvino 2026.1",
        "abababababab",
        "1.23%",
        "0.45%",
        "2026-02-03",
        "17 days old",
    ):
        assert part in out
    data = json.loads(edgekd("devices", "--json", "--history", "other.sqlite")[1])
    assert asked["history"] == Path("other.sqlite")
    assert data["schema_version"] == 1
    assert data["calibrations"][0]["calibration"]["noise"] == 0.0123


def test_a_device_that_was_never_calibrated_is_told_how(edgekd: Any, monkeypatch: Any):
    answering(monkeypatch, "list_devices", replace(FLEET, calibrations=()))
    assert "edgekd devices calibrate" in edgekd("devices")[1]


def test_calibrate_hands_over_its_options_and_says_what_can_be_resolved(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, "calibrate_devices", REPORT)
    code, out, _ = edgekd(
        "devices", "calibrate", "--runtime", "openvino", "--threads", "2", "--pairs", "60", "--history", "h.sqlite"
    )  # fmt: skip
    assert code == 0
    (target,) = asked["given"]
    assert (target.runtimes, target.threads) == (("openvino",), 2)
    assert (asked["pairs"], asked["history"], asked["chosen"]) == (60, Path("h.sqlite"), True)
    for part in (
        "+5 %",
        "3 %",
        "1,254",
        "an honest margin is 2 %, which shows +4 %",
        "quieter machine",
        "[no] module",
    ):
        assert part in out


def test_calibrate_as_json_is_one_object(edgekd: Any, monkeypatch: Any):
    asked = answering(monkeypatch, "calibrate_devices", REPORT)
    data = json.loads(edgekd("devices", "calibrate", "--json")[1])
    assert asked["chosen"] is False
    assert data["schema_version"] == 1
    (one,) = data["calibrated"]
    assert one["calibration"]["runtime"] == "openvino"
    assert [each["honest_margin"] for each in one["resolutions"]] == [None, 0.02, None]
    assert [each["within_reach"] for each in one["resolutions"]] == [True, False, False]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("devices", "calibrate", "--pairs", "9"), "10"),
        (("devices", "calibrate", "--runtime", "openvion"), "did you mean 'openvino'?"),
        (("devices", "--json", "calibrate"), "stand after it"),
        (("devices", "--profile", "x86-cup"), "did you mean 'x86-cpu'?"),
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


@pytest.mark.parametrize("given", ["", "relative/path"])
def test_the_history_is_in_the_home_folder_unless_the_environment_has_an_absolute_one(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", given)
    assert verbs.state_file() == tmp_path / ".local" / "state" / "edgekd" / "history.sqlite"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert verbs.state_file() == tmp_path / ".local" / "state" / "edgekd" / "history.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert verbs.state_file() == tmp_path / "state" / "edgekd" / "history.sqlite"


def test_nobodys_home_is_an_error_that_says_what_to_give(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    with pytest.raises(UsageError) as caught:
        verbs.state_file()
    assert "--history" in caught.value.mend
