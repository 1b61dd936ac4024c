"""The machine that this process runs on, tuned for as long as a device of it is entered: one session at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekd.devices.restoring import mend, pending_mark
from edgekd.devices.tuning import mode_of, prepared, tuned
from edgekd.errors import DeviceError

_SESSION = "tuning.session"


def state_folder() -> Path | None:
    """Return where this user keeps what has to be put back on this machine; None where the user has no home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    with suppress(RuntimeError):
        return (state if state.is_absolute() else Path.home() / ".local" / "state") / "edgekd"
    return None


@contextmanager
def tuned_here(tune: str, folder: Path | None) -> Iterator[None]:
    """Put back what a session before left, and tune this machine, where asked, until the context is left.

    Args:
        tune: of a `Target`.
        folder: of `state_folder`.

    Raises:
        DeviceError: another session has tuned it, it cannot be set, or what is pending cannot be put back.
        ConfigError: it has no such power mode.

    """
    if not tune:
        if folder is not None and pending_mark(folder) is not None:
            with _alone(folder) as alone:
                if alone:  # else it is tuned by a session that lives
                    mend(folder)
        yield
        return
    if folder is None:
        cause = "there is no home folder to write down in what has to be put back"
        raise DeviceError("this machine is not tuned", cause=cause, mend="set HOME, or XDG_STATE_HOME")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder) as alone:
        if not alone:
            raise DeviceError(
                "another session has set the power mode and clocks here", mend="wait until it has ended"
            )
        with tuned(prepared(folder, mode=mode_of(tune)), folder):
            yield


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    with (folder / _SESSION).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
