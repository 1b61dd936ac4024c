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
    ssh_config: Path | None = None  # read instead of the user's SSH configuration; None: the user's
    machine: str = ""  # what it was when it was last looked at, such as "aarch64, 6 cores, 7.4 GiB"
    conditions: str = ""  # fingerprint of its conditions then; empty where no worker has run there
    seen: str = ""  # when that was; UTC, ISO 8601


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
    clock_s: float | None = None  # seconds since 1970 by its clock
    model: str = ""  # of the board, as its firmware names it: "Raspberry Pi 5 Model B Rev 1.0"
    release: str = ""  # of a Jetson's system: the first line of /etc/nv_tegra_release
    conditions: Conditions | None = None  # once the worker runs there
    runtimes: tuple[RuntimeHealth, ...] = ()
