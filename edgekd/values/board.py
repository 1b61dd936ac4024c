"""Another machine that a user owns: how it is reached, what it said of itself, and who measures on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.values.conditions import Conditions
from edgekd.values.order import RuntimeHealth


@dataclass(frozen=True, kw_only=True)
class Board:
    """A machine behind SSH, as `edgekd devices add` wrote it down."""

    name: str
    destination: str  # user@host, host, or an alias of the user's SSH configuration
    port: int | None = None  # None: what the SSH configuration says
    python: str = "python3"  # there
    folder: str = ".cache/edgekd"  # there, below the home folder unless absolute; everything lies in it
    known_hosts: Path | None = None  # edgekd's own, asked beside the user's
    fingerprint: str = ""  # of the host key that was shown at `add`: SHA256:...
    profile: str = ""  # the hardware profile that fits it; empty where none was chosen


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who may measure on a board, and until when."""

    owner: str  # user@host of the one who asked
    why: str
    expires_s: float  # from now, by the board's own monotonic clock


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a board says of itself before anything is copied to it or after."""

    boot_id: str
    python: str  # version
    machine: str  # x86_64, aarch64
    numpy: str  # version; empty where it is missing
    free_mib: int
    worker: str  # digest of the worker that lies there; empty where none does
    used_mib: float  # of its folder
    lease: Lease | None
    conditions: Conditions | None = None  # once the worker runs there
    runtimes: tuple[RuntimeHealth, ...] = ()
