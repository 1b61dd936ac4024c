"""A session of a host on a board: files in, orders to processes of their own, replies out.

It dies with its connection and takes nothing along: orders run on, and a later session finds them by their ids.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from edgekd.devices.board import jobs, lease
from edgekd.devices.board.files import Files, digest
from edgekd.devices.board.job import carry_out
from edgekd.devices.board.lines import Gone, Lines, told
from edgekd.devices.board.place import Place, cannot_write
from edgekd.devices.board.tuner import Tuner
from edgekd.errors import DeviceError, EdgekdError, IntegrityError, UsageError

_BEAT_S = 2.0  # how often the host hears that an order is still running
_LOOK_S = 0.25  # how often one is looked for that another connection began
_IDLE_S = 180.0  # a host says something every few seconds
_RENEW_S = 5.0
_CHUNK_BYTES = 1 << 20


def serve(root: str, replies: int, buffered: bytes, asked: int) -> None:
    """Go on where first contact has ended, with the answer to order number `asked`, until the host is gone."""
    lines = Lines(replies, buffered)
    lines.say({"n": asked, "ready": True})
    with contextlib.suppress(Gone):
        Agent(Place(root), lines).run()


class Agent:
    """One host's session; at most one order of it is waited for at a time."""

    def __init__(self, place: Place, lines: Lines) -> None:
        """Do nothing yet; the host has to take the board first."""
        self._place, self._lines = place, lines
        self._files = Files(place)
        self._tuner = Tuner(place)
        self._token = ""
        self._waiting: jobs.Running | None = None
        self._asked = 0  # number of the host's order that is waited for
        self._beaten = self._renewed = self._heard = time.monotonic()
        lines.on_bytes = self._renew
        self._handlers = {
            "take": self._take,
            "has": self._has,
            "put": self._put,
            "order": self._order,
            "fetch": self._fetch,
        }

    def run(self) -> None:
        """Answer until the host leaves.

        Raises:
            Gone: it left without a word.

        """
        while True:
            if self._lines.wait(self._patience_s(), self._done()):
                asked = self._lines.read()
                self._heard = time.monotonic()
                if asked.get("do") == "leave":
                    self._lines.say({"n": asked["n"], **self._leave()})
                    return
                self._answer(asked)
            elif time.monotonic() - self._heard > _IDLE_S:
                return
            self._look()

    def _patience_s(self) -> float:
        if self._waiting is None:
            return _BEAT_S * 5
        return _LOOK_S if self._waiting.done is None else _BEAT_S

    def _done(self) -> list[int]:
        """Return what can be read once the order is done, where that can be known."""
        if self._waiting is None or self._waiting.done is None:
            return []
        return [self._waiting.done]

    def _answer(self, asked: dict[str, Any]) -> None:
        if asked["do"] == "beat":
            self._renew()
            return
        if asked["do"] == "forget":  # nobody waits for that
            with contextlib.suppress(EdgekdError, OSError):
                jobs.forget(self._place, asked["id"])
            return
        try:
            if asked["do"] not in self._handlers:
                raise UsageError(f"the board does not know {asked['do']!r}")
            found = self._handlers[asked["do"]](asked)
        except EdgekdError as error:
            found = {"error": told(error)}
        except OSError as error:
            found = {"error": told(cannot_write(self._place, error))}
        if found is not None:
            self._lines.say({"n": asked["n"], **found})

    def _take(self, asked: dict[str, Any]) -> dict[str, Any]:
        token = digest(asked["token"])

        def clear() -> None:
            jobs.end_all(self._place, f"its lease had expired, and {asked['owner']} took the board", token)
            jobs.drop_old(self._place)
            self._files.drop_unfinished()

        by = lease.take(self._place, token, asked["owner"], asked["why"], clear)
        if by is None:
            self._tune(token, asked)
            self._token = token
        return {"busy": by}

    def _tune(self, token: str, asked: dict[str, Any]) -> None:
        """Not under the lease's lock, for which others wait: a board may take seconds to change its clocks."""
        try:
            self._tuner.take(token, asked["tune"], asked["tuned_s"])
        except EdgekdError:
            lease.give_back(self._place, token)
            raise
        lease.renew(self._place, token)

    def _has(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"missing": self._files.missing(asked["files"])}

    def _put(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._files.receive(asked["sha256"], asked["size"], self._lines)
        return {}

    def _order(self, asked: dict[str, Any]) -> None:
        if self._waiting is not None:
            raise UsageError("the board waits for an order of this session already")
        if asked["boot_id"] != self._place.boot_id():
            raise DeviceError("the board was restarted", mend="give the same command again")
        lease.check(self._place, self._token)
        self._tuner.keep()
        place = self._place

        def run(folder: Path, order: dict[str, Any]) -> None:
            carry_out(place, folder, order)

        self._waiting = jobs.begin(jobs.Job(place=place, token=self._token, asked=asked, run=run))
        self._asked = asked["n"]
        self._beaten = 0.0

    def _fetch(self, asked: dict[str, Any]) -> None:
        """Answer with a size and so many raw bytes."""
        path = self._place.path("orders", digest(asked["id"]), "out", digest(asked["sha256"]))
        if not path.is_file():
            raise IntegrityError(
                "what the order made is no longer on the board", mend="give the command again"
            )
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            self._lines.say({"n": asked["n"], "size": left})
            while left:
                piece = file.read(min(left, _CHUNK_BYTES))
                if not piece:  # it was promised and is gone: there is no way to say so but to hang up
                    raise Gone("a file has shrunk")
                self._lines.write(piece)
                self._renew()
                left -= len(piece)

    def _leave(self) -> dict[str, Any]:
        """Give the board back as it was; say so where its clocks could not be put back."""
        if not self._token:
            return {}
        jobs.end_own(self._place, self._token)
        try:
            self._tuner.end()
        except EdgekdError as error:
            return {"error": told(error)}
        finally:
            lease.give_back(self._place, self._token)
        return {}

    def _look(self) -> None:
        """Hand on a reply that is there, or say that there is none yet."""
        if self._waiting is None:
            return
        id_ = self._waiting.id
        try:
            found = jobs.reply(self._place, id_)
        except EdgekdError as error:
            lost = {"id": id_, "boot_id": self._place.boot_id(), "error": told(error)}
            found = json.dumps(lost).encode()
        if found is not None:
            self._stop_waiting()
            self._lines.write(b'{"n": %d, "done": %s}\n' % (self._asked, found))
        elif time.monotonic() - self._beaten > _BEAT_S * 0.9:
            self._beaten = time.monotonic()
            self._lines.say({"beat": True})

    def _stop_waiting(self) -> None:
        if self._waiting is not None and self._waiting.done is not None:
            os.close(self._waiting.done)
        self._waiting = None

    def _renew(self) -> None:
        """Every sign of life of the host keeps its lease alive."""
        now = time.monotonic()
        self._tuner.beat()
        if self._token and now - self._renewed > _RENEW_S * 0.9:
            self._renewed = now
            lease.renew(self._place, self._token)
