"""Run one of a board's own tools: fixed arguments, a short time, and no more of its answer than we asked for."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

_MOST_BYTES = 1 << 16
_ALSO_LOOK_IN = "/usr/sbin:/usr/bin:/sbin:/bin"  # not on the PATH of every user who comes by SSH
_LAST_WORD_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a tool said on both its outputs, and how it ended; None: it was stopped by us."""

    text: str
    code: int | None


NOTHING = Answer(text="", code=None)


def find(tool: str) -> str | None:
    """Return the path of a tool, or None where this machine has none."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_ALSO_LOOK_IN}")


def ask(
    arguments: Sequence[str], *, timeout_s: float = 2.0, answer: str = "", one_line: bool = False
) -> Answer:
    """Run a tool and return what it said; NOTHING where it is not there.

    Args:
        arguments: the tool by name, and its arguments; no shell sees them.
        timeout_s: it and all that it started are killed after so long.
        answer: what to type where it asks a question.
        one_line: the tool goes on for ever; its first whole line is enough.

    """
    path = find(arguments[0])
    if path is None:
        return NOTHING
    try:
        process = subprocess.Popen(
            [path, *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # jetson_clocks is a script: what it started must end with it
        )
    except OSError:  # not for this machine, or not for us to run
        return NOTHING
    with process:
        try:
            _type(process.stdin, answer)
            text, ended = _listen(process.stdout, timeout_s, one_line=one_line)
            code = _end_of(process) if ended else None
        finally:
            _kill(process)
    return Answer(text=text.decode(errors="replace"), code=code)


def _type(stdin: IO[bytes] | None, answer: str) -> None:
    if stdin is not None:
        with contextlib.suppress(OSError):  # it ended without listening
            stdin.write(answer.encode())
            stdin.close()


def _listen(stdout: IO[bytes] | None, timeout_s: float, *, one_line: bool) -> tuple[bytes, bool]:
    """Read until the end, the limit or the deadline; say whether it was the end."""
    if stdout is None:
        return b"", True
    said, deadline_s = b"", time.monotonic() + timeout_s
    with selectors.DefaultSelector() as ready:
        ready.register(stdout, selectors.EVENT_READ)
        while len(said) < _MOST_BYTES and (left_s := deadline_s - time.monotonic()) > 0:
            if not ready.select(left_s):
                break
            part = os.read(stdout.fileno(), _MOST_BYTES - len(said))
            if not part:
                return said, True
            said += part
            if one_line and b"\n" in said:
                return said.partition(b"\n")[0], False
    return said, False


def _end_of(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=_LAST_WORD_S)
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or sudo's, which is not ours
        os.killpg(process.pid, signal.SIGKILL)
