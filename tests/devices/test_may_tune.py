"""Whether sudo lets --tune do what it does: asked, and nothing of it run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekd.devices.restoring import STORE, may_tune, sudoers

# Lists a command where a line of the file `rules` is that command, and writes down whatever else it is told.
_SUDO = """#!/bin/sh
[ "$*" = "-n -ll" ] && exec cat "$HERE/listed"
[ "$1 $2" = "-n -l" ] || { echo "$*" >> "$HERE/ran"; exit 9; }
shift 2
grep -qxF -- "$*" "$HERE/rules"
"""


# What sudo 1.9.13 lists.
LISTED = """User tuner may run the following commands on vm:

Sudoers entry:
    RunAsUsers: ALL
    Commands:
\tALL

Sudoers entry:
    RunAsUsers: root
    Options: !authenticate
    Commands:
\t{commands}
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of tools that write down that they were run, for a user who is not root."""
    for name in ("nvpmodel", "jetson_clocks"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0" >> "$HERE/ran"\n')
    (tmp_path / "sudo").write_text(_SUDO)
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("edgekd.timing.boards.asking._ALSO_LOOK_IN", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "rules").write_text("\n".join(rules(tmp_path)))
    (tmp_path / "listed").write_text(LISTED.format(commands="\n\t".join(rules(tmp_path))))
    return tmp_path


def rules(folder: Path) -> list[str]:
    clocks = f"{folder}/jetson_clocks"
    return [f"{folder}/nvpmodel -m 0", clocks, f"{clocks} --store {STORE}", f"{clocks} --restore {STORE}"]


def test_what_sudo_lists_may_be_run_and_nothing_was(board: Path) -> None:
    assert may_tune() is True
    assert not (board / "ran").exists()


@pytest.mark.parametrize("missing", range(4))
def test_a_single_rule_that_is_missing_is_enough_to_refuse(board: Path, missing: int) -> None:
    held = rules(board)
    (board / "rules").write_text("\n".join(held[:missing] + held[missing + 1 :]))
    assert may_tune() is False
    assert not (board / "ran").exists()


@pytest.mark.parametrize(("commands", "allowed"), [("/usr/bin/true", False), ("ALL", True)])
def test_a_rule_that_asks_for_a_password_is_none(board: Path, commands: str, *, allowed: bool) -> None:
    (board / "listed").write_text(LISTED.format(commands=commands))
    assert may_tune() is allowed


def test_a_machine_without_the_tools_has_nothing_to_tune(board: Path) -> None:
    (board / "nvpmodel").unlink()
    assert may_tune() is None


def test_root_needs_no_sudo_and_a_user_without_it_may_not(
    board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (board / "sudo").unlink()
    monkeypatch.setenv("PATH", str(board))
    assert may_tune() is False
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert may_tune() is True


def test_the_lines_that_are_printed_allow_what_is_asked_for() -> None:
    lines = " ".join(sudoers("user"))
    for command in ("nvpmodel -m [0-9]", 'jetson_clocks ""', f"jetson_clocks --store {STORE}"):
        assert command in lines
    assert f"jetson_clocks --restore {STORE}" in lines
