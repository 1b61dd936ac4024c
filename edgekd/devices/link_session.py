"""A session on a board: connect, copy the worker, take the lease; then orders that outlive their connections."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from edgekd.devices import link as links
from edgekd.devices.board.orders import Made
from edgekd.devices.link import Link
from edgekd.devices.link_files import Luggage
from edgekd.devices.link_words import Lost, clean, raised
from edgekd.devices.parcel import parcel
from edgekd.errors import DeviceError, EdgekdError, IntegrityError, WorkerDied
from edgekd.values.board import Board, Lease
from edgekd.values.codec import decode

T = TypeVar("T")

_LONGEST_PAUSE_S = 5.0
_ASK_AGAIN_S = 1.0  # whether a board is free
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Ask:
    """An order: what it says, the files it needs, and what its reply may be at most."""

    name: str
    body: Any  # plain data; an artifact's path is a name in its luggage
    luggage: Luggage
    most_bytes: int
    most_s: float


class Session:
    """The board is ours from `open` to `close`, as long as the connection can be made again in time."""

    def __init__(self, board: Board, why: str, *, wait_s: float, tune: str = "") -> None:
        """Connect to nothing yet; `tune` is that of a `Target`."""
        self._board, self._why, self._wait_s, self._tune = board, why, wait_s, tune
        self._token = secrets.token_hex(16)
        self._link: Link | None = None
        self._there: set[str] = set()  # files that the board has, as it said on this connection
        self._sent_bytes = 0  # on connections that are gone
        self._closed = threading.Event()

    @property
    def sent_bytes(self) -> int:
        """Bytes of files, and of the worker, that were copied to the board."""
        return self._sent_bytes + (self._link.sent_bytes if self._link else 0)

    def open(self) -> None:
        """Connect, copy the worker if it is not there, and take the lease.

        Raises:
            DeviceError: the board cannot be reached, or another measures there.
            IntegrityError: its host key is another.

        """
        self._link = self._connected(again=False)
        threading.Thread(target=self._beat, name="edgekd-beat", daemon=True).start()

    def close(self) -> None:
        """Give the board back and hang up; an order that still runs is ended."""
        self._closed.set()
        if self._link is not None:
            self._link.leave()
            self._hang_up(self._link)

    def order(self, ask: Ask) -> tuple[str, Any]:
        """Carry out an order once, however often the connection breaks; return its id and the plain reply.

        Raises:
            EdgekdError: whatever the order raised on the board.
            DeviceError: the board was restarted meanwhile, or stays out of reach.

        """
        id_ = secrets.token_hex(16)
        boots: list[str] = []  # of the connections that it was sent on

        def once(link: Link) -> dict[str, Any]:
            boots.append(_boot_id(link))
            if boots[0] != boots[-1]:
                raise _restarted(self._board)
            self._put(link, ask.luggage.sources)
            files = {"files": ask.luggage.views, "alone": ask.luggage.alone}
            link.tell("order", id=id_, boot_id=boots[0], order=ask.name, body=ask.body, **files)
            return _whole(self._board, link.outcome(ask.most_bytes, ask.most_s), id_, boots[0])

        done = self._surely(once)
        if "error" in done:
            self.forget(id_)
            raise raised(done["error"])
        return id_, done.get("reply")

    def fetch(self, id_: str, made: Made, path: Path, most_bytes: int) -> None:
        """Copy what an order made to a file here.

        Raises:
            IntegrityError: it is not what the order's reply named.
            WorkerDied: it is larger than it may be.

        """

        def once(link: Link) -> None:
            size = link.ask("fetch", id=id_, sha256=made.sha256).get("size")
            if size != made.size_bytes or not 0 <= made.size_bytes <= most_bytes:
                raise _too_large(self._board, f"{size} bytes, for {made.size_bytes} that may be {most_bytes}")
            _receive(link, made, path)

        self._surely(once)

    def forget(self, id_: str) -> None:
        """Tell the board that an order's reply is here; if that gets lost, it forgets by itself later."""
        if self._link is not None and not self._link.broken:
            try:
                self._link.tell("forget", id=id_)
            except Lost:
                self._hang_up(self._link)

    def _surely(self, do: Callable[[Link], T]) -> T:
        """Do something on a connection, and again on another where that one breaks."""
        for tried in range(links.PATIENCE.losses):
            with contextlib.suppress(Lost):
                return self._once(do, again=tried > 0)
        return self._once(do, again=True)

    def _once(self, do: Callable[[Link], T], *, again: bool) -> T:
        try:
            return do(self._linked(again=again))
        except Lost:
            if self._link is not None:
                self._link.abandon()
                self._hang_up(self._link)
            raise
        except WorkerDied:
            if self._link is not None and self._link.broken:  # nonsense: nothing after it can be trusted
                self._hang_up(self._link)
            raise

    def _linked(self, *, again: bool) -> Link:
        if self._link is None or self._link.broken:
            if self._link is not None:
                self._hang_up(self._link)
                again = True
            self._link = self._connected(again=again)
        return self._link

    def _connected(self, *, again: bool) -> Link:
        """Return a connection on which the board is ours; where one was lost, try for as long as patience has it."""
        deadline, pause_s = time.monotonic() + links.PATIENCE.resume_s, links.PATIENCE.pause_s
        while again and time.monotonic() < deadline:
            with contextlib.suppress(Lost):
                return self._arrived()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        try:
            return self._arrived()
        except Lost as lost:  # it is not lost again: it was never there
            raise DeviceError(lost.what, cause=lost.cause, mend=lost.mend) from lost

    def _arrived(self) -> Link:
        link = Link(self._board)
        try:
            self._there = set()
            start_worker(link)
            self._take_surely(link)
        except BaseException as error:
            self._sent_bytes += link.sent_bytes
            if isinstance(error, Lost):
                link.abandon()
            link.close()
            raise
        return link

    def _take_surely(self, link: Link) -> None:
        """Take the lease; who is interrupted meanwhile cannot know whether it was given, and gives it back."""
        try:
            self._take(link, time.monotonic() + self._wait_s)
        except EdgekdError:
            raise
        except BaseException:
            link.leave()
            raise

    def _take(self, link: Link, deadline: float) -> None:
        while True:
            asked = {"token": self._token, "owner": owner(), "why": self._why}
            tuning = {"tune": self._tune, "tuned_s": links.PATIENCE.tuned_s}
            busy = link.ask("take", **asked, **tuning).get("busy")
            if busy is None:
                return
            if time.monotonic() >= deadline:
                raise taken(self._board, lease_from(self._board, busy))
            time.sleep(min(_ASK_AGAIN_S, max(0.0, deadline - time.monotonic())))

    def _put(self, link: Link, sources: Mapping[str, Path]) -> None:
        """Copy the files that the board does not have."""
        wanted = set(sources) - self._there
        if not wanted:
            return
        missing = link.ask("has", files=sorted(wanted)).get("missing")
        if not isinstance(missing, list) or not wanted.issuperset(map(str, missing)):
            raise WorkerDied(
                f"{self._board.name} answered nonsense", cause="it lacks files it was not asked for"
            )
        for sha256 in map(str, missing):
            _send(link, sha256, sources[sha256])
        self._there |= wanted

    def _hang_up(self, link: Link) -> None:
        self._sent_bytes += link.sent_bytes
        link.close()
        if self._link is link:
            self._link = None

    def _beat(self) -> None:
        while not self._closed.wait(links.PATIENCE.beat_s):
            if (link := self._link) is not None and not link.broken:
                link.beat()


def start_worker(link: Link) -> None:
    """Let the worker take over at the far end, after copying it if it is not there as it should be.

    Raises:
        IntegrityError: it does not arrive as it was sent.
        DeviceError: it does not start.

    """
    own = parcel()
    if link.ask("work", digest=own.digest).get("ready") is True:
        return
    left = [own.data]
    link.give("install", len(own.data), lambda: left.pop() if left else b"", digest=own.digest)
    if link.ask("work", digest=own.digest).get("ready") is not True:
        mend = "look at the board's disk and memory"
        raise IntegrityError(f"the worker on {link.board.name} is not what was copied", mend=mend)


def owner() -> str:
    """Name who asks: user@host."""
    return clean(f"{getpass.getuser()}@{socket.gethostname()}")[:200]


def lease_from(board: Board, data: Any) -> Lease:
    """Read a lease that a board tells of.

    Raises:
        WorkerDied: it is none.

    """
    try:
        return decode(Lease, data, "lease")
    except EdgekdError as error:
        raise WorkerDied(f"{board.name} answered nonsense", cause=str(error)[:500]) from error


def taken(board: Board, lease: Lease) -> DeviceError:
    """Say who has a board and until when."""
    return DeviceError(
        f"{lease.owner} has {board.name}",
        cause=f"{lease.why}; this ends in {lease.expires_s:.0f} s unless it is renewed",
        mend="wait for it (`--wait`), or ask them to let go",
    )


def _send(link: Link, sha256: str, path: Path) -> None:
    found = hashlib.sha256()

    def piece(file: BinaryIO) -> bytes:
        data = file.read(_CHUNK_BYTES)
        found.update(data)
        return data

    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            link.give("put", size, lambda: piece(file), sha256=sha256)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", mend="run the stage that makes it again") from error
    except IntegrityError as error:
        if found.hexdigest() == sha256:
            raise
        mend = "delete it and run the stage that makes it again"
        cause = f"its sha256 is not {sha256[:16]}…"
        raise IntegrityError(f"{path} is not the file that was recorded", cause=cause, mend=mend) from error


def _receive(link: Link, made: Made, path: Path) -> None:
    """Write a file whole, or not at all."""
    found, unfinished = hashlib.sha256(), path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:

            def keep(piece: bytes) -> None:
                found.update(piece)
                file.write(piece)

            link.take(made.size_bytes, keep)
        if found.hexdigest() != made.sha256:
            cause = f"its sha256 is {found.hexdigest()[:16]}…, not {made.sha256[:16]}…"
            mend = "give the same command again"
            raise IntegrityError(
                f"{path.name} did not arrive as {link.board.name} made it", cause=cause, mend=mend
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _whole(board: Board, found: Mapping[str, Any], id_: str, boot_id: str) -> dict[str, Any]:
    """Return a reply that is this order's, from the boot that it was sent to."""
    done = found.get("done")
    if not isinstance(done, dict) or done.get("id") != id_ or not {"reply", "error"} & set(done):
        raise WorkerDied(f"{board.name} answered nonsense", cause="a reply to no order of ours")
    if done.get("boot_id") != boot_id:
        raise _restarted(board)
    return done


def _boot_id(link: Link) -> str:
    return str(link.greeting.get("boot_id"))[:64]


def _restarted(board: Board) -> DeviceError:
    return DeviceError(
        f"{board.name} was restarted while it worked on an order",
        cause="what it had measured is not used",
        mend="give the same command again",
    )


def _too_large(board: Board, cause: str) -> WorkerDied:
    return WorkerDied(f"{board.name} made a file larger than this can be", cause=cause)
