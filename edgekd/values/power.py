"""What a board says of itself: power mode, clocks, heat and rails; and what an inference costs in energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby

_MOST_UNKNOWN = 32  # words that a board may add to a report
_LONGEST = 64  # characters of one of them


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """The vendor's power mode, as `nvpmodel` names it."""

    name: str
    id: int | None = None
    conf_sha256: str = ""  # of the file that says what the mode means; empty where it cannot be read


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A clock domain: cpu0, gpu, emc (the memory's), nvenc, ...; what was not said is None."""

    name: str
    current_mhz: float | None = None
    lowest_mhz: float | None = None  # that the governor may choose
    highest_mhz: float | None = None
    load_percent: float | None = None
    online: bool | None = None
    governor: str = ""

    @property
    def held(self) -> bool | None:
        """Whether nothing can change it; None where its limits are not known."""
        if self.lowest_mhz is None or self.highest_mhz is None:
            return None
        return self.lowest_mhz == self.highest_mhz


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """One sensor; None while the part that it sits in is switched off."""

    zone: str
    celsius: float | None


@dataclass(frozen=True, kw_only=True)
class Rail:
    """Power through one supply rail."""

    name: str
    power_mw: float
    average_mw: float | None = None  # since the tool that said it was started


@dataclass(frozen=True, kw_only=True)
class BoardReading:
    """A board's own words at one moment; what it did not say is None or empty."""

    board: str = ""  # NVIDIA Jetson Orin Nano Developer Kit
    soc: str = ""  # tegra234, bcm2712
    release: str = ""  # of the vendor's system, such as L4T 36.4.3
    mode: PowerMode | None = None
    fan: str = ""
    clocks: tuple[Clock, ...] = ()
    temperatures: tuple[Temperature, ...] = ()
    rails: tuple[Rail, ...] = ()
    memory_mib: float | None = None  # of all
    memory_used_mib: float | None = None
    swap_used_mib: float | None = None
    core_volts: float | None = None
    held_back: tuple[str, ...] = ()  # why the firmware slows the processor at this moment
    was_held_back: tuple[str, ...] = ()  # why it did since the machine started
    unknown: tuple[str, ...] = ()  # what we could not understand: a warning

    @property
    def clocks_held(self) -> bool | None:
        """Whether no processor's or GPU's clock can change; None where no limits are known."""
        found = [clock.held for clock in _steering(self.clocks) if clock.held is not None]
        return all(found) if found else None

    @property
    def fingerprint_part(self) -> str:
        """Say in one line what of this changes a latency and stays while it is measured: mode and clock limits."""
        parts = [_mode_words(self.mode)] if self.mode else []
        told = [clock for clock in _steering(self.clocks) if clock.held is not None or clock.online is False]
        for limits, alike in groupby(told, key=_limits):
            names = [clock.name for clock in alike]
            parts.append(f"{names[0] if len(names) == 1 else f'{names[0]}..{names[-1]}'} {limits}")
        return "; ".join(parts)

    def words(self) -> tuple[str, ...]:
        """Say it in lines for people."""
        hot = [one for one in self.temperatures if one.celsius is not None]
        hottest = max(hot, key=lambda one: one.celsius or 0.0, default=None)
        lines = [
            " ".join(part for part in (self.board, self.soc, self.release) if part),
            self.fingerprint_part,
            {True: "clocks held", False: "clocks free to change", None: ""}[self.clocks_held],
            f"hottest: {hottest.zone} {hottest.celsius:.1f} C" if hottest else "",
            ", ".join(f"{rail.name} {rail.power_mw / 1e3:.2f} W" for rail in self.rails),
            f"slowed now: {', '.join(self.held_back)}" if self.held_back else "",
            f"was slowed since it started: {', '.join(self.was_held_back)}" if self.was_held_back else "",
            f"not understood: {', '.join(self.unknown)}" if self.unknown else "",
        ]
        return tuple(line for line in lines if line)


def merged(readings: Iterable[BoardReading]) -> BoardReading:
    """Put together what several tools said: the first word on a thing stands, a later one fills gaps."""
    whole = BoardReading()
    for reading in readings:
        gaps = {
            field.name: getattr(whole, field.name) or getattr(reading, field.name) for field in fields(whole)
        }
        gaps["clocks"] = _by_name(whole.clocks, reading.clocks)
        gaps["unknown"] = (*whole.unknown, *reading.unknown)[:_MOST_UNKNOWN]
        if whole.mode and reading.mode and not whole.mode.conf_sha256:
            gaps["mode"] = replace(whole.mode, conf_sha256=reading.mode.conf_sha256)
        whole = BoardReading(**gaps)
    return whole


def puzzling(tool: str, words: Iterable[str]) -> tuple[str, ...]:
    """Name what a tool said that we do not understand, cut short and fit to print."""
    found = []
    for word in words:
        printable = "".join(letter if letter.isprintable() else "?" for letter in word[:_LONGEST]).strip()
        if printable:
            found.append(f"{tool}: {printable}")
    return tuple(dict.fromkeys(found))[:_MOST_UNKNOWN]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Energy that a source had delivered at moments of a pass, counted from the first of them."""

    source: str  # "VDD_IN (ina3221)", "package-0 (rapl)": where, and by what
    at_s: tuple[float, ...]
    energy_mj: tuple[float, ...]  # never falls; 0 at the first moment

    @property
    def duration_s(self) -> float:
        """Time from the first reading to the last."""
        return self.at_s[-1] - self.at_s[0] if self.at_s else 0.0

    @property
    def total_mj(self) -> float:
        """Energy from the first reading to the last."""
        return self.energy_mj[-1] if self.energy_mj else 0.0

    @property
    def power_mw(self) -> float:
        """Mean power."""
        return self.total_mj / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What one inference costs above what the board takes when idle."""

    source: str
    inferences: int
    energy_mj: float  # per inference
    uncertainty_mj: float  # half the width of its 95 % interval
    busy_mw: float
    idle_mw: float
    busy_s: float

    @property
    def upper_mj(self) -> float:
        """The upper end of its interval."""
        return self.energy_mj + self.uncertainty_mj

    @property
    def words(self) -> str:
        """Say it in a line."""
        return (
            f"{self.energy_mj:.3f} mJ an inference, +/- {self.uncertainty_mj:.3f} at 95 %; {self.busy_mw / 1e3:.2f} W "
            f"busy, {self.idle_mw / 1e3:.2f} W idle; {self.inferences} inferences, {self.source}"
        )

    def breach(self, limit_mj: float) -> str:
        """Say by how much a budget is missed with 95 % confidence; empty where it is met."""
        return f"energy {self.upper_mj:.3f} mJ, limit {limit_mj:g} mJ" if self.upper_mj > limit_mj else ""


def _steering(clocks: Iterable[Clock]) -> Iterator[Clock]:
    """Give the clocks that everybody may read and that set a latency, cores in their order."""
    known = [clock for clock in clocks if clock.name.startswith("cpu") or clock.name == "gpu"]
    yield from sorted(known, key=lambda clock: (clock.name == "gpu", len(clock.name), clock.name))


def _by_name(first: tuple[Clock, ...], later: tuple[Clock, ...]) -> tuple[Clock, ...]:
    found = {clock.name: clock for clock in first}
    for clock in later:
        known = found.get(clock.name, clock)
        found[clock.name] = Clock(
            name=known.name,
            current_mhz=_first(known.current_mhz, clock.current_mhz),
            lowest_mhz=_first(known.lowest_mhz, clock.lowest_mhz),
            highest_mhz=_first(known.highest_mhz, clock.highest_mhz),
            load_percent=_first(known.load_percent, clock.load_percent),
            online=clock.online if known.online is None else known.online,
            governor=known.governor or clock.governor,
        )
    return tuple(found.values())


def _first(known: float | None, later: float | None) -> float | None:
    return later if known is None else known


def _mode_words(mode: PowerMode) -> str:
    number = "" if mode.id is None else f" ({mode.id})"
    return f"power mode {mode.name}{number}" + (f" {mode.conf_sha256[:12]}" if mode.conf_sha256 else "")


def _limits(clock: Clock) -> str:
    return "off" if clock.online is False else f"{clock.lowest_mhz:.0f}-{clock.highest_mhz:.0f} MHz"
