"""The board's end of the connection: a JSON object a line, in both directions, and raw bytes where one says so."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Sequence
from typing import Any

from edgekd.errors import EdgekdError

_LONGEST_BYTES = 16 << 20  # of a line
_CHUNK_BYTES = 1 << 18
_STUCK_S = 120.0  # nobody reads any more


class Gone(Exception):  # noqa: N818 - reads as the fact it states
    """The host is gone, or talks nonsense: there is nobody to tell."""


class Lines:
    """Standard input and a descriptor for replies."""

    def __init__(self, replies: int, buffered: bytes = b"") -> None:
        """Go on with what was read already."""
        self.replies = replies
        self.buffered = buffered
        self.on_bytes: Callable[[], None] = _nothing  # called for every piece of raw bytes that comes in

    def wait(self, seconds: float, others: Sequence[int] = ()) -> bool:
        """Return whether the host has said something, at the latest after so long or when others can be read."""
        if b"\n" in self.buffered:
            return True
        ready, _, _ = select.select([0, *others], [], [], seconds)
        return 0 in ready

    def read(self) -> dict[str, Any]:
        """Read one object.

        Raises:
            Gone: standard input has ended, or holds something else.

        """
        while b"\n" not in self.buffered:
            self._more()
            if len(self.buffered) > _LONGEST_BYTES:
                raise Gone("a line without end")
        line, _, self.buffered = self.buffered.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError as error:
            raise Gone("no JSON") from error
        if not isinstance(found, dict):
            raise Gone("no object")
        return found

    def read_bytes(self, size: int, give: Callable[[bytes], None]) -> None:
        """Read so many raw bytes, and give them on as they come.

        Raises:
            Gone: standard input ended before.

        """
        while size:
            if not self.buffered:
                self._more()
            piece, self.buffered = self.buffered[:size], self.buffered[size:]
            give(piece)
            self.on_bytes()
            size -= len(piece)

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            Gone: nobody reads it.

        """
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self.replies], [], _STUCK_S)
            if not ready:
                raise Gone("nobody reads")
            try:
                view = view[os.write(self.replies, view[:4096]) :]
            except OSError as error:
                raise Gone(str(error)) from error

    def say(self, found: dict[str, Any]) -> None:
        """Write one object."""
        self.write(json.dumps(found, allow_nan=False).encode() + b"\n")

    def _more(self) -> None:
        piece = os.read(0, _CHUNK_BYTES)
        if not piece:
            raise Gone("the host has closed the connection")
        self.buffered += piece


def told(error: EdgekdError) -> dict[str, Any]:
    """Put an error in plain words for the other end."""
    return {"kind": type(error).__name__, "what": error.what, "cause": error.cause, "mend": error.mend}


def _nothing() -> None:
    return None
