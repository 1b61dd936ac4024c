"""Machines and bundles in order, on the rehearsal backend, whose clock is its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.devices import registry
from edgekd.errors import BackendMissing, DeviceError, IntegrityError, UsageError
from edgekd.pipeline import fleet
from edgekd.stages import requalify as stage
from edgekd.stages.bundle import bundle
from edgekd.stages.calibrate_device import calibrating
from edgekd.store.measurements import GateLog
from edgekd.values.artifact import Artifact
from edgekd.values.board import Board, Survey
from edgekd.values.budget import Limits
from edgekd.values.codec import decode
from edgekd.values.fleet import CalibrationReport, Requalified, Standing
from edgekd.values.gate import Calibration, Clock, GateRules
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Model, Precision
from edgekd.values.order import ProbeReply, RuntimeHealth
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

TODAY = "2026-02-03T04:05:06+00:00"
LATER = "2026-02-20T04:05:06+00:00"
PROFILE = Profile(name="rehearsal", description="", runtimes={"rehearsal": (Precision.FP32,)})
TARGET = Target(profile=PROFILE, device="local", runtimes=("rehearsal",), threads=1)
NOWHERE = replace(TARGET, device="far-away")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No processes, and a reference that a reference evaluator runs at once."""
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    small = Model(file=Artifact.of(models.conv_net(tmp_path / "reference.onnx")))
    monkeypatch.setattr("edgekd.stages.calibrate_device.reference", lambda _: small)
    monkeypatch.setattr(
        "edgekd.stages.calibrate_device.pair_protocol",
        lambda *_: Protocol(launches=1, blocks=2, samples=4, warmup_ms=0.1),
    )
    monkeypatch.setattr(stage, "ACCEPTANCE", Protocol(launches=3, blocks=2, samples=80, warmup_ms=0.1))


@pytest.fixture
def shipped(made: Any, tmp_path: Path) -> Callable[..., Path]:
    """Make bundles of the rehearsal runtime, with a limit of their own."""
    content = made.content
    source = next(one for one in content.shipped if one.engine.runtime == "onnxruntime")
    rehearsed = replace(source, engine=replace(source.engine, runtime="rehearsal"))

    def ship(name: str, p99_ms: float) -> Path:
        limits = Limits(latency_ms={"p99": p99_ms}, confidence=0.95)
        made_of = replace(content, shipped=(rehearsed,), limits=limits, name=name)
        return bundle(tmp_path / name, made_of).folder

    return ship


def calibrate(history: Path, target: Target = TARGET, pairs: int = 12, **given: Any) -> CalibrationReport:
    return fleet.calibrate_devices(
        target, pairs=pairs, rules=GateRules(), history=history, today=given.pop("today", TODAY), **given
    )


def test_a_calibration_is_kept_and_listed(tmp_path: Path):
    history = tmp_path / "state" / "history.sqlite"
    found = calibrate(history)
    (one,) = found.calibrated
    assert (found.device, found.threads, one.calibration.pairs) == ("local", 1, 12)
    assert {each.clock for each in one.resolutions} == {Clock.WALL, Clock.CPU}
    assert GateLog(history).calibrations() == (one.calibration,)
    listed = fleet.list_devices(TARGET, history=history, today=TODAY)
    assert [known.calibration for known in listed.calibrations] == [one.calibration]
    assert [known.outdated for known in listed.calibrations] == [""]
    assert listed.devices[0].fingerprint == one.calibration.fingerprint


def test_cpu_time_answers_nothing_about_several_threads(tmp_path: Path):
    found = calibrate(tmp_path / "history.sqlite", replace(TARGET, threads=2))
    assert {each.clock for each in found.calibrated[0].resolutions} == {Clock.WALL}


def test_listing_makes_no_history(tmp_path: Path):
    history = tmp_path / "none" / "history.sqlite"
    assert fleet.list_devices(TARGET, history=history, today=TODAY).calibrations == ()
    assert not history.parent.exists()


def test_a_calibration_that_no_longer_holds_says_why(tmp_path: Path):
    history = tmp_path / "history.sqlite"
    (one,) = calibrate(history).calibrated
    GateLog(history).calibrate(replace(one.calibration, fingerprint="of another kernel"))
    kept = fleet.list_devices(TARGET, history=history, today=LATER).calibrations
    assert sorted(known.outdated for known in kept) == [
        "17 days old",
        "of another machine, or of other software on it",
    ]


def test_a_boards_calibration_is_held_against_what_the_board_was_when_it_was_last_looked_at(tmp_path: Path):
    history, config = tmp_path / "history.sqlite", tmp_path / "config"
    (one,) = calibrate(history).calibrated
    GateLog(history).calibrate(replace(one.calibration, device="pi", fingerprint="then"))
    for conditions, expected in (
        ("", ""),
        ("then", ""),
        ("now", "of another machine, or of other software on it"),
    ):
        registry.remember(config, Board(name="pi", destination="pi", conditions=conditions))
        found = fleet.list_devices(TARGET, history=history, today=TODAY, config=config)
        (of_board,) = [known for known in found.calibrations if known.calibration.device == "pi"]
        assert of_board.outdated == expected
        assert [(known.board.name, known.survey) for known in found.boards] == [("pi", None)]


def test_boards_that_are_asked_answer_or_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def survey(board: Board) -> Survey:
        if board.name == "far":
            raise DeviceError("far cannot be reached", cause="no route")
        return Survey(
            boot_id="b",
            python="3.11",
            machine="x",
            numpy="2",
            free_mib=1,
            worker="",
            used_mib=0.0,
            lease=None,
        )

    monkeypatch.setattr("edgekd.devices.ssh.survey", survey)
    for name in ("far", "pi"):
        registry.remember(tmp_path, Board(name=name, destination="x"))
    found = fleet.list_devices(TARGET, history=tmp_path / "none", today=TODAY, config=tmp_path, reach=True)
    assert [known.problem for known in found.boards] == ["far cannot be reached: no route", ""]
    assert found.boards[1].survey is not None


def interrupted(after: int) -> Callable[..., Iterator[Calibration]]:
    """Calibrate, and be interrupted once so many pairs are known."""

    def generate(*given: Any, **named: Any) -> Iterator[Calibration]:
        for found in calibrating(*given, **named):
            if found.pairs > after:
                raise KeyboardInterrupt
            yield found

    return generate


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = tmp_path / "history.sqlite"
    monkeypatch.setattr(fleet, "calibrating", interrupted(after=20))
    with pytest.raises(KeyboardInterrupt):
        calibrate(history, pairs=30)
    assert [one.pairs for one in GateLog(history).calibrations()] == [20]


def test_an_interrupted_calibration_displaces_no_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    history = tmp_path / "history.sqlite"
    calibrate(history, pairs=14)
    with monkeypatch.context() as patch:
        patch.setattr(fleet, "calibrating", interrupted(after=10))
        with pytest.raises(KeyboardInterrupt):
            calibrate(history, pairs=30, today=LATER)
    assert [(one.pairs, one.date) for one in GateLog(history).calibrations()] == [(14, TODAY)]
    calibrate(history, pairs=12, today=LATER)
    assert [(one.pairs, one.date) for one in GateLog(history).calibrations()] == [(12, LATER)]


def probed(monkeypatch: pytest.MonkeyPatch, *broken: str) -> Target:
    """Let a device have two runtimes, some of them broken."""
    from edgekd.devices.local import LocalDevice

    real = LocalDevice.probe

    def probe(self: LocalDevice) -> ProbeReply:
        health = tuple(
            RuntimeHealth(
                name=name, version="", works=False, problem="no such module", mend=f"install {name}"
            )
            for name in broken
        )
        return replace(real(self), runtimes=(*real(self).runtimes, *health))

    monkeypatch.setattr(LocalDevice, "probe", probe)
    return TARGET


def test_a_runtime_that_is_missing_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = calibrate(tmp_path / "history.sqlite", probed(monkeypatch, "openvino"))
    assert [one.calibration.runtime for one in found.calibrated] == ["rehearsal"]
    assert found.problems == ("openvino was left out: no such module",)


def test_a_missing_runtime_that_was_asked_for_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = probed(monkeypatch, "openvino")
    with pytest.raises(BackendMissing, match="openvino cannot be calibrated") as caught:
        calibrate(tmp_path / "history.sqlite", target, chosen=True)
    assert caught.value.mend == "install openvino"


def test_a_history_that_cannot_be_used_shows_before_the_minutes_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "history.sqlite").write_text(
        "this is no database, and it is longer than a header of one" * 40
    )
    monkeypatch.setattr(fleet, "connect", lambda _: pytest.fail("the device was reached"))
    with pytest.raises(IntegrityError):
        calibrate(tmp_path / "history.sqlite")


def test_bundles_that_meet_and_break_their_limits_are_told_apart(shipped: Any, tmp_path: Path):
    meets, breaks = shipped("meets", 10.0), shipped("breaks", 0.001)
    found = fleet.requalify_bundles((meets, breaks), TARGET, out=tmp_path / "out")
    assert [one.standing for one in found.bundles] == [Standing.MEETS, Standing.BREAKS]
    assert [one.runtime for one in found.bundles] == ["rehearsal", "rehearsal"]
    kept = json.loads((tmp_path / "out" / "requalified.json").read_text())
    assert kept["schema_version"] == 1
    assert decode(Requalified, kept) == found
    raw = json.loads((tmp_path / "out" / "latencies" / "1-breaks.json").read_text())
    assert len(decode(Latency, raw).samples_ms) == 480


def test_without_a_folder_nothing_is_written(shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = shipped("one", 10.0)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    fleet.requalify_bundles((folder,), TARGET, out=None)
    assert list(here.iterdir()) == []


def test_a_bundle_that_is_given_twice_is_judged_once(shipped: Any, tmp_path: Path):
    folder = shipped("one", 10.0)
    found = fleet.requalify_bundles((folder, folder / "..", folder)[::2], TARGET, out=None)
    assert len(found.bundles) == 1


@pytest.mark.parametrize("bundles", [(), ("missing",), ("a_file",)])
def test_what_is_no_folder_is_refused_before_anything_is_measured(
    bundles: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(fleet, "connect", lambda _: pytest.fail("the device was reached"))
    with pytest.raises(UsageError) as caught:
        fleet.requalify_bundles([tmp_path / name for name in bundles], TARGET, out=None)
    assert caught.value.mend


def test_a_device_that_cannot_be_reached_is_named(shipped: Any, tmp_path: Path):
    with pytest.raises(DeviceError, match="far-away"):
        fleet.requalify_bundles((shipped("one", 10.0),), NOWHERE, out=None)
    with pytest.raises(DeviceError, match="far-away"):
        calibrate(tmp_path / "history.sqlite", NOWHERE)
