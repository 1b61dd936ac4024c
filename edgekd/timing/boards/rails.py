"""Find where a machine measures its own power, and read it during a pass.

Monitors of the INA family behind hwmon (Jetson), the processor's own counters (RAPL, x86), a Raspberry Pi 5's
power chip, and tegrastats where nothing better is there. Each names itself, so that figures of two sources are
never taken for one another.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

from edgekd.errors import DeviceError
from edgekd.timing.boards.asking import ask, find
from edgekd.timing.boards.energy import energy_per_inference, from_counter, from_power
from edgekd.timing.boards.sysfs import entries, number, said
from edgekd.timing.boards.tegrastats import parse_tegrastats
from edgekd.timing.boards.vcgencmd import parse_vcgencmd
from edgekd.values.power import Energy, Rail, Trace

_PERIOD_S = 0.05
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")  # the rail that feeds all the others, where there is one
# On an AGX Orin it comes out of VIN_SYS_5V0 as far as we know; nobody measured it for us.
_PART_OF_ANOTHER = ("VDDQ_VDD2_1V8AO",)
_CHANNEL = re.compile(r"in(?P<number>[0-9])_label")


class Meter(Interface):
    """Something that measures power or energy."""

    source: str
    range_mj: float | None  # where it counts energy up to this and starts again; None: it gives power

    def read(self) -> float:
        """Return mW now, or mJ counted so far."""


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """One rail of a monitor: power itself, or voltage and current."""

    name: str
    power_uw: Path | None
    millivolts: Path
    milliamperes: Path

    def read(self) -> Rail | None:
        if self.power_uw is not None:
            microwatts = number(self.power_uw)
            return None if microwatts is None else Rail(name=self.name, power_mw=microwatts / 1e3)
        volts, amperes = number(self.millivolts), number(self.milliamperes)
        if volts is None or amperes is None:
            return None
        return Rail(name=self.name, power_mw=volts * amperes / 1e3)


@dataclass(kw_only=True)
class _Powers:
    """Rails that are read together and added up."""

    source: str
    rails: Callable[[], Sequence[Rail]]
    names: tuple[str, ...]
    range_mj: float | None = None

    def read(self) -> float:
        found = {rail.name: rail.power_mw for rail in self.rails()}
        if not found.keys() >= set(self.names):
            raise DeviceError(f"{self.source} stopped to answer", mend="measure energy again")
        return sum(found[name] for name in self.names)


@dataclass(kw_only=True)
class _Counter:
    """An energy counter of the processor's."""

    source: str
    file: Path
    range_mj: float | None

    def read(self) -> float:
        microjoules = number(self.file)
        if microjoules is None:
            raise DeviceError(f"{self.source} stopped to answer", mend="measure energy again")
        return microjoules / 1e3


@dataclass(kw_only=True)
class Recording:
    """Readings of a meter during one pass."""

    meter: Meter
    at_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def take(self, now_s: float) -> None:
        """Read once."""
        value = self.meter.read()
        if not self.at_s or now_s > self.at_s[-1]:
            self.at_s.append(now_s)
            self.values.append(value)

    def trace(self) -> Trace:
        """Return the energy over the pass so far."""
        if self.meter.range_mj is None:
            return from_power(self.meter.source, self.at_s, self.values)
        return from_counter(self.meter.source, self.at_s, self.values, self.meter.range_mj)


def read_rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """Read every rail that the kernel's power monitors show."""
    return tuple(rail for channel in _channels(root) if (rail := channel.read()) is not None)


def meters(root: Path = Path("/")) -> tuple[Meter, ...]:
    """Find all sources of power or energy here, the best first; none on most machines."""
    channels = _channels(root)
    found: list[Meter | None] = [
        _whole_board("ina", lambda: [rail for one in channels if (rail := one.read()) is not None]),
        *_counters(root),
    ]
    if find("vcgencmd"):
        found.append(_whole_board("vcgencmd pmic_read_adc", _pi_rails))
    if find("tegrastats"):
        found.append(_whole_board("tegrastats", _tegra_rails))
    return tuple(meter for meter in found if meter is not None)


@contextmanager
def recording(
    meter: Meter, *, period_s: float = _PERIOD_S, clock_s: Callable[[], float] = time.monotonic
) -> Iterator[Recording]:
    """Read a meter every `period_s` until the context is left, at least once at either end.

    Raises:
        DeviceError: the meter stopped to answer.

    """
    taken, stop, failed = Recording(meter=meter), threading.Event(), []

    def sample() -> None:
        try:
            while not stop.wait(period_s):
                taken.take(clock_s())
        except DeviceError as error:
            failed.append(error)

    taken.take(clock_s())
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
    taken.take(clock_s())


def measure_energy(
    infer: Callable[[], object],
    meter: Meter,
    *,
    seconds: float = 10.0,
    rest: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
    record: Callable[[Meter], AbstractContextManager[Recording]] | None = None,
) -> Energy:
    """Measure the energy of an inference in three passes of its own: idle, busy, idle; nothing else is timed meanwhile.

    Args:
        infer: runs one inference.
        meter: of `meters()`.
        seconds: of each pass.
        rest: waits for so many seconds without work.
        clock_s: a monotonic clock.
        record: opens a recording of the meter.

    Raises:
        DeviceError: the meter gave too few readings, or stopped to answer.

    """
    opened = record or recording
    with opened(meter) as before:
        rest(seconds)
    count = 0
    with opened(meter) as busy:
        end_s = clock_s() + seconds
        while clock_s() < end_s:
            infer()
            count += 1
    with opened(meter) as after:
        rest(seconds)
    return energy_per_inference(busy.trace(), (before.trace(), after.trace()), count)


def _channels(root: Path) -> tuple[_Channel, ...]:
    """Find labelled channels of INA monitors; their folders' numbers change from boot to boot, labels do not."""
    places = [
        *entries(root / "sys/class/hwmon", "hwmon*"),
        *entries(root / "sys/bus/i2c/drivers/ina3221", "*/hwmon/hwmon*"),
    ]
    found: dict[str, _Channel] = {}
    for place in places:
        if not said(place / "name").startswith("ina"):
            continue
        for channel in _labelled(place):
            found.setdefault(channel.name, channel)
    found.pop("NC", None)  # nothing is connected there
    return tuple(found.values())


def _labelled(place: Path) -> Iterator[_Channel]:
    for label in entries(place, "in[0-9]_label"):
        matched = _CHANNEL.fullmatch(label.name)
        at = matched["number"] if matched else ""
        amperes, power = place / f"curr{at}_input", place / f"power{at}_input"
        name = said(label)[:40]
        if name and (said(amperes) or said(power)):  # "sum of shunt voltages" has neither
            yield _Channel(
                name=name,
                power_uw=power if said(power) else None,
                millivolts=place / f"in{at}_input",
                milliamperes=amperes,
            )
    alone = said(place / "label")[:40]  # an INA238 measures one rail and knows its power
    if alone and said(place / "power1_input"):
        yield _Channel(name=alone, power_uw=place / "power1_input", millivolts=place, milliamperes=place)


def _whole_board(by: str, rails: Callable[[], Sequence[Rail]]) -> Meter | None:
    """Choose the rail that feeds all, else the sum of those that are not part of one another."""
    with contextlib.suppress(DeviceError):
        names = [rail.name for rail in rails()]
        whole = next((name for name in _WHOLE if name in names), None)
        chosen = (whole,) if whole else tuple(name for name in names if name not in _PART_OF_ANOTHER)
        if chosen:
            return _Powers(source=f"{' + '.join(chosen)} ({by})"[:200], rails=rails, names=chosen)
    return None


def _counters(root: Path) -> Iterator[Meter]:
    """Give the counters of whole processor packages; the kernel lets only root read them on most systems."""
    for folder in entries(root / "sys/class/powercap", "intel-rapl:*"):
        name, range_uj = said(folder / "name")[:40], number(folder / "max_energy_range_uj")
        top = folder.name.count(":") == 1
        if top and name and range_uj and number(folder / "energy_uj") is not None:
            yield _Counter(source=f"{name} (rapl)", file=folder / "energy_uj", range_mj=range_uj / 1e3)


def _pi_rails() -> tuple[Rail, ...]:
    return parse_vcgencmd(ask(["vcgencmd", "pmic_read_adc"]).text).rails


def _tegra_rails() -> tuple[Rail, ...]:
    return parse_tegrastats(ask(["tegrastats", "--interval", "100"], one_line=True).text).rails
