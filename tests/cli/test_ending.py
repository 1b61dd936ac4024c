from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.cli.ending import ending, explained, paint
from edgekd.errors import BudgetError, EdgekdError, IntegrityError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def end(error: BaseException) -> int:
    with pytest.raises(SystemExit) as caught, ending():
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("kind", [UsageError, BudgetError, IntegrityError])
def test_an_error_of_ours_is_shown_whole_and_ends_with_its_code(
    kind: type[EdgekdError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(kind("it broke", cause="it was old", mend="buy a new one")) == kind.exit_code
    shown = capsys.readouterr()
    assert shown.err == "error: it broke\n  because: it was old\n  to mend it: buy a new one\n"
    assert shown.out == ""


def test_what_has_no_cause_or_mend_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    end(UsageError("it broke"))
    assert capsys.readouterr().err == "error: it broke\n"


def test_lines_of_a_cause_stay_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    end(UsageError("it broke", cause="one\ntwo"))
    assert "  because: one\n    two\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_running_out_of_memory_or_disk_is_resumable(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(error) == 7
    assert "goes on where it was" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST])
def test_a_path_that_cannot_be_used_is_the_users_to_mend(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(OSError(number, os.strerror(number), "/x/y")) == 2
    assert "/x/y" in capsys.readouterr().err


def test_a_fault_of_ours_leaves_a_report_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["edgekd", "run", "my job.toml"])
    assert end(ZeroDivisionError("division by zero\nsecond line")) == 70
    shown = capsys.readouterr().err
    (report,) = tmp_path.iterdir()
    assert str(report) in shown
    assert "ZeroDivisionError: division by zero" in shown
    assert "Traceback" not in shown
    text = report.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "edgekd run 'my job.toml'" in text
    assert sys.version in text


def test_where_not_even_a_report_can_be_written_the_message_still_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert end(ZeroDivisionError("x")) == 70
    assert "ZeroDivisionError: x" in capsys.readouterr().err


def test_other_exceptions_are_not_explained_away() -> None:
    assert explained(FileNotFoundError(errno.ENOENT, "no", "x")) is None
    assert explained(ValueError("x")) is None


def test_a_command_that_ends_well_does_not_exit() -> None:
    with ending():
        pass


STOPPED = """
import os, signal, sys
from contextlib import contextmanager
from edgekd.cli.ending import ending

@contextmanager
def open_thing():
    try:
        yield
    finally:
        print("closed", flush=True)

with ending(), open_thing():
    os.kill(os.getpid(), int(sys.argv[1]))
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_closes_what_is_open_and_says_how_to_go_on(number: int, code: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED, str(number)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (code, "closed\n")
    assert ran.stderr == "\ninterrupted; the same command goes on where it was\n"


def test_a_terminal_that_closes_does_not_end_what_nohup_started() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + STOPPED.replace(
        "    while True:\n        signal.pause()\n", ""
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "closed\n", "")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    program = "from edgekd.__main__ import main; main()"
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads
    ran = subprocess.run(
        [sys.executable, "-c", program, "config", "show", "digits"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert ran.returncode in (0, 1)
    assert ran.stderr == b""


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("variable", "coloured"), [("", True), ("NO_COLOR", False)])
def test_colour_is_for_terminals_that_want_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, *, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if variable:
        monkeypatch.setenv(variable, "1")
    assert (paint("x", "31", Terminal()) != "x") is coloured
    assert paint("x", "31", sys.__stdout__) == "x" or sys.__stdout__.isatty()
