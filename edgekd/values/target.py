"""What a student is made for: a device, its runtimes and their settings."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.values.model import Precision


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A hardware profile as `hardware_profiles/*.toml` holds it."""

    name: str
    description: str
    runtimes: dict[str, tuple[Precision, ...]]  # runtime -> precisions worth trying there
    threads: int = 1
    memory_mib: int = 4096  # a build or an inference may use at most this much
    build_timeout_s: float = 300.0
    traps: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # where the numbers above come from


@dataclass(frozen=True, kw_only=True)
class Target:
    """A profile with the job's choices applied."""

    profile: Profile
    device: str  # "local", or a name from `edgekd devices`
    runtimes: tuple[str, ...]
    threads: int
    tune: str = ""  # "clocks": hold them; else a power mode, by name or number, whose clocks are held; empty: as it is
    wait_s: float = 0.0  # for another's measurement on the device to end; changes no result
    record: str = ""  # file that the session with the device is written into; changes no result
