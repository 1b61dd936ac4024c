"""One connection to a board, through the system's own ssh: lines of JSON both ways, and nothing taken on trust.

The user's configuration, keys, agent and jump hosts count; a password is never asked for, an unknown key never
accepted. Whatever comes back is bounded before it is kept and cleaned before it is shown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.devices import parcel
from edgekd.devices.board.first import GREETING
from edgekd.devices.link_command import OLD_PYTHON, command, forget_master
from edgekd.devices.link_words import Lost, clean, old_python, parsed, raised, refusal
from edgekd.errors import DeviceError, EdgekdError, WorkerDied
from edgekd.values.board import Board

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 18
_NOISE_BYTES = 1 << 16  # that a login shell may print before our program starts
_TAIL_BYTES = 4096  # of standard error
_BEATS, _BEATS_A_SECOND = 100, 10  # more is a flood
_LAST_BYTES = 64 << 20  # of a reply that nobody wants any more
LINE_BYTES = 4 << 20  # an answer that is no measurement


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long each step may take, in seconds: generous, for boards that are slow or emulated."""

    connect_s: int = 15  # until ssh gives up
    hello_s: float = 90.0  # until Python runs there, jump hosts included
    answer_s: float = 180.0  # to anything but an order: starting the worker, hashing files, a full sync
    silence_s: float = 12.0  # while an order runs: the board says every two seconds that it does
    stuck_s: float = 60.0  # without a byte that it takes, or gives, of a file
    beat_s: float = 5.0  # how often the board hears that we are still here
    resume_s: float = 120.0  # a connection that was lost is tried again for so long
    pause_s: float = 0.5  # before each try but the first
    losses: int = 12  # of the connection, while one order is carried out
    death_s: float = 5.0  # for ssh to end after it has closed its output
    leave_s: float = 15.0  # for the board to end what still runs, when we go
    tuned_s: float = 45.0  # that a board stays tuned without a sign of us or of an order (one every 5 s)
    persist_s: int = 60  # that ssh keeps a connection for the next command


PATIENCE = Patience()


class Link:
    """A process of ssh, with our program at its far end; a context manager that ends it."""

    def __init__(self, board: Board) -> None:
        """Connect and wait for the greeting.

        Raises:
            IntegrityError: the host key is not the one that is known.
            DeviceError: the board cannot be reached, lets nobody in or has no Python.

        """
        self.board = board
        self.sent_bytes = 0  # of files and of the worker
        self._asked = 0
        self._buffer = bytearray()
        self._errors = b""
        self._writing = threading.Lock()
        self._broken = ""
        opening = parcel.first_contact(board.folder)
        self._errors_open = True
        self._process = _process(board, opening)
        try:
            self.greeting = self._greet(opening)
        except BaseException:
            self.close()
            raise

    @property
    def broken(self) -> bool:
        """Whether it has been lost."""
        return bool(self._broken)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Ask for something and return the answer.

        Raises:
            EdgekdError: whatever the board raised.
            Lost: the connection broke, or no answer came in time.
            WorkerDied: the answer is nonsense.

        """
        self.tell(do, **fields)
        return self.answer()

    def tell(self, do: str, **fields: Any) -> None:
        """Ask for something whose answer is waited for elsewhere.

        Raises:
            Lost: the connection broke.

        """
        self._asked += 1
        self._send(_line(do, self._asked, fields))

    def give(self, do: str, size: int, pieces: Callable[[], bytes], **fields: Any) -> dict[str, Any]:
        """Ask for something that takes `size` raw bytes, and send them.

        Raises:
            EdgekdError: whatever the board raised.
            Lost: the connection broke, or there were fewer bytes than promised.

        """
        self._asked += 1
        left = size
        try:
            with self._writing:
                self._write(_line(do, self._asked, {"size": size, **fields}))
                while left and (piece := pieces()[:left]):
                    self._write(piece)
                    self.sent_bytes += len(piece)
                    left -= len(piece)
        finally:
            if left:  # the board waits for the rest, and would take anything for it
                self._broken = self._broken or "a file was not sent to its end"
        if left:
            raise self._lose("a file has shrunk while it was sent")
        return self.answer()

    def beat(self) -> None:
        """Tell the board that we are still here; another thread may do so."""
        with contextlib.suppress(Lost):
            self._send(_line("beat", 0, {}))

    def answer(self) -> dict[str, Any]:
        """Return the answer to what was asked last.

        Raises:
            EdgekdError: whatever the board raised.
            Lost: the connection broke, or no answer came in time.
            WorkerDied: the answer is nonsense.

        """
        return self._awaited(LINE_BYTES, PATIENCE.answer_s, PATIENCE.answer_s)

    def outcome(self, most_bytes: int, most_s: float) -> dict[str, Any]:
        """Wait for the reply to an order, for as long as the board says that it is running.

        Args:
            most_bytes: no reply to this order is longer.
            most_s: nor does one take longer.

        Raises:
            EdgekdError: whatever the order raised.
            Lost: the connection broke, or the board fell silent.
            WorkerDied: the reply is nonsense, too long or too late.

        """
        return self._awaited(most_bytes, PATIENCE.silence_s, most_s)

    def leave(self) -> None:
        """Give the board back, if it can still be told; without a word, its lease expires."""
        with contextlib.suppress(EdgekdError):
            self.tell("leave")
            end = time.monotonic() + PATIENCE.leave_s
            found: dict[str, Any] = {}
            while found.get("n") != self._asked:  # an order's reply, or a beat
                found = self._object(_LAST_BYTES, PATIENCE.leave_s, end)
            if "error" in found:
                log.warning(
                    "%s was given back, but not as it was: %s", self.board.name, raised(found["error"])
                )

    def take(self, size: int, keep: Callable[[bytes], None]) -> None:
        """Receive so many raw bytes.

        Raises:
            Lost: the connection broke, or nothing came for too long.

        """
        while size:
            if not self._buffer and not self._read(time.monotonic() + PATIENCE.stuck_s):
                raise self._closed()
            piece = bytes(self._buffer[:size])
            del self._buffer[: len(piece)]
            keep(piece)
            size -= len(piece)

    def close(self) -> None:
        """End ssh."""
        self._broken = self._broken or "closed"
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        with self._writing:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def abandon(self) -> None:
        """End ssh, and share the connection beneath it no longer: it may be what hangs."""
        self.close()
        forget_master(self.board)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _greet(self, opening: bytes) -> dict[str, Any]:
        with contextlib.suppress(Lost):  # a host that refuses closes at once; why is to be read
            self._send(opening)
        self._broken = ""
        end, greeting, seen = time.monotonic() + PATIENCE.hello_s, GREETING.encode(), 0
        while True:
            line = self._next_line(_NOISE_BYTES, PATIENCE.hello_s, end, self._refusal)
            seen += len(line)
            if line.startswith(greeting):
                return self._parsed(line[len(greeting) :])
            if line.startswith(OLD_PYTHON.encode()):
                raise old_python(self.board, clean(line[len(OLD_PYTHON) :][:40].decode(errors="replace")))
            if seen > _NOISE_BYTES:
                raise self._nonsense("it does not stop talking before it greets")

    def _refusal(self) -> EdgekdError:
        """Say why ssh has ended before the greeting."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE.death_s)
        self._read_errors()
        return refusal(self.board, self._process.poll(), self._errors.decode(errors="replace"))

    def _awaited(self, most_bytes: int, patience_s: float, most_s: float) -> dict[str, Any]:
        start, beats = time.monotonic(), 0
        while "beat" in (found := self._object(most_bytes, patience_s, start + most_s)):
            beats += 1
            elapsed_s = time.monotonic() - start
            if beats > _BEATS + _BEATS_A_SECOND * elapsed_s:
                raise self._nonsense("it floods the connection")
            if elapsed_s > most_s:
                raise self._nonsense(f"it took longer than {most_s:.0f} s")
        return self._checked(found)

    def _object(self, most_bytes: int, patience_s: float, end: float) -> dict[str, Any]:
        return self._parsed(self._next_line(most_bytes, patience_s, end, self._closed))

    def _next_line(
        self, most_bytes: int, patience_s: float, end: float, closed: Callable[[], EdgekdError]
    ) -> bytes:
        """Read a line; each piece of it may take `patience_s`, and all of it until `end` by the monotonic clock."""
        looked = 0
        while (at := self._buffer.find(b"\n", looked)) < 0:
            looked = len(self._buffer)
            if looked > most_bytes:
                raise self._nonsense(f"a line of more than {most_bytes >> 10} KiB")
            if not self._read(min(end, time.monotonic() + patience_s)):
                raise closed()
        if at > most_bytes:
            raise self._nonsense(f"a line of more than {most_bytes >> 10} KiB")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return line

    def _read(self, deadline: float) -> bool:
        """Keep what comes next; False once there is nothing more to come."""
        pipe, errors = self._process.stdout, self._process.stderr
        assert pipe is not None  # noqa: S101 - opened above
        assert errors is not None  # noqa: S101 - opened above
        while True:
            left_s = deadline - time.monotonic()
            pipes = [pipe, errors] if self._errors_open else [pipe]
            ready, _, _ = select.select(pipes, [], [], max(0.0, left_s)) if not self._broken else ([], [], [])
            if errors in ready:
                self._read_errors()
            if pipe in ready:
                piece = os.read(pipe.fileno(), _CHUNK_BYTES)
                self._buffer += piece
                return bool(piece)
            if left_s <= 0 or self._broken:
                raise self._lose(self._broken or "it fell silent")

    def _read_errors(self) -> None:
        errors = self._process.stderr
        assert errors is not None  # noqa: S101 - opened above
        with contextlib.suppress(BlockingIOError):
            piece = os.read(errors.fileno(), _CHUNK_BYTES)
            self._errors_open = bool(piece)
            self._errors = (self._errors + piece)[-_TAIL_BYTES:]

    def _send(self, data: bytes) -> None:
        with self._writing:
            self._write(data)

    def _write(self, data: bytes) -> None:
        pipe = self._process.stdin
        assert pipe is not None  # noqa: S101 - opened above
        view = memoryview(data)
        while view:
            if self._broken:
                raise self._lose(self._broken)
            _, ready, _ = select.select([], [pipe], [], PATIENCE.stuck_s)
            if not ready:
                raise self._lose("it takes nothing more")
            try:
                view = view[os.write(pipe.fileno(), view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._lose("ssh has ended") from None

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        if found.get("n") != self._asked:
            raise self._nonsense("an answer to something else")
        if "error" in found:
            raise raised(found["error"])
        return found

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            return parsed(line)
        except (ValueError, RecursionError) as error:
            raise self._nonsense(clean(str(error))[:200]) from error

    def _closed(self) -> EdgekdError:
        return self._lose("it was closed")

    def _lose(self, cause: str) -> Lost:
        self._broken = cause
        mend = (
            f"look at the board and the network between, then give the same command again ({self._words()})"
        )
        return Lost(f"the connection to {self.board.name} was lost", cause=cause, mend=mend)

    def _words(self) -> str:
        return clean(self._errors.decode(errors="replace").strip()[-300:]) or "ssh said nothing"

    def _nonsense(self, cause: str) -> WorkerDied:
        self._broken = cause
        mend = f"look at what runs on {self.board.name}; `edgekd devices clean` starts afresh"
        return WorkerDied(f"{self.board.name} answered nonsense", cause=cause, mend=mend)


def _line(do: str, number: int, fields: Mapping[str, Any]) -> bytes:
    return json.dumps({"do": do, "n": number, **fields}, allow_nan=False).encode() + b"\n"


def _process(board: Board, opening: bytes) -> subprocess.Popen[bytes]:
    arguments = command(board, len(opening), connect_s=PATIENCE.connect_s, persist_s=PATIENCE.persist_s)
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to answer
        )
    except FileNotFoundError as error:
        mend = "install OpenSSH's client"
        raise DeviceError("there is no ssh on this machine", cause=str(error), mend=mend) from error
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None  # noqa: S101 - opened above
        os.set_blocking(pipe.fileno(), False)
    return process
