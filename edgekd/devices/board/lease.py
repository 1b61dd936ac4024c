"""Who may measure on a board: a file that is changed under a lock and counts for nothing once it has expired.

It has two places. A *session* is a connection that measures; it lives by the beats of its host, and is free soon
after those stop. A *hold* is what `edgekd devices lock` asks for: it keeps others out and lets its owner's own
sessions in. Times are those of the board's clock since it started, and another boot makes all of them void.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from edgekd.devices.board.place import Place, read_json, write_fleeting
from edgekd.errors import DeviceError

SESSION_S = 45.0  # longer than the 30 s that a network may stall, shorter than the minute others should wait


def now_s() -> float:
    """Return the seconds since the board started, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def holder(place: Place) -> dict[str, Any] | None:
    """Say who has the board now: `owner`, `why`, and `expires_s` from now; None where it is free."""
    found = _read(place)
    one = found.get("session") or found.get("hold")
    return None if one is None else _shown(one)


def take(place: Place, token: str, owner: str, why: str, before: Callable[[], None]) -> dict[str, Any] | None:
    """Take the board for a session, or take it again; say who has it where that is another.

    The token names the session: only that one may take the board again while it lasts. `before` ends what an
    earlier session left running; it is called once it is clear that the board is ours.
    """
    with place.locked():
        found = _read(place)
        for one in (found.get("session"), found.get("hold")):
            if one is not None and not _lets_in(one, token, owner):
                return _shown(one)
        before()
        _write(place, {**found, "session": _entry(token, owner, why, SESSION_S)})
    return None


def check(place: Place, token: str) -> None:
    """Make sure, under the lock, that a session still has the board.

    Raises:
        DeviceError: it has expired, or another has it.

    """
    session = _read(place).get("session")
    if session is None or session["token"] != token:
        cause = "it expired" if session is None else f"{session['owner']} has the board now"
        mend = "give the same command again"
        raise DeviceError("the lease of the board is lost", cause=cause, mend=mend)


def renew(place: Place, token: str) -> None:
    """Let a session last longer, if it still has the board; never take it again after it was given back."""
    with place.locked():
        found = _read(place)
        session = found.get("session")
        if session is not None and session["token"] == token:
            _write(place, {**found, "session": {**session, "expires_s": now_s() + SESSION_S}})


def give_back(place: Place, token: str) -> None:
    """End a session, if it still has the board."""
    with place.locked():
        found = _read(place)
        session = found.get("session")
        if session is not None and session["token"] == token:
            _write(place, {**found, "session": None})


def hold(place: Place, owner: str, why: str, seconds: float) -> dict[str, Any]:
    """Keep others out for so long, or change how long.

    Raises:
        DeviceError: another has the board.

    """
    with place.locked():
        found = _read(place)
        for one in (found.get("session"), found.get("hold")):
            if one is not None and one["owner"] != owner:
                raise taken(_shown(one))
        entry = _entry("", owner, why, seconds)
        _write(place, {**found, "hold": entry})
    return _shown(entry)


def drop(place: Place, owner: str) -> None:
    """End a hold.

    Raises:
        DeviceError: it is another's.

    """
    with place.locked():
        found = _read(place)
        entry = found.get("hold")
        if entry is not None and entry["owner"] != owner:
            raise taken(_shown(entry))
        _write(place, {**found, "hold": None})


def taken(by: dict[str, Any]) -> DeviceError:
    """Say who has the board and until when."""
    return DeviceError(
        f"{by['owner']} has the board",
        cause=f"{by['why']}; this ends in {by['expires_s']:.0f} s unless it is renewed",
        mend="wait for it (`--wait`), or ask them to let go",
    )


def _lets_in(one: dict[str, Any], token: str, owner: str) -> bool:
    is_hold = not one["token"]
    return bool(one["owner"] == owner if is_hold else one["token"] == token)


def _entry(token: str, owner: str, why: str, seconds: float) -> dict[str, Any]:
    return {"token": token, "owner": owner, "why": why, "expires_s": now_s() + seconds}


def _shown(one: dict[str, Any]) -> dict[str, Any]:
    return {"owner": one["owner"], "why": one["why"], "expires_s": max(0.0, one["expires_s"] - now_s())}


def _read(place: Place) -> dict[str, Any]:
    """Return what has not expired; a file that cannot be read holds nobody."""
    found = read_json(place.path("lease.json"))
    if found.get("boot_id") != place.boot_id():
        return {}
    kinds = ("session", "hold")
    return {kind: found[kind] for kind in kinds if found.get(kind) and found[kind]["expires_s"] > now_s()}


def _write(place: Place, entries: dict[str, Any]) -> None:
    # Every few seconds, also while another process measures; and another boot makes it void.
    text = json.dumps({"boot_id": place.boot_id(), **entries})
    write_fleeting(place.path("lease.json"), text.encode())
