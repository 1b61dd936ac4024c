"""Where the marks of the gate page's pictures stand; the template draws them, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.stages.announce.words import clean
from edgekd.values.gate import Arm, Comparison, GateRules

WIDTH, HEIGHT = 600.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 112.0, 12.0, 44.0  # px
_NO_LABELS = 14.0  # right of a picture without them
_LINE_PX = 13.0  # between two labels
_STEPS = (
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
)
_MOST_TICKS = 7
_KNOWN = ((50.0, "p50_ms"), (95.0, "p95_ms"), (99.0, "p99_ms"))


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value on an axis, and where."""

    at: float  # px
    label: str


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line with its name at the right end."""

    y: float
    label_y: float  # moved away from its neighbours'
    label: str
    kind: str  # "margin", "equal", "estimate"


@dataclass(frozen=True, kw_only=True)
class RatioPlot:
    """Each pair's ratio in run order, on a logarithmic axis."""

    dots: tuple[tuple[float, float], ...]
    band: tuple[float, float] | None  # top and bottom, px
    levels: tuple[Level, ...]
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]  # the looks at which a decision was tried
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Which share of an arm's inferences took at most how long."""

    name: str
    kind: str  # "base", "candidate"
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float], ...]  # p50, p95, p99


@dataclass(frozen=True, kw_only=True)
class SpreadPlot:
    """The distributions of both arms."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float = _LEFT
    right: float = WIDTH - _NO_LABELS
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def ratio_plot(one: Comparison, rules: GateRules) -> RatioPlot | None:
    """Place the pairs of a comparison; None where no pair counts."""
    if not one.log_ratios:
        return None
    lines = {"equal": 0.0, "margin": math.log1p(one.margin)}
    bounds: tuple[float, ...] = ()
    if one.ratio is not None:
        lines["estimate"] = math.log(one.ratio.estimate)
        bounds = (one.ratio.low, one.ratio.high)
    logs = tuple(math.log(bound) for bound in bounds if 0 < bound < math.inf)
    low, high = _padded([*one.log_ratios, *lines.values(), *logs], 0.08)
    across = _Scale(low=0.0, high=len(one.log_ratios) + 1.0, start=_LEFT, end=WIDTH - _RIGHT)
    up = _Scale(low=low, high=high, start=HEIGHT - _BOTTOM, end=_TOP)
    looks = [look for look in rules.looks if look <= len(one.log_ratios)]
    return RatioPlot(
        dots=tuple((across.at(n + 1), up.at(value)) for n, value in enumerate(one.log_ratios)),
        band=(up.at(max(logs)), up.at(min(logs))) if len(logs) == 2 else None,  # noqa: PLR2004 - both bounds
        levels=_levels(lines, up),
        y_ticks=tuple(
            Tick(at=up.at(math.log(value)), label=text)
            for value, text in _nice(math.exp(low), math.exp(high))
        ),
        x_ticks=tuple(
            Tick(at=across.at(look), label=str(look)) for look in looks or [1, len(one.log_ratios)]
        ),
    )


def spread_plot(one: Comparison) -> SpreadPlot | None:
    """Place the distributions of both arms, up to p99; None where one has no times."""
    known = [(kind, arm, _quantiles(arm)) for kind, arm in (("base", one.base), ("candidate", one.candidate))]
    if not all(quantiles for _, _, quantiles in known):
        return None
    low, high = _padded([ms for _, _, quantiles in known for _, ms in quantiles], 0.04)
    across = _Scale(low=max(low, 0.0), high=high, start=_LEFT, end=WIDTH - _NO_LABELS)
    up = _Scale(low=0.0, high=100.0, start=HEIGHT - _BOTTOM, end=_TOP)
    curves = tuple(
        Curve(
            name=f"{'candidate' if kind == 'candidate' else clean(one.against, 40)} p50 {arm.p50_ms:.3f} ms",
            kind=kind,
            points=tuple((across.at(ms), up.at(rank)) for rank, ms in quantiles),
            marks=tuple((across.at(getattr(arm, field)), up.at(rank)) for rank, field in _KNOWN),
        )
        for kind, arm, quantiles in known
    )
    return SpreadPlot(
        curves=curves,
        x_ticks=tuple(Tick(at=across.at(ms), label=text) for ms, text in _nice(across.low, high)),
        y_ticks=tuple(Tick(at=up.at(rank), label=f"{rank} %") for rank in (0, 25, 50, 75, 95)),
    )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    high: float
    start: float  # px
    end: float  # px

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def _quantiles(arm: Arm) -> tuple[tuple[float, float], ...]:
    known = tuple((rank, float(getattr(arm, field))) for rank, field in _KNOWN)
    if not all(math.isfinite(ms) for _, ms in known):
        return ()
    drawn = tuple((rank + 1.0, ms) for rank, ms in enumerate(arm.quantiles_ms))
    return tuple(sorted({*drawn, *known}))


def _levels(lines: dict[str, float], up: _Scale) -> tuple[Level, ...]:
    words = {"equal": "equal", "margin": "margin", "estimate": "estimate"}
    ordered = sorted(lines, key=lambda kind: -lines[kind])  # top to bottom
    heights = _apart([up.at(lines[kind]) for kind in ordered])
    return tuple(
        Level(
            y=up.at(lines[kind]),
            label_y=label_y,
            label=f"{words[kind]} {math.exp(lines[kind]):.3f}",
            kind=kind,
        )
        for kind, label_y in zip(ordered, heights)
    )


def _apart(heights: Sequence[float]) -> list[float]:
    """Push labels down until none covers the one above, then up again where the last left the picture."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _LINE_PX) if placed else height)
    beyond = max(0.0, placed[-1] - (HEIGHT - _BOTTOM))
    return [round(height - beyond, 2) for height in placed]


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * share
    return low - room, high + room


def _nice(low: float, high: float) -> list[tuple[float, str]]:
    """Return round values between two, and how each is written."""
    wanted = (high - low) / _MOST_TICKS
    step = next((step for step in _STEPS if step >= wanted), 10 ** math.ceil(math.log10(max(wanted, 1.0))))
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]
