from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.devices import restoring, tuning
from edgekd.devices.restoring import Command, Pending, beat, mend, sudoers, write_down
from edgekd.devices.tuning import plan, tuned
from edgekd.errors import ConfigError, DeviceError
from edgekd.timing.boards import power_modes, read_board
from edgekd.values.power import BoardReading, PowerMode

ROOT = Path(__file__).resolve().parents[2]
MODES = (PowerMode(name="15W", id=0), PowerMode(name="25W", id=1), PowerMode(name="7W", id=3))
BEFORE = {"mode": "0", "clocks": "free", "rebooted": "no"}

# A board in a folder: two files say its mode and clocks, a third what was run on it.
NVPMODEL = """#!/bin/sh
echo "nvpmodel $*" >> "{board}/log"
case "$1" in
  -q) printf 'NV Power Mode: mode%s\\n%s\\n' "$(cat {board}/mode)" "$(cat {board}/mode)" ;;
  -m)
    if [ "$2" = 3 ]; then
      echo "NVPM WARN: Reboot required for changing to this power mode: 3"
      echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
      read answer
      case "$answer" in YES|yes) echo yes > {board}/rebooted ;; esac
      echo "NVPM ERROR: optMask is 1, no request for power mode"; exit 255
    fi
    echo "$2" > {board}/mode ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
echo "jetson_clocks $*" >> "{board}/log"
case "$1" in
  --store)
    if [ -e {board}/stored ]; then
      echo "File $2 already exists. Can I overwrite it? Y/N:"
      read answer
      [ "$answer" = y ] || exit 1
    fi
    cp {board}/clocks {board}/stored ;;
  --restore) [ -e {board}/stored ] || exit 1; cp {board}/stored {board}/clocks ;;
  "") [ -e {board}/broken ] && exit 1; echo held > {board}/clocks ;;
esac
"""
SUDO = """#!/bin/sh
[ "$1" = -n ] || {{ echo "a password would have been asked for" >> {board}/log; exit 9; }}
shift
if grep -q "$(basename $1)" {board}/refused 2>/dev/null; then echo "sudo: a password is required"; exit 1; fi
exec "$@"
"""


class Board:
    """A Jetson in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        for name, content in BEFORE.items():
            (self.state / name).write_text(content + "\n")
        (self.state / "log").touch()
        (folder / "bin").mkdir()
        for name, script in (("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS), ("sudo", SUDO)):
            path = folder / "bin" / name
            path.write_text(script.format(board=self.state))
            path.chmod(0o755)
        self.pending = folder / "edgekd"

    def now(self) -> dict[str, str]:
        return {name: (self.state / name).read_text().strip() for name in BEFORE}

    def log(self) -> list[str]:
        return [line.strip() for line in (self.state / "log").read_text().splitlines()]

    def changing(self) -> list[str]:
        return [line for line in self.log() if not line.startswith("nvpmodel -q")]

    def reading(self) -> BoardReading:
        mode = int((self.state / "mode").read_text())
        return BoardReading(mode=PowerMode(name=f"mode{mode}", id=mode))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return made


@pytest.fixture
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "start_watchdog", lambda folder, patience_s, whole: None)


def until(met: Callable[[], bool], seconds: float = 30.0) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if met():
            return True
        time.sleep(0.02)
    return met()


@pytest.mark.usefixtures("no_watchdog")
def test_mode_and_clocks_are_set_and_come_back(board: Board):
    found = plan(board.reading(), MODES, mode="25w")
    with tuned(found, board.pending):
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
    assert board.now() == BEFORE
    assert not (board.pending / "tuning.json").exists()


@pytest.mark.usefixtures("no_watchdog")
def test_they_come_back_when_the_measurement_fails(board: Board):
    with pytest.raises(ZeroDivisionError), tuned(plan(board.reading(), MODES, mode="1"), board.pending):
        1 / 0  # noqa: B018 - it fails
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_a_plan_says_beforehand_what_it_will_run(board: Board):
    found = plan(board.reading(), MODES, mode="25W")
    with tuned(found, board.pending):
        pass
    assert board.changing() == list(found.words())
    store = restoring.STORE
    assert found.words() == (
        f"jetson_clocks --store {store}",
        "nvpmodel -m 1",
        "jetson_clocks",
        f"jetson_clocks --restore {store}",
        "nvpmodel -m 0",
        f"jetson_clocks --restore {store}",
    )


@pytest.mark.usefixtures("no_watchdog")
def test_a_mode_that_is_set_already_is_left_alone(board: Board):
    with tuned(plan(board.reading(), MODES, mode="15W"), board.pending):
        assert board.now()["clocks"] == "held"
    assert not [line for line in board.log() if line.startswith("nvpmodel -m")]


@pytest.mark.usefixtures("no_watchdog")
def test_clocks_can_be_left_alone(board: Board):
    with tuned(plan(board.reading(), MODES, mode="25W", clocks=False), board.pending):
        assert board.now() == {"mode": "1", "clocks": "free", "rebooted": "no"}
    assert not [line for line in board.log() if line.startswith("jetson_clocks")]
    assert board.now() == BEFORE


def test_planning_changes_nothing(board: Board):
    plan(board.reading(), MODES, mode="25W")
    assert board.log() == []


@pytest.mark.usefixtures("no_watchdog")
def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_is_rebooted(board: Board):
    with (
        pytest.raises(DeviceError, match="rebooted") as caught,
        tuned(plan(board.reading(), MODES, mode="7W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert "sudo nvpmodel -m 3" in caught.value.mend
    assert board.now() == BEFORE


@pytest.mark.parametrize("refused", ["jetson_clocks", "nvpmodel"])
@pytest.mark.usefixtures("no_watchdog")
def test_a_refusal_of_sudo_names_three_fixed_rules_and_leaves_nothing_pending(
    board: Board, refused: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (board.state / "refused").write_text(refused)
    with (
        pytest.raises(DeviceError, match="sudo refuses") as caught,
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert caught.value.exit_code == 4
    assert caught.value.mend.count("NOPASSWD") == 3
    assert board.now() == BEFORE
    assert not (board.pending / "tuning.json").exists()
    assert not [line for line in board.log() if "password" in line]


def test_the_rules_hold_paths_and_no_wildcard_for_arguments():
    rules = sudoers("user")
    assert len(rules) == 3
    assert all("NOPASSWD: /usr/" in rule and "*" not in rule for rule in rules)
    assert '/usr/bin/jetson_clocks ""' in rules[1]  # without the quotes, sudo would take any argument
    assert restoring.STORE.startswith("/root/")  # what it restores is written to any path it names


@pytest.mark.usefixtures("no_watchdog")
def test_clocks_that_cannot_be_held_put_the_mode_back(board: Board):
    (board.state / "broken").touch()
    with (
        pytest.raises(DeviceError, match="`jetson_clocks` failed"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_what_a_power_cut_left_behind_is_put_back_by_the_next_session(board: Board):
    found = plan(board.reading(), MODES, mode="25W")
    tuning.apply(found, board.pending)  # and the machine dies
    assert board.now()["mode"] == "1"
    with tuned(tuning.prepared(board.pending, mode="25W", modes=MODES), board.pending):
        assert board.now()["mode"] == "1"
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_a_plan_made_while_the_board_was_still_tuned_is_refused(board: Board):
    tuning.apply(plan(board.reading(), MODES, mode="25W"), board.pending)
    stale = plan(board.reading(), MODES, mode="25W")
    with pytest.raises(DeviceError, match="session before"), tuned(stale, board.pending):
        pytest.fail("it was not set")
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_restoring_twice_is_harmless(board: Board):
    tuning.apply(plan(board.reading(), MODES, mode="25W"), board.pending)
    assert mend(board.pending) is True
    assert mend(board.pending) is False
    assert board.now() == BEFORE


def test_nothing_is_pending_where_nothing_was_changed(tmp_path: Path):
    assert mend(tmp_path) is False
    assert mend(tmp_path / "never made") is False


@pytest.mark.parametrize(
    "text", ["{", '{"mode": "rm"}', '{"mode": -1, "clocks": true}', '{"run": "x"}', "[]"]
)
def test_a_pending_file_that_is_not_ours_runs_nothing(board: Board, text: str):
    board.pending.mkdir()
    (board.pending / "tuning.json").write_text(text)
    with pytest.raises(DeviceError, match="does not say what to put back"):
        mend(board.pending)
    assert board.changing() == []


def test_a_session_that_stood_still_too_long_learns_that_its_figures_are_worth_nothing(board: Board):
    with (
        pytest.raises(DeviceError, match="before the end"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending, patience_s=60.0),
    ):
        mend(board.pending)  # as the watchdog would
    assert board.now() == BEFORE


def test_an_unknown_mode_suggests_one(board: Board):
    with pytest.raises(ConfigError) as caught:
        plan(board.reading(), MODES, mode="25")
    assert "did you mean '25W'?" in caught.value.mend


@pytest.mark.parametrize(
    ("reading", "what"), [(None, "no power mode to set"), (BoardReading(), "does not say which power mode")]
)
@pytest.mark.usefixtures("board")
def test_a_machine_that_cannot_be_put_back_is_not_changed(reading: BoardReading | None, what: str):
    with pytest.raises(DeviceError, match=what):
        plan(reading, MODES, mode="25W")


def test_a_machine_without_the_tools_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no power mode to set"):
        plan(BoardReading(mode=PowerMode(name="x", id=0)))


def test_the_modes_and_the_reading_of_a_board_make_a_plan(board: Board, tmp_path: Path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text("< POWER_MODEL ID=1 NAME=25W >\n")
    found = plan(read_board(tmp_path), power_modes(tmp_path), mode="25W")
    assert found.pending == Pending(mode=0, clocks=True)
    assert board.changing() == []


HOST = """
import sys, time
from pathlib import Path
from edgekd.devices.tuning import plan, tuned
from edgekd.values.power import BoardReading, PowerMode
modes = (PowerMode(name="15W", id=0), PowerMode(name="25W", id=1))
with tuned(plan(BoardReading(mode=modes[0]), modes, mode="25W"), Path(sys.argv[1]), patience_s=float(sys.argv[2])):
    print("tuned", flush=True)
    time.sleep(600)
"""


def session(board: Board, patience_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(board.pending), str(patience_s)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "tuned\n"
    return process


def watchdogs(board: Board) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"edgekd.devices.restoring" in arguments and str(board.pending).encode() in arguments:
            found.append(int(folder.name))
    return found


def test_killing_the_session_puts_everything_back_and_leaves_no_process(board: Board):
    process = session(board, patience_s=2.0)
    with process:
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
        assert len(watchdogs(board)) == 1
        process.send_signal(signal.SIGKILL)
    assert until(lambda: board.now() == BEFORE)
    assert until(lambda: not watchdogs(board))
    assert not (board.pending / "tuning.json").exists()


def test_a_session_that_lives_is_not_disturbed_and_its_watchdog_ends_with_it(board: Board):
    with tuned(plan(board.reading(), MODES, mode="25W"), board.pending, patience_s=2.0):
        beats = {(board.pending / "tuning.pulse").read_text()}
        assert until(lambda: beats.add((board.pending / "tuning.pulse").read_text()) or len(beats) > 8)
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
    assert board.now() == BEFORE
    assert until(lambda: not watchdogs(board))


def test_a_watchdog_that_is_ended_restores_first(board: Board):
    process = session(board, patience_s=600.0)
    with process:
        (watchdog,) = watchdogs(board)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(watchdog, signal.SIGTERM)
        assert until(lambda: board.now() == BEFORE)
    assert until(lambda: not watchdogs(board))


def test_a_watchdog_whose_folder_is_taken_away_restores_from_memory(board: Board):
    process = session(board, patience_s=2.0)
    with process:
        process.send_signal(signal.SIGKILL)
        board.pending.rename(board.folder / "cleaned")
    assert until(lambda: board.now() == BEFORE)


def test_a_restoration_that_fails_is_tried_again(board: Board, monkeypatch: pytest.MonkeyPatch):
    board.pending.mkdir()
    write_down(Pending(mode=0, clocks=False), board.pending)
    (board.state / "mode").write_text("1\n")
    beat(board.pending)
    tries: list[Command] = []

    def failing_once(command: Command) -> object:
        tries.append(command)
        if len(tries) == 1:
            raise DeviceError("busy")
        return run(command)

    run = restoring.run
    monkeypatch.setattr(restoring, "run", failing_once)
    restoring.watch(board.pending, 0.02, Pending(mode=0, clocks=False))
    assert len(tries) == 2
    assert board.now() == BEFORE


def test_a_watchdog_that_does_not_start_changes_nothing(board: Board, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(DeviceError, match="did not start"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert board.now() == BEFORE
    assert "nvpmodel -m 1" not in board.log()


def test_what_is_pending_is_numbers_and_no_commands(board: Board):
    board.pending.mkdir()
    write_down(Pending(mode=2, clocks=True), board.pending)
    assert json.loads((board.pending / "tuning.json").read_text()) == {"mode": 2, "clocks": True}


@pytest.mark.slow
def test_fifty_sessions_killed_at_any_moment_leave_the_board_as_it_was(board: Board):
    for round_ in range(50):
        process = session(board, patience_s=0.4)
        with process:
            time.sleep(0.01 * round_)
            process.send_signal(signal.SIGKILL)
        assert until(lambda: board.now() == BEFORE and not watchdogs(board)), round_
