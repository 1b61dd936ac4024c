"""A command that is ended while it has a board: a real `edgekd`, a real sshd, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices import registry, ssh
from edgekd.devices.board.place import Place
from edgekd.devices.link import Link
from edgekd.devices.ssh import SshDevice
from edgekd.values.board import Board
from tests.contracts import models
from tests.contracts.device import target
from tests.devices.jetson import BEFORE, Jetson
from tests.devices.sshd import Sshd, needs_sshd
from tests.devices.test_ssh import starts

pytestmark = needs_sshd

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def board(server: Sshd, tmp_path: Path) -> Board:
    """Give a board that `edgekd` knows, too."""
    made = replace(server.board("pi", folder=tmp_path / "edgekd-on-board"), profile="x86-cpu")
    registry.remember(tmp_path / "config" / "edgekd", made)
    (tmp_path / "config" / "edgekd" / "known_hosts").write_text(server.known_line())
    return made


def profiling(folder: Path) -> subprocess.Popen[str]:
    model = models.conv_net(folder / "m.onnx", width=32, side=32)
    return subprocess.Popen(
        [sys.executable, "-m", "edgekd", "profile", str(model), "--target", "pi", "--runtime", "onnxruntime"],
        cwd=ROOT,
        env={
            **os.environ,
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def timing_has_begun(board: Board) -> bool:
    log = Place(board.folder).path("starts.log")
    return log.exists() and any(line.endswith(" time") for line in log.read_text().splitlines())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_ended_gives_the_board_back_on_its_way_out(
    board: Board, tmp_path: Path, number: signal.Signals, code: int
):
    with profiling(tmp_path) as process:
        deadline = time.monotonic() + 60
        while not timing_has_begun(board) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert timing_has_begun(board), said
    assert "interrupted" in said
    assert ssh.survey(board).lease is None
    assert list(Place(board.folder).path("orders").iterdir()) == []


class Interrupted(BaseException):
    """What a signal raises in a command."""


@pytest.mark.parametrize("tune", ["", "1"])
def test_an_interrupt_while_the_board_is_taken_gives_it_back(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
):
    jetson = Jetson(tmp_path / "jetson")
    board = server.board(folder=tmp_path / "on-board", python=jetson.python())
    ask = Link.ask

    def interrupted(link: Link, do: str, **fields: object) -> object:
        answer = ask(link, do, **fields)
        if do == "take":
            assert ssh.survey(board).lease is not None
            raise Interrupted
        return answer

    monkeypatch.setattr(Link, "ask", interrupted)
    with pytest.raises(Interrupted), SshDevice(board, replace(target("rehearsal"), tune=tune)):
        pytest.fail("it was entered")
    assert ssh.survey(board).lease is None
    assert jetson.now() == BEFORE
    assert starts(board) == []
