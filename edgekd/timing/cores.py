"""Keep a process on one core, so that what is compared with it there meets the same neighbours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_THREADS = Path("/proc/self/task")


def stay_on(number: int) -> None:
    """Keep this process's threads, and those they start, on one of the fastest cores it may use, counted around.

    Does nothing where the system cannot be asked for that.
    """
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        return
    candidates = fastest(os.sched_getaffinity(0))
    for thread in _THREADS.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), {candidates[number % len(candidates)]})


def fastest(cores: Iterable[int], root: Path = _CPUS) -> list[int]:
    """Return those cores whose capacity is the largest: all of them where the kernel tells of no difference.

    A scheduler gives a busy thread of a big.LITTLE processor one of these.
    """
    capacity = {core: _capacity(root / f"cpu{core}" / "cpu_capacity") for core in sorted(cores)}
    most = max(capacity.values())
    return [core for core, one in capacity.items() if one == most]


def _capacity(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
