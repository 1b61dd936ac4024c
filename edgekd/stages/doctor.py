"""Examine this machine: what a run needs, what would spoil a measurement, and which runtimes really work."""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edgekd.devices import Device
from edgekd.devices.restoring import sudoers
from edgekd.values.conditions import Conditions
from edgekd.values.order import RuntimeHealth

_DISK_GIB = 2.0  # what a run on 60,000 images leaves behind
_MEMORY_GIB = 1.5  # what `tools/run` peaks at, and some air
_BUSY_PER_CORE = 0.3  # load average above which latencies of several launches disagree
_REQUIREMENT = re.compile(r"^[A-Za-z0-9._-]+")


class Grade(Enum):
    """How an examination ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    grade: Grade
    value: str
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Everything `edgekd doctor` found."""

    findings: tuple[Finding, ...]
    packages: dict[str, str]  # name -> version; empty where it is not installed
    runtimes: tuple[RuntimeHealth, ...]
    conditions: Conditions
    sudoers: tuple[
        str, ...
    ] = ()  # lines that let --tune run here; none where it may, or nothing can be tuned
    schema_version: int = 1

    @property
    def healthy(self) -> bool:
        """Whether a run can work at all: one runtime that computes what numpy does."""
        return any(health.works for health in self.runtimes)


def doctor(device: Device, folder: Path, *, root: Path = Path("/")) -> Examination:
    """Examine the machine, and run a real inference on each of the device's runtimes.

    Args:
        device: connected with every runtime to look at as its target.
        folder: where results would be written.
        root: of the file system that describes the machine.

    """
    reply = device.probe()
    packages = _packages()
    findings = (
        _python(),
        _cores(reply.conditions, root),
        _memory(root),
        _disk(folder),
        governor(reply.conditions),
        load(reply.conditions),
        _installed(packages),
        *tuning(allowed=reply.may_tune),
    )
    return Examination(
        findings=findings,
        packages=packages,
        runtimes=reply.runtimes,
        conditions=reply.conditions,
        sudoers=sudoers(getpass.getuser()) if reply.may_tune is False else (),
    )


def tuning(*, allowed: bool | None) -> tuple[Finding, ...]:
    """Say whether --tune may hold the clocks, where there are any to hold; that it may not spoils nothing."""
    if allowed is None:
        return ()
    value = "sudo allows what it runs" if allowed else "sudo does not allow what it runs"
    mend = "" if allowed else "if you want it, add the lines below there"
    return (Finding(name="--tune", grade=Grade.GOOD, value=value, mend=mend),)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores this process's control group may use, cgroup v2 or v1; None without a limit."""
    quotas = [quota for folder in _groups(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's group and all above it, as a host or a container sees them."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" or "cpu" in controllers.split(","):
                base = root / "sys/fs/cgroup" / ("" if number == "0" else "cpu")
                group = base / path.strip("/")
                yield from (place for place in (group, *group.parents) if place.is_relative_to(base))


def _quota_of(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period) if quota != "max" else None
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota_us / period_us if quota_us > 0 else None
    return None


def _python() -> Finding:
    return Finding(name="Python", grade=Grade.GOOD, value=platform.python_version())


def _cores(conditions: Conditions, root: Path) -> Finding:
    cores, quota = conditions.hardware.cores, cpu_quota(root)
    if quota is not None and quota < cores:
        return Finding(
            name="cores",
            grade=Grade.WARNING,
            value=f"{cores}, but the container may use {quota:g} of them",
            mend="give it whole cores (`docker run --cpuset-cpus`): a quota stops threads in mid-inference",
        )
    return Finding(name="cores", grade=Grade.GOOD, value=f"{cores} ({conditions.hardware.processor})")


def _memory(root: Path) -> Finding:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest}
        total_gib, free_gib = kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    except (OSError, KeyError, ValueError, IndexError):
        return Finding(name="memory", grade=Grade.WARNING, value="unknown")
    value = f"{free_gib:.1f} of {total_gib:.1f} GiB free"
    if free_gib < _MEMORY_GIB:
        return Finding(
            name="memory", grade=Grade.WARNING, value=value, mend=f"free {_MEMORY_GIB:g} GiB for a run"
        )
    return Finding(name="memory", grade=Grade.GOOD, value=value)


def _disk(folder: Path) -> Finding:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free_gib = shutil.disk_usage(there).free / 2**30
    value = f"{free_gib:.1f} GiB free at {there}"
    if not os.access(there, os.W_OK):
        mend = "give another folder with --out"
        return Finding(name="disk", grade=Grade.BAD, value=f"{there} cannot be written to", mend=mend)
    if free_gib < _DISK_GIB:
        mend = f"free {_DISK_GIB:g} GiB, or give a --out on another disk"
        return Finding(name="disk", grade=Grade.WARNING, value=value, mend=mend)
    return Finding(name="disk", grade=Grade.GOOD, value=value)


def governor(conditions: Conditions) -> Finding:
    """Say whether the processor keeps its clock."""
    found = conditions.software.governor
    if found in ("performance", "unknown"):
        value = found if found != "unknown" else "not visible here (usual on virtual machines)"
        return Finding(name="CPU governor", grade=Grade.GOOD, value=value)
    mend = "`sudo cpupower frequency-set -g performance` for steadier latencies"
    return Finding(name="CPU governor", grade=Grade.WARNING, value=found, mend=mend)


def load(conditions: Conditions) -> Finding:
    """Say whether other processes are at work."""
    average, cores = conditions.load.load_average, conditions.hardware.cores
    if average > _BUSY_PER_CORE * cores:
        mend = "stop what else is running before you measure"
        return Finding(name="load", grade=Grade.WARNING, value=f"{average:.2f} on {cores} cores", mend=mend)
    return Finding(name="load", grade=Grade.GOOD, value=f"{average:.2f} on {cores} cores")


def _packages() -> dict[str, str]:
    """Return the versions of what edgekd itself requires, as its metadata names it."""
    try:
        requirements = importlib.metadata.requires("edgekd") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        requirements = []
    wanted = [text for text in requirements if "extra ==" not in text and "python_version <" not in text]
    names = [found.group() for text in wanted if (found := _REQUIREMENT.match(text))]
    return {name: _version(name) for name in ("edgekd", *names)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _installed(packages: dict[str, str]) -> Finding:
    if not packages["edgekd"]:
        mend = "`python -m pip install -e .` there, so that its requirements are looked at too"
        return Finding(name="packages", grade=Grade.WARNING, value="edgekd runs from a checkout", mend=mend)
    absent = sorted(name for name, version in packages.items() if not version)
    if absent:
        mend = f"python -m pip install {' '.join(absent)}"
        return Finding(name="packages", grade=Grade.BAD, value=f"absent: {', '.join(absent)}", mend=mend)
    return Finding(name="packages", grade=Grade.GOOD, value=f"{len(packages)} of {len(packages)} installed")
