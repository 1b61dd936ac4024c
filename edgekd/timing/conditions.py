"""Read what changes a latency: the machine, its software, and what else runs on it, from /proc and /sys.

Needs the standard library only. What a system does not tell is left at "unknown", None or zero.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from edgekd.timing.boards import read_board
from edgekd.timing.sensors import Gauges, Sensed, Sensors, gauges
from edgekd.values.conditions import Conditions, Hardware, Load, Software

# What decides which kernels a runtime picks: /proc/cpuinfo's names, x86 and Arm.
_FEATURES = {
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
}  # fmt: skip
_RUNTIMES = (
    "onnxruntime",
    "openvino",
    "tensorrt",
)  # all of them, so that every worker here has one fingerprint
_CGROUPS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_IDLE, _IOWAIT, _STEAL, _GUEST = 3, 4, 7, 8  # columns of a cpu line in /proc/stat


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Counters at one moment; two of them make a load."""

    wall_s: float
    busy_s: float  # of the processors this process may use, all processes, without steal
    steal_s: float
    own_s: float  # CPU time of this process
    involuntary_switches: int
    sensed: Sensed = field(default_factory=Sensed)


def read_counters() -> Reading:
    """Read the counters now; costs about 35 us on a 2-core machine."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    stat = _stat()
    busy_s, steal_s = _processor_times(stat[0].text() if stat else "", _watched())
    return Reading(
        wall_s=time.monotonic(),
        busy_s=busy_s,
        steal_s=steal_s,
        own_s=own.ru_utime + own.ru_stime,
        involuntary_switches=own.ru_nivcsw,
        sensed=_sensors().read(),
    )


def load_between(before: Reading, after: Reading, throttles: int = 0) -> Load:
    """Return what the rest of the machine did between two readings; `throttles` are those that a session counted."""
    wall_s = max(after.wall_s - before.wall_s, 1e-9)
    # The kernel counts in ticks of 10 ms: over one short block this is coarse, over many it averages out.
    others_s = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s))
    old, new = before.sensed, after.sensed
    events = throttles + max(0, new.throttles - old.throttles)
    temperatures = [one.temperature_c for one in (old, new) if one.temperature_c is not None]
    return Load(
        load_average=os.getloadavg()[0],
        others_percent=round(100 * others_s / wall_s, 1),
        steal_percent=round(100 * max(0.0, after.steal_s - before.steal_s) / wall_s, 1),
        involuntary_switches=after.involuntary_switches - before.involuntary_switches,
        throttled=events or int(old.held_back or new.held_back),  # slow at either end of a block is once
        quota_ms=max(0.0, new.quota_ms - old.quota_ms),
        memory_pressure_percent=max(old.memory_pressure_percent, new.memory_pressure_percent),
        clock_mhz=new.clocks_mhz[0] if new.clocks_mhz else None,
        lowest_mhz=min((*old.clocks_mhz, *new.clocks_mhz), default=None),
        highest_mhz=max((*old.clocks_mhz, *new.clocks_mhz), default=None),
        temperature_c=max(temperatures, default=None),
        temperature_rise_c=max(temperatures) - min(temperatures) if temperatures else 0.0,
        governor=new.governor,
        governor_changed=old.governor != new.governor,
    )


def over_blocks(loads: Sequence[Load], lengths: Sequence[float]) -> Load:
    """Put the loads of blocks together: what others did weighted by the blocks' lengths, extremes as extremes."""
    total = sum(lengths) or 1
    temperatures = [load.temperature_c for load in loads if load.temperature_c is not None]
    coolest = [
        load.temperature_c - load.temperature_rise_c for load in loads if load.temperature_c is not None
    ]
    governors = {load.governor for load in loads}
    return replace(
        loads[-1],
        others_percent=sum(length * load.others_percent for length, load in zip(lengths, loads)) / total,
        steal_percent=sum(length * load.steal_percent for length, load in zip(lengths, loads)) / total,
        involuntary_switches=sum(load.involuntary_switches for load in loads),
        throttled=sum(load.throttled for load in loads),
        quota_ms=sum(load.quota_ms for load in loads),
        memory_pressure_percent=max(load.memory_pressure_percent for load in loads),
        lowest_mhz=min((load.lowest_mhz for load in loads if load.lowest_mhz is not None), default=None),
        highest_mhz=max((load.highest_mhz for load in loads if load.highest_mhz is not None), default=None),
        temperature_c=max(temperatures, default=None),
        temperature_rise_c=max(temperatures) - min(coolest) if temperatures else 0.0,
        governor_changed=len(governors) > 1 or any(load.governor_changed for load in loads),
    )


@cache
def hardware() -> Hardware:
    """Return the machine as this process may use it."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cpuinfo = _text(Path("/proc/cpuinfo"))
    return Hardware(
        machine=platform.machine(),
        processor=_processor_name(cpuinfo) or platform.processor() or "unknown",
        cores=cores(),
        memory_mib=pages >> 20,
        features=_features(cpuinfo),
    )


@cache
def software() -> Software:
    """Return the system and the versions of the runtimes installed."""
    versions = {name: _version(name) for name in _RUNTIMES}
    board = read_board()
    governor = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip()
    return Software(
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        runtimes={name: version for name, version in versions.items() if version},
        governor=governor or "unknown",
        power=board.fingerprint_part if board else "",
    )


def take_stock() -> None:
    """Look at the whole machine once, before this process keeps to one core of it."""
    hardware()
    _watched()
    _sensors()


def conditions(load: Load) -> Conditions:
    """Put a load together with the machine and its software."""
    return Conditions(hardware=hardware(), software=software(), load=load)


def cores() -> int:
    """Count the processors this process may use at once: affinity and the container's quota."""
    quota = min((_quota(path) for path in _CGROUPS), default=math.inf)
    return max(1, int(min(len(_processors()), quota)))


def memory_mib() -> float:
    """Return this process's resident memory now (at its peak where the system tells no better)."""
    fields = _text(Path("/proc/self/statm")).split()
    if fields:
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@cache
def _stat() -> Gauges:
    return gauges([Path("/proc/stat")])


@cache
def _watched() -> frozenset[str]:
    return frozenset(map(str, _processors()))


@cache
def _sensors() -> Sensors:
    return Sensors(_processors())


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(path: Path) -> float:
    """Return how many processors a cgroup grants (v2: `quota period`; v1: two files), or infinity."""
    text = _text(path).split()
    if not text or text[0] in {"max", "-1"}:
        return math.inf
    period = text[1] if len(text) > 1 else _text(path.with_name("cpu.cfs_period_us")).strip()
    return int(text[0]) / int(period) if period.isdigit() and int(period) else math.inf


def _processor_times(stat: str, processors: frozenset[str]) -> tuple[float, float]:
    """Sum busy and stolen seconds of the processors named, from the text of /proc/stat."""
    busy = steal = 0
    for line in stat.partition("intr")[0].splitlines():  # what follows is long, and of no use here
        name, *columns = line.split()
        if name.removeprefix("cpu") in processors and len(columns) > _STEAL:
            ticks = [int(column) for column in columns[:_GUEST]]  # guest time is inside user time already
            steal += ticks[_STEAL]
            busy += sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT] - ticks[_STEAL]
    return busy / _TICKS_PER_S, steal / _TICKS_PER_S


def _features(cpuinfo: str) -> tuple[str, ...]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return tuple(sorted(_FEATURES.intersection(value.split())))
    return ()


def _processor_name(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on this system, or not for us to read
        return ""
