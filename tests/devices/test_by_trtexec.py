"""The runtime `trtexec` of a device, on the script that the backend's own tests use: no GPU, and no figure of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.backends import trtexec
from edgekd.devices import Device, by_trtexec
from edgekd.devices.cassette import CassetteDevice, record
from edgekd.devices.local import LocalDevice
from edgekd.devices.ssh import SshDevice
from edgekd.errors import BuildError, IntegrityError, ModelError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import TrustVerdict
from edgekd.values.model import Engine
from tests.backends.test_trtexec import calls, install
from tests.contracts import models
from tests.contracts.device import SHORT, target
from tests.devices.jetson import Jetson
from tests.devices.sshd import Sshd, needs_sshd
from tests.pipeline.rehearsed import WorkerHere

TARGET = target("trtexec")
OLD = 100300


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def device(tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDevice:
    place = install(tmp_path / "bin", OLD, journal)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    return LocalDevice(TARGET)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return models.engine(models.conv_net(tmp_path / "m.onnx", batch="n"), "trtexec")


def test_it_is_found_where_only_it_is_there(device: LocalDevice, journal: Path):
    (found,) = device.probe().runtimes
    assert (found.name, found.version, found.works, found.problem) == ("trtexec", "10.3.0", True, "")
    assert any("--skipInference" in call for call in calls(journal))  # it built something, and ran it
    assert any("--exportTimes" in "".join(call) for call in calls(journal))


def test_its_absence_is_a_finding_with_a_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "PLACES", (tmp_path / "nowhere",))
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    (found,) = LocalDevice(TARGET).probe().runtimes
    assert not found.works
    assert "no trtexec" in found.problem
    assert "libnvinfer-bin" in found.mend


def test_one_that_builds_nothing_does_not_work(device: LocalDevice, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_TRTEXEC", "refuse")
    (found,) = device.probe().runtimes
    assert (found.version, found.works) == ("10.3.0", False)
    assert "node number 3" in found.problem


def test_a_build_says_what_the_model_takes(device: LocalDevice, engine: Engine):
    found = device.build(engine)
    assert [one.shape for one in found.signature.inputs] == [(1, 3, 8, 8)]
    assert found.open_ms > 0


def test_every_sample_of_every_launch_is_kept_in_turns(device: LocalDevice, engine: Engine, journal: Path):
    (found,) = device.time([engine], SHORT)
    assert len(found.samples_ms) == SHORT.launches * SHORT.blocks * SHORT.samples
    assert found.block_sizes == (4, 4, 4, 4)
    assert len(found.launches) == 2
    assert found.samples_ms[0] == pytest.approx(0.30)
    assert found.preempted == ()
    assert found.percentile(50) == pytest.approx(0.30, abs=0.001)
    launches = [call for call in calls(journal) if any(part.startswith("--loadEngine") for part in call)]
    assert len(launches) == 2


def test_a_number_names_the_version_and_the_flags_that_it_was_taken_with(
    device: LocalDevice, engine: Engine, tmp_path: Path, journal: Path
):
    (old,) = device.time([engine], SHORT)
    install(tmp_path / "bin", 110100, journal)
    (new,) = device.time([engine], SHORT)
    assert old.conditions.software.runtimes["trtexec"].startswith("10.3.0 --exposeDMA --useSpinWait ")
    assert old.conditions.fingerprint != new.conditions.fingerprint


def test_a_number_by_another_protocol_than_ours_is_noisy_at_best(device: LocalDevice, engine: Engine):
    (found,) = device.time([engine], SHORT)
    assert found.trust.verdict is TrustVerdict.NOISY
    assert found.trust.reasons[0].startswith("the protocol is trtexec's and not edgekd's")


def test_what_it_took_of_the_processor_is_no_neighbours():
    before = by_trtexec._counters()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    after = by_trtexec._counters()
    assert after.own_s - before.own_s >= 0.3


def test_it_is_timed_beside_engines_of_other_runtimes_each_at_its_place(device: LocalDevice, engine: Engine):
    other = replace(engine, runtime="rehearsal")
    first, second, third = device.time([other, engine, other], SHORT)
    assert "trtexec" in second.conditions.software.runtimes
    assert "trtexec" not in {**first.conditions.software.runtimes, **third.conditions.software.runtimes}
    assert first.launches == third.launches
    assert second.samples_ms[0] == pytest.approx(0.30)


@pytest.mark.parametrize(
    "ask",
    [
        lambda device, engine, folder: device.infer(engine, {}, folder),
        lambda device, engine, folder: device.compile(engine, folder),
        lambda device, engine, folder: device.layers(engine),
        lambda device, engine, folder: device.energy(engine),
        lambda device, engine, folder: device.time([engine], replace(SHORT, period_ms=5.0)),
        lambda device, engine, folder: device.time([engine], replace(SHORT, soak_s=1.0)),
    ],
)
def test_what_it_cannot_show_is_a_usage_error(
    ask: Callable[[Device, Engine, Path], object], device: LocalDevice, engine: Engine, tmp_path: Path
):
    with pytest.raises(UsageError, match="trtexec") as caught:
        ask(device, engine, tmp_path)
    assert "tensorrt" in caught.value.mend


def test_a_hostile_model_never_reaches_it(device: LocalDevice, tmp_path: Path, journal: Path):
    bad = models.engine(models.pool_with_huge_stride(tmp_path / "bad.onnx"), "trtexec")
    with pytest.raises(ModelError, match="hostile"):
        device.build(bad)
    with pytest.raises(ModelError, match="hostile"):
        device.time([bad], SHORT)
    assert not journal.exists()


def test_weights_that_were_changed_never_reach_it(device: LocalDevice, tmp_path: Path, journal: Path):
    engine = models.spread_engine(models.spread_net(tmp_path / "m.onnx"), "trtexec")
    device.build(engine)
    journal.unlink()
    (tmp_path / "more" / "w.bin").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        device.build(engine)
    assert not journal.exists()


def test_a_refusal_is_a_build_error_that_names_the_engine(
    device: LocalDevice, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_TRTEXEC", "refuse")
    with pytest.raises(BuildError, match=r"m\.onnx") as caught:
        device.time([engine], SHORT)
    assert "node number 3" in caught.value.cause


def test_a_recorded_session_with_it_replays(device: LocalDevice, engine: Engine, tmp_path: Path):
    with record(device, tmp_path / "session.cassette") as live:
        found = live.time([engine], SHORT)
    with CassetteDevice(tmp_path / "session.cassette", TARGET) as replayed:
        assert replayed.time([engine], SHORT) == found


@needs_sshd
def test_on_a_board_it_runs_there(engine: Engine, tmp_path: Path, journal: Path):
    jetson = Jetson(tmp_path / "jetson")
    install(jetson.programs, OLD, journal)
    with Sshd(tmp_path) as server:
        board = server.board(python=jetson.python())
        with SshDevice(board, TARGET) as device:
            assert device.probe().runtimes[0].works
            (found,) = device.time([engine], SHORT)
            with pytest.raises(UsageError, match="no labels"):
                device.infer(engine, {"image": Artifact.of(engine.model.file.path)}, tmp_path / "out")
    assert len(found.samples_ms) == 16
    assert any(str(tmp_path / "on-board") in part for call in calls(journal) for part in call)
