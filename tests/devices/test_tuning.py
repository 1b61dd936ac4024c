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
from tests.devices.jetson import BEFORE, Jetson, watchdogs

ROOT = Path(__file__).resolve().parents[2]
MODES = (PowerMode(name="15W", id=0), PowerMode(name="25W", id=1), PowerMode(name="7W", id=3))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    made = Jetson(tmp_path)
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
def test_mode_and_clocks_are_set_and_come_back(board: Jetson):
    found = plan(board.reading(), MODES, mode="25w")
    with tuned(found, board.pending):
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
    assert board.now() == BEFORE
    assert not (board.pending / "tuning.json").exists()


@pytest.mark.usefixtures("no_watchdog")
def test_they_come_back_when_the_measurement_fails(board: Jetson):
    with pytest.raises(ZeroDivisionError), tuned(plan(board.reading(), MODES, mode="1"), board.pending):
        1 / 0  # noqa: B018 - it fails
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_a_plan_says_beforehand_what_it_will_run(board: Jetson):
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
def test_a_mode_that_is_set_already_is_left_alone(board: Jetson):
    with tuned(plan(board.reading(), MODES, mode="15W"), board.pending):
        assert board.now()["clocks"] == "held"
    assert not [line for line in board.log() if line.startswith("nvpmodel -m")]


@pytest.mark.usefixtures("no_watchdog")
def test_clocks_can_be_left_alone(board: Jetson):
    with tuned(plan(board.reading(), MODES, mode="25W", clocks=False), board.pending):
        assert board.now() == {"mode": "1", "clocks": "free", "rebooted": "no"}
    assert not [line for line in board.log() if line.startswith("jetson_clocks")]
    assert board.now() == BEFORE


def test_planning_changes_nothing(board: Jetson):
    plan(board.reading(), MODES, mode="25W")
    assert board.log() == []


@pytest.mark.usefixtures("no_watchdog")
def test_a_mode_that_needs_a_reboot_is_refused_and_nothing_is_rebooted(board: Jetson):
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
    board: Jetson, refused: str, monkeypatch: pytest.MonkeyPatch
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
def test_clocks_that_cannot_be_held_put_the_mode_back(board: Jetson):
    (board.state / "broken").touch()
    with (
        pytest.raises(DeviceError, match="`jetson_clocks` failed"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_what_a_power_cut_left_behind_is_put_back_by_the_next_session(board: Jetson):
    found = plan(board.reading(), MODES, mode="25W")
    tuning.apply(found, board.pending)  # and the machine dies
    assert board.now()["mode"] == "1"
    with tuned(tuning.prepared(board.pending, mode="25W", modes=MODES), board.pending):
        assert board.now()["mode"] == "1"
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_a_plan_made_while_the_board_was_still_tuned_is_refused(board: Jetson):
    tuning.apply(plan(board.reading(), MODES, mode="25W"), board.pending)
    stale = plan(board.reading(), MODES, mode="25W")
    with pytest.raises(DeviceError, match="session before"), tuned(stale, board.pending):
        pytest.fail("it was not set")
    assert board.now() == BEFORE


@pytest.mark.usefixtures("no_watchdog")
def test_restoring_twice_is_harmless(board: Jetson):
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
def test_a_pending_file_that_is_not_ours_runs_nothing(board: Jetson, text: str):
    board.pending.mkdir()
    (board.pending / "tuning.json").write_text(text)
    with pytest.raises(DeviceError, match="does not say what to put back"):
        mend(board.pending)
    assert board.changing() == []


def test_a_session_that_stood_still_too_long_learns_that_its_figures_are_worth_nothing(board: Jetson):
    with (
        pytest.raises(DeviceError, match="before the end"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending, patience_s=60.0),
    ):
        mend(board.pending)  # as the watchdog would
    assert board.now() == BEFORE


def test_an_unknown_mode_suggests_one(board: Jetson):
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


def test_the_modes_and_the_reading_of_a_board_make_a_plan(board: Jetson, tmp_path: Path):
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
from tests.devices.jetson import BEFORE, Jetson, watchdogs
modes = (PowerMode(name="15W", id=0), PowerMode(name="25W", id=1))
with tuned(plan(BoardReading(mode=modes[0]), modes, mode="25W"), Path(sys.argv[1]), patience_s=float(sys.argv[2])):
    print("tuned", flush=True)
    time.sleep(600)
"""


def session(board: Jetson, patience_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(board.pending), str(patience_s)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "tuned\n"
    return process


def test_killing_the_session_puts_everything_back_and_leaves_no_process(board: Jetson):
    process = session(board, patience_s=2.0)
    with process:
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
        assert len(watchdogs(board.pending)) == 1
        process.send_signal(signal.SIGKILL)
    assert until(lambda: board.now() == BEFORE)
    assert until(lambda: not watchdogs(board.pending))
    assert not (board.pending / "tuning.json").exists()


def test_a_session_that_lives_is_not_disturbed_and_its_watchdog_ends_with_it(board: Jetson):
    with tuned(plan(board.reading(), MODES, mode="25W"), board.pending, patience_s=2.0):
        beats = {(board.pending / "tuning.pulse").read_text()}
        assert until(lambda: beats.add((board.pending / "tuning.pulse").read_text()) or len(beats) > 8)
        assert board.now() == {"mode": "1", "clocks": "held", "rebooted": "no"}
    assert board.now() == BEFORE
    assert until(lambda: not watchdogs(board.pending))


def test_a_watchdog_that_is_ended_restores_first(board: Jetson):
    process = session(board, patience_s=600.0)
    with process:
        (watchdog,) = watchdogs(board.pending)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(watchdog, signal.SIGTERM)
        assert until(lambda: board.now() == BEFORE)
    assert until(lambda: not watchdogs(board.pending))


def test_a_watchdog_whose_folder_is_taken_away_restores_from_memory(board: Jetson):
    process = session(board, patience_s=2.0)
    with process:
        process.send_signal(signal.SIGKILL)
        board.pending.rename(board.folder / "cleaned")
    assert until(lambda: board.now() == BEFORE)


def test_a_restoration_that_fails_is_tried_again(board: Jetson, monkeypatch: pytest.MonkeyPatch):
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


def test_a_watchdog_that_does_not_start_changes_nothing(board: Jetson, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(DeviceError, match="did not start"),
        tuned(plan(board.reading(), MODES, mode="25W"), board.pending),
    ):
        pytest.fail("it was not set")
    assert board.now() == BEFORE
    assert "nvpmodel -m 1" not in board.log()


def test_what_is_pending_is_numbers_and_no_commands(board: Jetson):
    board.pending.mkdir()
    write_down(Pending(mode=2, clocks=True), board.pending)
    assert json.loads((board.pending / "tuning.json").read_text()) == {"mode": 2, "clocks": True}


@pytest.mark.slow
def test_fifty_sessions_killed_at_any_moment_leave_the_board_as_it_was(board: Jetson):
    for round_ in range(50):
        process = session(board, patience_s=0.4)
        with process:
            time.sleep(0.01 * round_)
            process.send_signal(signal.SIGKILL)
        assert until(lambda: board.now() == BEFORE and not watchdogs(board.pending)), round_
