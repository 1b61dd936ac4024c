"""How a command ends: every exception becomes a message with cause and mend, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from edgekd.errors import EdgekdError, ResourcesExhausted, UsageError

INTERNAL = 70

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_AGAIN = "give the same command again: it goes on where it was"


class Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived: an exception, so that every open context closes on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def ending() -> Iterator[None]:
    """Run a command; whatever it raises, the process ends with a message and the exit code that it means."""
    before = {number: signal.signal(number, _stop) for number in _heeded()}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows is no reason to fail
    try:
        yield
    except Stopped as stopped:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            sys.stderr.write("\ninterrupted; the same command goes on where it was\n")
        code = 128 + stopped.number
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:  # noqa: BLE001 - the outermost frame: what is not known becomes a report
        known = explained(error)
        code = known.exit_code if known else INTERNAL
        show_error(known or _internal(error))
    else:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise SystemExit(code)


def explained(error: Exception) -> EdgekdError | None:
    """Put an exception in our words where its meaning is plain; None where it is a fault of ours."""
    if isinstance(error, EdgekdError):
        return error
    if (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or "out of memory" in str(error)
    ):
        mend = "free memory, or give smaller values for distillation.batch or task.resolution; then " + _AGAIN
        return ResourcesExhausted("memory ran out", cause=_first_line(error), mend=mend)
    if isinstance(error, OSError) and error.errno in _FULL:
        what = f"cannot write {error.filename}" if error.filename else "cannot write"
        return ResourcesExhausted(what, cause=error.strerror or "", mend=f"free some space, then {_AGAIN}")
    if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename:
        mend = "give another path, or change its permissions"
        return UsageError(f"cannot use {error.filename}", cause=error.strerror or "", mend=mend)
    return None


def show_error(error: EdgekdError, stream: TextIO | None = None) -> None:
    """Write what went wrong, why, and what mends it."""
    stream = stream or sys.stderr
    lines = [f"{paint('error:', '31;1', stream)} {_indented(error.what)}"]
    if error.cause:
        lines.append(f"  because: {_indented(error.cause)}")
    if error.mend:
        lines.append(f"  to mend it: {_indented(error.mend)}")
    stream.write("\n".join(lines) + "\n")


def paint(text: str, style: str, stream: TextIO) -> str:
    """Colour a word on a terminal that wants colour (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def _heeded() -> Iterator[signal.Signals]:
    """Yield the signals that end a command; a terminal that closes does not where `nohup` says so."""
    yield from (signal.SIGINT, signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        yield signal.SIGHUP


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait for contexts to close
    raise Stopped(number)


def _internal(error: Exception) -> EdgekdError:
    where = _report(error)
    return EdgekdError(
        "this is a fault in edgekd",
        cause=f"{type(error).__name__}: {_first_line(error)}",
        mend=f"report it with {where}; what was computed is kept" if where else "report it with this message",
    )


def _report(error: Exception) -> Path | None:
    """Write a report that a maintainer can work with; None where not even that is possible."""
    parts = [
        f"command: {shlex.join(['edgekd', *sys.argv[1:]])}",
        f"folder: {Path.cwd()}",
        f"python: {sys.version}",
        f"system: {platform.platform()}",
        *(f"{name}: {version}" for name, version in sorted(_versions().items())),
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="edgekd-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write("\n".join(parts))
    except OSError:
        return None
    return Path(path)


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = (
        "edgekd",
        "torch",
        "onnx",
        "onnxruntime",
        "openvino",
        "nncf",
        "numpy",
        "scikit-learn",
        "typer",
        "rich",
    )
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n    ")
