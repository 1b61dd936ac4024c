"""What is going on, on stderr: steps stay, details pass by in one line of a terminal or now and then in a log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from edgekd.cli.ending import paint

_STEPS = "edgekd.pipeline"  # what it logs are the steps of a run; everything below it logs details
_DETAIL_EVERY_S = 15.0  # in a log that is not a terminal


class Progress(logging.Handler):
    """Writes log records as a person wants to see them.

    There is no spinner: a thread that redraws would take CPU time from what is being measured.
    """

    def __init__(
        self, stream: TextIO, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logging.DEBUG if verbose else logging.INFO)
        self._stream = stream
        self._live = stream.isatty()
        self._verbose = verbose
        self._clock = clock
        self._began = clock()
        self._detailed = -_DETAIL_EVERY_S
        self._passing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self._write(record, record.getMessage())
        except Exception:  # noqa: BLE001 - logging's own way with a broken stream or format
            self.handleError(record)

    def clear(self) -> None:
        """Take the passing line away."""
        if self._passing:
            self._stream.write("\r\x1b[2K")
            self._passing = False
        self._stream.flush()

    def _write(self, record: logging.LogRecord, message: str) -> None:
        now = self._clock() - self._began
        stamp = paint(f"{int(now) // 60:3d}:{int(now) % 60:02d}", "2", self._stream)
        if record.levelno >= logging.WARNING:
            self._line(f"{stamp}  {paint('warning:', '33', self._stream)} {message}")
        elif self._verbose or record.name.startswith(_STEPS):
            self._line(f"{stamp}  {message}")
        elif self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + f"        {message}"[:width])
            self._stream.flush()
            self._passing = True
        elif now - self._detailed >= _DETAIL_EVERY_S:
            self._detailed = now
            self._line(f"{stamp}    {message}")

    def _line(self, text: str) -> None:
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()


@contextmanager
def progress(*, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Show edgekd's log records on stderr while a command runs; libraries' warnings only when verbose."""
    logger = logging.getLogger("edgekd")
    handler = Progress(sys.stderr, verbose=verbose)
    chatter = logging.getLogger(
        "torch.onnx._internal.exporter"
    )  # it logs each optional library that is not installed
    before = logger.level, logger.propagate, chatter.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    chatter.setLevel(logging.NOTSET if verbose else logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default" if verbose else "ignore")
            yield
    finally:
        handler.clear()
        logger.removeHandler(handler)
        logger.propagate = before[1]
        logger.setLevel(before[0])
        chatter.setLevel(before[2])
