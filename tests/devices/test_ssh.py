from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd.devices import Device, link, ssh
from edgekd.devices.board import jobs, lease
from edgekd.devices.board.place import Place
from edgekd.devices.link import Patience
from edgekd.devices.link_words import Lost
from edgekd.devices.local import LocalDevice
from edgekd.devices.ssh import SshDevice
from edgekd.errors import DeviceError, IntegrityError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.board import Board
from edgekd.values.latency import Protocol
from tests.contracts import models
from tests.contracts.device import SHORT, DeviceContract, target
from tests.devices.sshd import Sshd, needs_sshd

pytestmark = needs_sshd

LONG = Protocol(launches=3, blocks=4, samples=400, warmup_ms=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def shared(server: Sshd) -> Board:
    """Give a board that has the worker already."""
    return server.board("shared")


@pytest.fixture
def board(server: Sshd, tmp_path: Path) -> Board:
    """Give a board with a folder of its own, which is not there yet."""
    return server.board(folder=tmp_path / "on-board")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PATIENCE", Patience(silence_s=3.0, pause_s=0.05, beat_s=0.5))


class TestSsh(DeviceContract):
    @pytest.fixture
    def device(self, shared: Board) -> Iterator[Device]:
        with SshDevice(shared, target(self.runtime)) as device:
            yield device


class Cutter(threading.Thread):
    """Does something once an order is on its way."""

    def __init__(self, board: Board, cut: Callable[[], object]) -> None:
        super().__init__()
        self.place, self.cut = Place(board.folder), cut
        self.before = starts(board)
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if len(starts_in(self.place)) > len(self.before):
                self.cut()
                return
            time.sleep(0.005)


def starts(board: Board) -> list[str]:
    return starts_in(Place(board.folder))


def starts_in(place: Place) -> list[str]:
    """Return the ids of the orders that began, one each time that one did."""
    log = place.path("starts.log")
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def engine(path: Path):
    return models.engine(models.conv_net(path / "m.onnx"))


def test_a_survey_needs_only_python_and_writes_nothing(board: Board):
    found = ssh.survey(board)
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.machine == os.uname().machine
    assert (found.worker, found.used_mib, found.lease) == ("", 0.0, None)
    assert not Path(board.folder).exists()


def test_a_board_gives_the_same_figures_as_this_machine(shared: Board, tmp_path: Path):
    one = engine(tmp_path)
    inputs = {"image": Artifact.of(images(tmp_path / "in.npy"))}
    with SshDevice(shared, target("rehearsal")) as device, LocalDevice(target("rehearsal")) as local:
        (there,), (here,) = device.time([one], SHORT), local.time([one], SHORT)
        assert there.samples_ms == here.samples_ms
        assert there.conditions.fingerprint == here.conditions.fingerprint
        far = device.infer(one, inputs, tmp_path / "far")
        near = local.infer(one, inputs, tmp_path / "near")
    # Not bit for bit: numpy's last bit hangs on where the allocator puts an array.
    np.testing.assert_allclose(np.load(far["logits"].verified()), np.load(near["logits"].path), rtol=1e-5)
    assert [file.path.parent for file in far.values()] == [tmp_path / "far"]


def test_nothing_travels_twice(board: Board, tmp_path: Path):
    one = engine(tmp_path)
    with SshDevice(board, target("rehearsal")) as device:
        worker_bytes = device.sent_bytes
        device.build(one)
        assert device.sent_bytes == worker_bytes + one.model.size_bytes
        device.build(one)
        assert device.sent_bytes == worker_bytes + one.model.size_bytes
    with SshDevice(board, target("rehearsal")) as device:
        device.build(one)
        assert device.sent_bytes == 0


def test_each_file_of_weights_travels_once_by_its_own_digest(board: Board, tmp_path: Path):
    spread = models.spread_engine(models.spread_net(tmp_path / "m.onnx"))
    with SshDevice(board, target("rehearsal")) as device:
        worker_bytes = device.sent_bytes
        device.inspect(spread.model.file)
        assert device.sent_bytes == worker_bytes + spread.model.size_bytes
        device.build(spread)
        device.time([spread, spread], SHORT)
        assert device.sent_bytes == worker_bytes + spread.model.size_bytes
        (tmp_path / "w e.data").write_bytes(bytes((tmp_path / "w e.data").stat().st_size))
        changed = models.spread_engine(tmp_path / "m.onnx")
        device.build(changed)
        one = changed.model.external[1].size_bytes
        assert device.sent_bytes == worker_bytes + spread.model.size_bytes + one
    kept = {path.name for path in Place(board.folder).path("files").iterdir()}
    assert {file.sha256 for model in (spread.model, changed.model) for file in model.files} == kept


def test_what_was_altered_on_the_board_is_copied_again(board: Board, tmp_path: Path):
    one = engine(tmp_path)
    with SshDevice(board, target("rehearsal")) as device:
        worker_bytes = device.sent_bytes
        device.build(one)
    place = Place(board.folder)
    place.path("files", one.model.file.sha256).write_bytes(b"rotten")
    (worker,) = place.path("worker").iterdir()
    (worker / "edgekd" / "wire.py").write_text("raise SystemExit\n")
    with SshDevice(board, target("rehearsal")) as device:
        device.build(one)
        assert device.sent_bytes == worker_bytes + one.model.size_bytes


def test_an_openvino_model_lies_there_as_openvino_needs_it(shared: Board, tmp_path: Path):
    (tmp_path / "a b.xml").write_text("<net/>")
    (tmp_path / "a b.bin").write_bytes(bytes(8))
    model = Artifact.of(tmp_path / "a b.xml")
    with SshDevice(shared, target("openvino")) as device, pytest.raises(Exception, match=r"a_b\.xml"):
        device.inspect(model)


def test_another_host_key_is_refused_before_anything_is_said(server: Sshd, board: Board, tmp_path: Path):
    with Sshd(tmp_path / "other") as other:
        line = other.known_line().split()
        known = tmp_path / "known_hosts"
        known.write_text(f"{line[0]} {server.known_line().split(maxsplit=1)[1]}")
        moved = replace(board, port=other.port, known_hosts=known, ssh_config=other.config)
        with pytest.raises(IntegrityError, match="another host key") as caught:
            ssh.survey(moved)
        assert other.fingerprint() in caught.value.what
        assert "edgekd devices remove board" in caught.value.mend
        assert caught.value.exit_code == 6
        assert "Accepted publickey" not in other.log.read_text()
        with pytest.raises(IntegrityError, match="is not known"):
            ssh.survey(replace(moved, known_hosts=None))


def test_who_lets_nobody_in_is_a_device_error_and_no_question(server: Sshd, board: Board, tmp_path: Path):
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace("user_key", "no_key"))
    with pytest.raises(DeviceError, match="lets nobody in") as caught:
        ssh.survey(replace(board, ssh_config=config))
    assert "never asks for a password" in caught.value.cause


def test_a_board_that_is_off_is_a_device_error(board: Board):
    with pytest.raises(DeviceError, match="cannot be reached") as caught:
        ssh.survey(replace(board, port=1))
    assert "refused" in caught.value.cause
    assert caught.value.exit_code == 4


def test_a_board_without_python_says_what_to_do(board: Board):
    with pytest.raises(DeviceError, match="has no python9") as caught:
        ssh.survey(replace(board, python="python9"))
    assert "--python" in caught.value.mend


def test_a_python_that_is_too_old_is_named(board: Board, tmp_path: Path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nprintf 'motd\\n\\nedgekd-old 3.8.10\\n'\n")
    old.chmod(0o755)
    with pytest.raises(DeviceError, match=r"Python 3\.8\.10"):
        ssh.survey(replace(board, python=str(old)))


def test_a_board_without_numpy_says_so(board: Board, tmp_path: Path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {board.python} -S "$@"\n')  # without the site's packages
    bare.chmod(0o755)
    bare_board = replace(board, python=str(bare))
    assert ssh.survey(bare_board).numpy == ""
    with pytest.raises(DeviceError, match="does not start") as caught, SshDevice(bare_board, target("x")):
        pass
    assert "numpy" in caught.value.cause


def test_a_folder_that_cannot_be_written_is_a_device_error(board: Board):
    with (
        pytest.raises(DeviceError, match="cannot write"),
        SshDevice(replace(board, folder="/proc/edgekd"), target("x")),
    ):
        pass


def test_what_a_login_shell_prints_is_skipped(board: Board, tmp_path: Path):
    noisy = tmp_path / "py thon"
    noisy.write_text(f"#!/bin/sh\necho welcome; echo oops >&2; printf 'no end'\nexec {board.python} \"$@\"\n")
    noisy.chmod(0o755)
    assert ssh.survey(replace(board, python=str(noisy))).python


@pytest.mark.parametrize(
    "destination", ["-oProxyCommand=touch x", "user@-oProxyCommand=x", "", "a b", "a\nb", "user@"]
)
def test_a_destination_that_ssh_could_take_for_something_else_is_refused(board: Board, destination: str):
    with pytest.raises(UsageError, match="no destination"):
        ssh.survey(replace(board, destination=destination))


def test_one_measures_at_a_time_and_the_other_is_told_who(shared: Board):
    with SshDevice(shared, target("rehearsal")):
        with pytest.raises(DeviceError, match="has shared") as caught, SshDevice(shared, target("rehearsal")):
            pass
        assert "measuring for test" in caught.value.cause
        assert caught.value.exit_code == 4
        found = ssh.survey(shared).lease
        assert found is not None
        assert 0 < found.expires_s <= lease.SESSION_S
        with pytest.raises(DeviceError, match="has the board"):
            ssh.clean(shared)
    assert ssh.survey(shared).lease is None


def test_one_can_wait_for_the_other(shared: Board):
    first = SshDevice(shared, target("rehearsal"))
    first.__enter__()
    leaving = threading.Timer(0.5, first.__exit__)
    leaving.start()
    with SshDevice(shared, target("rehearsal"), wait_s=30):
        pass
    leaving.join()


def test_a_hold_lets_its_owner_measure_and_ends_when_it_is_released(shared: Board):
    held = ssh.hold(shared, seconds=300, why="looking at it\x1b[2J")
    assert held.expires_s == pytest.approx(300, abs=5)
    assert "\x1b" not in held.why
    with SshDevice(shared, target("rehearsal")):
        pass
    assert ssh.survey(shared).lease is not None
    ssh.release(shared)
    assert ssh.survey(shared).lease is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e9])
def test_a_board_is_held_for_a_while_only(board: Board, seconds: float):
    with pytest.raises(UsageError):
        ssh.hold(board, seconds=seconds, why="")


def test_a_session_that_is_cut_is_resumed_and_runs_once(
    server: Sshd, shared: Board, tmp_path: Path, hasty: None
):
    def cut() -> None:
        for pid in server.sessions():
            os.kill(pid, signal.SIGKILL)

    one = engine(tmp_path)
    before = starts(shared)
    with SshDevice(shared, target("rehearsal")) as device:
        connections = server.log.read_text().count("Accepted publickey")
        cutter = Cutter(shared, cut)
        (found,) = device.time([one], LONG)
        cutter.join()
    assert server.log.read_text().count("Accepted publickey") > connections  # it really was cut
    assert len(found.samples_ms) == 4800
    assert len(starts(shared)) == len(before) + 1


def test_a_connection_that_falls_silent_is_given_up_and_resumed(
    server: Sshd, shared: Board, tmp_path: Path, hasty: None
):
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(server.sessions())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    one = engine(tmp_path)
    before = starts(shared)
    try:
        with SshDevice(shared, target("rehearsal")) as device:
            connections = server.log.read_text().count("Accepted publickey")
            cutter = Cutter(shared, stop)
            (found,) = device.time([one], replace(LONG, launches=8))
            cutter.join()
        assert server.log.read_text().count("Accepted publickey") > connections  # it really fell silent
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert len(found.samples_ms) == 12800
    assert len(starts(shared)) == len(before) + 1


def test_a_board_that_was_restarted_has_lost_the_order(
    server: Sshd, board: Board, tmp_path: Path, hasty: None
):
    def restart() -> None:
        for pid in server.sessions():
            os.kill(pid, signal.SIGKILL)
        Place(board.folder).path("boot-id").write_text("another\n")

    one = engine(tmp_path)
    with SshDevice(board, target("rehearsal")) as device:
        cutter = Cutter(board, restart)
        with pytest.raises(DeviceError, match="was restarted"):
            device.time([one], LONG)
        cutter.join()
        device.build(one)  # the next order is whole again
    assert len(set(starts(board))) == len(starts(board)) == 2


def test_a_board_that_stays_away_is_waited_for_no_longer_than_patience_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(link, "PATIENCE", Patience(resume_s=0.3, pause_s=0.05))
    one = engine(tmp_path)
    with Sshd(tmp_path) as server:
        board = server.board()
        with SshDevice(board, target("rehearsal")) as device:
            cutter = Cutter(board, server.stop)
            with pytest.raises(DeviceError, match="cannot be reached") as caught:
                device.time([one], LONG)
            assert not isinstance(caught.value, Lost)
            cutter.join()


def test_leaving_ends_what_still_runs(board: Board, tmp_path: Path):
    def interrupt() -> None:
        signal.raise_signal(signal.SIGUSR1)

    def handle(*_: object) -> None:
        raise InterruptedError

    old = signal.signal(signal.SIGUSR1, handle)
    one = engine(tmp_path)
    try:
        with SshDevice(board, target("rehearsal")) as device:
            Cutter(board, interrupt)
            with pytest.raises(InterruptedError):
                device.time([one], replace(LONG, launches=100))
    finally:
        signal.signal(signal.SIGUSR1, old)
    (id_,) = starts(board)
    assert jobs._tagged(id_) == []
    assert ssh.survey(board).lease is None
    assert list(Place(board.folder).path("orders").iterdir()) == []


def test_everything_is_removed_and_only_what_is_ours(board: Board, tmp_path: Path):
    assert ssh.clean(board) == 0
    with SshDevice(board, target("rehearsal")) as device:
        device.build(engine(tmp_path))
    assert ssh.clean(board) > 0.1
    assert not Path(board.folder).exists()
    Path(board.folder).mkdir()
    (Path(board.folder) / "thesis.tex").write_text("years")
    with pytest.raises(IntegrityError, match="mark"):
        ssh.clean(board)
    with pytest.raises(IntegrityError, match="not edgekd's"), SshDevice(board, target("rehearsal")):
        pass


def test_a_device_that_was_not_entered_says_so(board: Board, tmp_path: Path):
    with pytest.raises(UsageError, match="not connected"):
        SshDevice(board, target("rehearsal")).build(engine(tmp_path))


def images(path: Path) -> Path:
    np.save(path, np.random.default_rng(0).random((3, 1, 3, 8, 8), dtype=np.float32))
    return path
