"""What a machine tells about holding itself back: throttling, quotas, clocks, heat, pressure for memory.

Read at the boundaries of a block, so it must be cheap: the files are looked for once and stay open, and what
changes slowly is read four times a second at most. On a 2-core machine a reading takes 10 us.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_PROCESSORS = 16  # that are watched: on larger machines the others are left out, for speed
_SLOWING = ("cpu", "gpu", "processor", "throttle", "devfreq")  # cooling devices that take speed; fans do not
_FRESH_S = 0.25  # what changes slowly is not read again within this time
_MOST_BYTES = (
    1 << 14
)  # of /proc/stat and /proc/cpuinfo the processors that come first; more would cost a page fault
_PI_NOW = 0b1110  # get_throttled: frequency capped, throttled, soft temperature limit; all of this moment


@dataclass(frozen=True, kw_only=True)
class Sensed:
    """What the sensors said at one moment; what a machine does not tell is None, "unknown" or zero."""

    throttles: int = 0  # events since the machine started
    held_back: bool = False  # slowed at this very moment
    quota_ms: float = 0.0  # that cgroups' quotas have kept processes waiting so far
    memory_pressure_percent: float = 0.0
    clocks_mhz: tuple[float, ...] = ()  # one a processor
    temperature_c: float | None = None  # of the hottest zone
    governor: str = "unknown"


class Gauge:
    """A small file of the kernel's that stays open: a third of the time that opening it again takes."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def text(self) -> str:
        """Read it now; empty where its device is gone."""
        try:
            return os.pread(self._handle, _MOST_BYTES, 0).decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


Gauges = tuple[Gauge, ...]


class Sensors:
    """The files of one machine, found once; `root` is another folder in tests."""

    def __init__(
        self, processors: Iterable[int], root: Path = Path("/"), clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        watched = sorted(processors)[:_MOST_PROCESSORS]
        cpus = [root / f"sys/devices/system/cpu/cpu{number}" for number in watched]
        thermal = root / "sys/class/thermal"
        self._throttles = gauges(_throttle_counts(cpus))
        self._pi = gauges([root / "sys/devices/platform/soc/soc:firmware/get_throttled"])
        self._cooling = gauges(_slowing_devices(thermal))
        self._quotas = gauges(_quota_files(root))
        self._pressure = gauges([root / "proc/pressure/memory"])
        self._clocks = gauges(cpu / "cpufreq/scaling_cur_freq" for cpu in cpus)
        self._cpuinfo = () if self._clocks else gauges([root / "proc/cpuinfo"])
        self._zones = gauges(sorted(thermal.glob("thermal_zone*/temp")))
        self._governors = gauges(cpu / "cpufreq/scaling_governor" for cpu in cpus[:1])
        self._clock_s, self._slow, self._read_s = clock_s, Sensed(), -_FRESH_S

    def read(self) -> Sensed:
        """Read what tells of throttling now, and the rest where it is no longer fresh."""
        now_s = self._clock_s()
        if now_s - self._read_s >= _FRESH_S:
            self._slow, self._read_s = self._read_slow(), now_s
        slowed = any(state > 0 for state in _numbers(self._cooling))
        capped = any(_hex(gauge.text()) & _PI_NOW for gauge in self._pi)
        slow = self._slow
        return Sensed(  # not `replace`, which costs more than the reading
            throttles=sum(_numbers(self._throttles)),
            held_back=slowed or capped,
            quota_ms=sum(_stopped_ms(gauge.text()) for gauge in self._quotas),
            memory_pressure_percent=slow.memory_pressure_percent,
            clocks_mhz=slow.clocks_mhz,
            temperature_c=slow.temperature_c,
            governor=slow.governor,
        )

    def close(self) -> None:
        """Close every file."""
        for held in vars(self).values():
            for gauge in held if isinstance(held, tuple) else ():
                gauge.close()

    def _read_slow(self) -> Sensed:
        temperatures = [number / 1000 for number in _numbers(self._zones)]
        return Sensed(
            memory_pressure_percent=max((_pressure(gauge.text()) for gauge in self._pressure), default=0.0),
            clocks_mhz=self._clocks_mhz(),
            temperature_c=max(temperatures, default=None),
            governor=next((text for gauge in self._governors if (text := gauge.text())), "unknown"),
        )

    def _clocks_mhz(self) -> tuple[float, ...]:
        if self._clocks:
            return tuple(khz / 1000 for khz in _numbers(self._clocks))
        lines = (line for gauge in self._cpuinfo for line in gauge.text().splitlines())
        return tuple(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))


def gauges(paths: Iterable[Path]) -> Gauges:
    """Open those of the files that are there and may be read."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(Gauge(path))
    return tuple(found)


def _throttle_counts(cpus: Iterable[Path]) -> Iterator[Path]:
    """Give each core's own count, and the package's once: every core of it shows the same."""
    for at, cpu in enumerate(cpus):
        yield cpu / "thermal_throttle/core_throttle_count"
        if at == 0:
            yield cpu / "thermal_throttle/package_throttle_count"


def _slowing_devices(thermal: Path) -> Iterator[Path]:
    for kind in sorted(thermal.glob("cooling_device*/type")):
        if any(word in _text(kind).lower() for word in _SLOWING):
            yield kind.with_name("cur_state")


def _quota_files(root: Path) -> Iterator[Path]:
    """Give cpu.stat of this process's cgroup and of those above it, wherever one can stop it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # version 2 names no controllers and is mounted here
        here = mount / place.strip("/")
        for folder in (here, *here.parents):
            if "throttled" in _text(folder / "cpu.stat"):
                yield folder / "cpu.stat"
            if folder == mount:
                break


def _stopped_ms(stat: str) -> float:
    """Read throttled time: version 2 in microseconds, version 1 in nanoseconds."""
    fields = dict(line.split() for line in stat.splitlines() if len(line.split()) == 2)  # noqa: PLR2004 - a name and its value
    return int(fields.get("throttled_usec", 0)) / 1e3 + int(fields.get("throttled_time", 0)) / 1e6


def _pressure(text: str) -> float:
    """Read the share of the last 10 s in which some process waited."""
    some = next((line for line in text.splitlines() if line.startswith("some ")), "")
    share = next((word for word in some.split() if word.startswith("avg10=")), "avg10=0")
    return float(share.removeprefix("avg10="))


def _numbers(held: Gauges) -> list[int]:
    texts = [gauge.text() for gauge in held]
    return [int(text) for text in texts if text.lstrip("-").isdigit()]


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # not on this system, or not for us to read
        return ""
