"""A board that is tuned while a session has it: a real sshd, and a Jetson's programs in a folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices import link, ssh
from edgekd.devices.board.place import Place
from edgekd.devices.link import Patience
from edgekd.devices.local import LocalDevice
from edgekd.devices.restoring import Pending, mend, write_down
from edgekd.devices.ssh import SshDevice
from edgekd.devices.tuned_here import state_folder
from edgekd.errors import ConfigError, DeviceError, UsageError
from edgekd.values.board import Board
from edgekd.values.latency import Protocol
from edgekd.values.target import Target
from tests.contracts import models
from tests.contracts.device import SHORT, target
from tests.devices.jetson import BEFORE, TEGRASTATS, Jetson, watchdogs
from tests.devices.sshd import Sshd, needs_sshd
from tests.devices.test_ssh import Cutter, starts

pytestmark = needs_sshd

TUNED = {"mode": "1", "clocks": "held", "rebooted": "no"}
LONG = Protocol(launches=4, blocks=4, samples=400, warmup_ms=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def jetson(tmp_path: Path) -> Jetson:
    return Jetson(tmp_path / "jetson")


@pytest.fixture
def board(server: Sshd, tmp_path: Path, jetson: Jetson) -> Board:
    return server.board(folder=tmp_path / "on-board", python=jetson.python())


@pytest.fixture
def here(jetson: Jetson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this machine the Jetson; return where it keeps what is pending."""
    monkeypatch.setenv("PATH", f"{jetson.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = state_folder()
    assert found is not None
    return found


def tuned(tune: str) -> Target:
    return replace(target("rehearsal"), tune=tune)


def engine(path: Path):
    return models.engine(models.conv_net(path / "m.onnx"))


def until(met: Callable[[], bool], seconds: float = 30.0) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not met():
        time.sleep(0.02)
    return met()


def vanish(device: SshDevice) -> None:
    """Let the host be gone without a word, as when its power fails."""
    session = device._session
    session._closed.set()
    assert session._link is not None
    session._link.abandon()


def test_a_board_is_tuned_while_a_session_lasts_and_its_conditions_say_so(
    board: Board, jetson: Jetson, tmp_path: Path
):
    with SshDevice(board, tuned("")) as device:
        (plain,) = device.time([engine(tmp_path)], SHORT)
        assert jetson.changing() == []
    with SshDevice(board, tuned("1")) as device:
        assert jetson.now() == TUNED
        told = device.probe().conditions
        (found,) = device.time([engine(tmp_path)], SHORT)
    assert jetson.now() == BEFORE
    assert until(lambda: not watchdogs(Path(board.folder)))
    assert "power mode mode0" in plain.conditions.software.power
    assert "power mode mode1" in found.conditions.software.power
    assert told.fingerprint == found.conditions.fingerprint != plain.conditions.fingerprint
    assert ssh.survey(board).lease is None


def test_clocks_alone_can_be_held(board: Board, jetson: Jetson):
    with SshDevice(board, tuned("clocks")):
        assert jetson.now() == {**BEFORE, "clocks": "held"}
    assert jetson.now() == BEFORE


def test_a_board_with_nothing_to_tune_is_left_at_once_and_free(server: Sshd, tmp_path: Path):
    board = server.board(folder=tmp_path / "on-board")
    with (
        pytest.raises(DeviceError, match="no power mode to set") as caught,
        SshDevice(board, tuned("clocks")),
    ):
        pytest.fail("it was taken")
    assert caught.value.exit_code == 4
    assert starts(board) == []
    assert ssh.survey(board).lease is None


def test_a_mode_that_needs_a_reboot_leaves_the_board_as_it_was(board: Board, jetson: Jetson):
    with pytest.raises(DeviceError, match="rebooted"), SshDevice(board, tuned("3")):
        pytest.fail("it was taken")
    assert jetson.now() == BEFORE


def test_a_mode_that_is_none_is_refused(board: Board, jetson: Jetson):
    with pytest.raises(ConfigError, match="no power mode 'fast'"), SshDevice(board, tuned("fast")):
        pytest.fail("it was taken")
    assert jetson.changing() == []


def test_the_watchdog_puts_a_board_back_whose_host_has_vanished(
    board: Board, jetson: Jetson, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link, "PATIENCE", Patience(tuned_s=2.0, beat_s=0.2))
    device = SshDevice(board, tuned("1"))
    device.__enter__()
    assert jetson.now() == TUNED
    vanish(device)
    assert len(watchdogs(Path(board.folder))) == 1
    assert until(lambda: jetson.now() == BEFORE)
    assert until(lambda: not watchdogs(Path(board.folder)))


def test_who_connects_next_puts_back_what_a_vanished_host_has_left(board: Board, jetson: Jetson):
    device = SshDevice(board, tuned("1"))
    device.__enter__()
    vanish(device)
    Place(board.folder).path("lease.json").unlink()  # as if it had expired
    with SshDevice(board, tuned("")):
        assert jetson.now() == BEFORE
    assert until(lambda: not watchdogs(Path(board.folder)))


def test_a_session_that_is_cut_and_resumed_stays_tuned_throughout(
    server: Sshd, board: Board, jetson: Jetson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link, "PATIENCE", Patience(silence_s=3.0, pause_s=0.05, beat_s=0.5))

    def cut() -> None:
        for pid in server.sessions():
            os.kill(pid, signal.SIGKILL)

    with SshDevice(board, tuned("1")) as device:
        connections = server.log.read_text().count("Accepted publickey")
        cutter = Cutter(board, cut)
        (found,) = device.time([engine(tmp_path)], LONG)
        cutter.join()
    assert server.log.read_text().count("Accepted publickey") > connections
    assert "power mode mode1" in found.conditions.software.power
    assert [line for line in jetson.changing() if line.startswith("nvpmodel -m")] == [
        "nvpmodel -m 1",
        "nvpmodel -m 0",
    ]
    assert jetson.now() == BEFORE


@pytest.mark.usefixtures("here")  # `mend` is called in this process
def test_an_order_during_which_the_board_was_put_back_is_worth_nothing(
    board: Board, jetson: Jetson, tmp_path: Path
):
    with SshDevice(board, tuned("1")) as device:
        cutter = Cutter(board, lambda: mend(Place(board.folder).root))
        with pytest.raises(DeviceError, match="put back before the end"):
            device.time([engine(tmp_path)], LONG)
        cutter.join()
        (found,) = device.time([engine(tmp_path)], SHORT)  # tuned again before it begins
        assert jetson.now() == TUNED
    assert "power mode mode1" in found.conditions.software.power
    assert jetson.now() == BEFORE


def test_a_folder_that_says_what_to_put_back_is_not_cleaned(board: Board, jetson: Jetson):
    with SshDevice(board, tuned("")):
        pass
    write_down(Pending(mode=0, clocks=False), Path(board.folder))
    with pytest.raises(DeviceError, match="has not been put back"):
        ssh.clean(board)
    with SshDevice(board, tuned("")):
        pass
    assert ssh.clean(board) > 0


def test_energy_is_measured_by_a_board_that_has_a_meter(board: Board, jetson: Jetson, tmp_path: Path):
    jetson.install("tegrastats", TEGRASTATS)
    with SshDevice(board, target("rehearsal")) as device:
        found = device.energy(engine(tmp_path), seconds=3.0)
    assert found is not None
    assert found.source == "VDD_IN (tegrastats)"
    assert found.busy_mw == found.idle_mw == pytest.approx(5000)
    assert found.inferences > 10


def test_this_machine_is_tuned_while_a_device_of_it_is_entered(here: Path, jetson: Jetson, tmp_path: Path):
    device = LocalDevice(tuned("1"))
    with pytest.raises(UsageError, match="not tuned yet"):
        device.build(engine(tmp_path))
    with device:
        assert jetson.now() == TUNED
        (found,) = device.time([engine(tmp_path)], SHORT)
        with pytest.raises(DeviceError, match="another session"), LocalDevice(tuned("clocks")):
            pytest.fail("it was entered")
        with LocalDevice(tuned("")):
            assert jetson.now() == TUNED  # it lives: there is nothing to mend
    assert "power mode mode1" in found.conditions.software.power
    assert jetson.now() == BEFORE
    assert until(lambda: not watchdogs(here))


def test_what_a_power_cut_left_here_is_put_back_by_whoever_comes_next(here: Path, jetson: Jetson):
    here.mkdir(parents=True)
    write_down(Pending(mode=0, clocks=False), here)
    (jetson.state / "mode").write_text("1\n")
    with LocalDevice(tuned("")):
        assert jetson.now() == BEFORE


def test_a_user_without_a_home_measures_and_does_not_tune(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with LocalDevice(tuned("")):
        pass
    with pytest.raises(DeviceError, match="not tuned"), LocalDevice(tuned("1")):
        pytest.fail("it was entered")


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")
