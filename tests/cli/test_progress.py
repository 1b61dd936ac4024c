from __future__ import annotations

import io
import logging
import warnings

import pytest

from edgekd.cli.progress import Progress, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(name: str, message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, message, (), None)


STEP, DETAIL = "edgekd.pipeline.loop", "edgekd.stages.distill"


def test_in_a_log_steps_stay_and_details_come_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Progress(stream, clock=clock)
    for second in range(0, 70, 5):
        clock.now = second
        shown.emit(record(DETAIL, f"epoch at {second}"))
    clock.now = 75
    shown.emit(record(STEP, "trial 2"))
    lines = stream.getvalue().splitlines()
    assert [line.split("at ")[1] for line in lines[:-1]] == ["0", "15", "30", "45", "60"]
    assert lines[-1] == "  1:15  trial 2"


def test_on_a_terminal_details_pass_by_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    shown = Progress(stream, clock=Clock())
    shown.emit(record(DETAIL, "epoch 1 of a very long line"))
    shown.emit(record(DETAIL, "epoch 2"))
    shown.emit(record(STEP, "done"))
    passing, last, step = stream.getvalue().split("\r\x1b[2K")[1:]
    assert len(passing) == 19
    assert last.strip() == "epoch 2"
    assert step == "  0:00  done\n"


def test_verbose_shows_every_detail_and_quiet_only_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    loud, log = logging.getLogger(DETAIL), logging.getLogger(STEP)
    with progress(verbose=True):
        for at in range(3):
            loud.debug("detail %d", at)
    assert capsys.readouterr().err.count("detail") == 3
    with progress(quiet=True):
        log.info("step")
        loud.warning("careful")
    assert capsys.readouterr().err == "  0:00  warning: careful\n"


def test_logging_is_as_it_was_afterwards() -> None:
    logger = logging.getLogger("edgekd")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with progress():
        pass
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_stdout_is_left_to_data(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(verbose=True):
        logging.getLogger(STEP).info("step")
    assert capsys.readouterr().out == ""


def test_warnings_of_libraries_are_for_the_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    with progress():
        warnings.warn("internal to a library", stacklevel=1)
    assert capsys.readouterr().err == ""
