"""The power mode and clocks of a board while a session has it: set when it comes, put back when it goes or is gone."""

from __future__ import annotations

import contextlib
import time

from edgekd.devices.board.place import Place, write_fleeting
from edgekd.devices.restoring import beat, mend, pending_mark
from edgekd.devices.tuning import apply, mode_of, prepared

_SESSION = "tuning.session"  # the token of the session that has tuned the board
_BEATS_A_PATIENCE = 6
_LEAST_S, _MOST_S = 1.0, 60.0  # that a board may stay tuned without a sign of the host


class Tuner:
    """Tunes the board for one session, which may come back on another connection."""

    def __init__(self, place: Place) -> None:
        """Change nothing yet."""
        self._place = place
        self._tune, self._token = "", ""
        self._patience_s = self._beaten = 0.0

    def take(self, token: str, tune: str, patience_s: float) -> None:
        """Put back what another session left, and tune the board where this one asks for it.

        Raises:
            DeviceError: it cannot be set, or what is pending cannot be put back.
            ConfigError: the board has no such power mode.

        """
        self._tune, self._token = tune, token
        if not tune or not self._ours():
            mend(self._place.root)
        self._patience_s = min(max(patience_s, _LEAST_S), _MOST_S)
        self.keep()

    def keep(self) -> None:
        """Keep it tuned before an order begins; again where the host was silent for so long that it was put back.

        Raises:
            DeviceError: it cannot be set.

        """
        if not self._tune:
            return
        root = self._place.root
        beat(root)
        if pending_mark(root) is None:
            write_fleeting(self._place.path(_SESSION), self._token.encode())
            apply(prepared(root, mode=mode_of(self._tune)), root, patience_s=self._patience_s)

    def beat(self) -> None:
        """Tell the watchdog that the host is there."""
        now = time.monotonic()
        if self._tune and now - self._beaten > self._patience_s / _BEATS_A_PATIENCE and self._ours():
            self._beaten = now
            beat(self._place.root)

    def end(self) -> None:
        """Put the board back.

        Raises:
            DeviceError: it cannot be; the watchdog goes on trying.

        """
        if self._tune and self._ours():
            mend(self._place.root)
        self._tune = ""

    def _ours(self) -> bool:
        """Whether it was this session that tuned it: another may have the board by now."""
        with contextlib.suppress(OSError):
            return self._place.path(_SESSION).read_text(encoding="ascii") == self._token
        return False
