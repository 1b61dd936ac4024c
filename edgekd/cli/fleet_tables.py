"""How machines, their calibrations and bundles that were judged again read on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekd.cli import layout
from edgekd.values.fleet import (
    GRAVEST_FIRST,
    BundleVerdict,
    Calibrated,
    CalibrationReport,
    Fleet,
    HeldLimit,
    KnownCalibration,
    KnownDevice,
    Requalified,
    Resolution,
    Standing,
)

_STYLES = {
    Standing.MEETS: "green",
    Standing.BREAKS: "bold red",
    Standing.REFUSED: "bold red",
    Standing.INCONCLUSIVE: "yellow",
    Standing.UNAVAILABLE: "yellow",
    Standing.INCOMPARABLE: "yellow",
}


def fleet(found: Fleet) -> RenderableType:
    """Lay out the devices and what was calibrated."""
    reached = layout.table("devices", "name", "processor", "cores", "memory", "runtimes", "fingerprint")
    for one in found.devices:
        reached.add_row(*_device(one))
    if not found.calibrations:
        return Group(reached, Text("  none is calibrated yet: edgekd devices calibrate", style="dim"))
    kept = layout.table(
        "calibrations", "device", "runtime", "model", "p50", "noise", "by CPU time", "pairs", "date", ""
    )
    for known in found.calibrations:
        kept.add_row(*_calibration(known), style="dim" if known.outdated else "")
    return Group(reached, kept, Text(f"  kept in {found.history}", style="dim"))


def calibrated(found: CalibrationReport) -> RenderableType:
    """Lay out what each runtime's noise is, and what it lets the gate find."""
    parts: list[RenderableType] = [Text("CALIBRATED", style="bold green")]
    for one in found.calibrated:
        parts += [layout.pairs(_noise(one, found.threads)), _resolutions(one)]
    problems = [Text(f"  warning: {problem}", style="yellow") for problem in found.problems]
    return Group(*parts, *problems, Text(f"  kept in {found.history}", style="dim"))


def requalified(found: Requalified) -> RenderableType:
    """Lay out the standing of each bundle, then why and what has changed."""
    counts = {one: sum(each.standing is one for each in found.bundles) for one in GRAVEST_FIRST}
    told = ", ".join(f"{count} {one.value}" for one, count in counts.items() if count)
    table = layout.table(
        f"measured on {found.device} in {found.seconds:.0f} s; at least and at most at the bundle's confidence",
        *("", "bundle", "compiled", "limit", "now", "at least", "at most", "p50 then", "p50 now"),
    )
    for one in found.bundles:
        _add(table, one)
    return Group(Text(told, style=_STYLES[found.standing]), table, *_remarks(found.bundles))


def _device(one: KnownDevice) -> tuple[Text | str, ...]:
    hardware, software = one.conditions.hardware, one.conditions.software
    runtimes = ", ".join(f"{name} {version.partition('-')[0]}" for name, version in software.runtimes.items())
    memory = f"{hardware.memory_mib / 1024:.0f} GiB"
    return (
        one.name,
        Text(hardware.processor),
        str(hardware.cores),
        memory,
        Text(runtimes or "none"),
        one.fingerprint[:12],
    )


def _calibration(known: KnownCalibration) -> tuple[str, ...]:
    one = known.calibration
    return (
        one.device,
        one.runtime,
        one.reference,
        f"{one.p50_ms:.2f} ms",
        f"{one.noise:.2%}",
        f"{one.cpu_noise:.2%}",
        str(one.pairs),
        one.date.partition("T")[0],
        known.outdated,
    )


def _noise(one: Calibrated, threads: int) -> list[tuple[str, str]]:
    found = one.calibration
    return [
        ("runtime", f"{found.runtime}, {threads} thread(s)"),
        ("reference", f"{found.reference}, p50 {found.p50_ms:.3f} ms"),
        ("noise of a pair", f"{found.noise:.2%} by the wall clock, {found.cpu_noise:.2%} by CPU time"),
        ("measured", f"{found.pairs} pairs of {found.pair_seconds:.1f} s"),
    ]


def _resolutions(one: Calibrated) -> Table:
    table = layout.table(
        "what the gate finds here", "a slowdown of", "over a margin of", "clock", "pairs", "minutes", ""
    )
    for found in one.resolutions:
        table.add_row(
            f"+{_share(found.effect)}",
            _share(found.margin),
            found.clock.value,
            f"{found.pairs:,}",
            f"{found.minutes:.1f}",
            Text(_advice(found), style="yellow"),
        )
    return table


def _advice(found: Resolution) -> str:
    if found.within_reach:
        return ""
    if found.honest_margin is None:
        return "out of reach: a quieter machine, or more time for each comparison"
    slowdown = found.effect / found.margin * found.honest_margin
    return f"out of reach: an honest margin is {_share(found.honest_margin)}, which shows +{_share(slowdown)}"


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _add(table: Table, one: BundleVerdict) -> None:
    """Add a row for each limit of a bundle; one that says why where it was not measured."""
    mark = Text(one.standing.value, style=_STYLES[one.standing])
    compiled = f"{one.runtime}/{one.precision.value}" if one.precision else ""
    then, now = (f"{ms.p50:.3f}" if ms else "-" for ms in (one.then, one.now))
    if not one.limits:
        table.add_row(mark, Text(str(one.bundle)), compiled, "-", "-", "-", "-", then, now)
    for at, limit in enumerate(one.limits):
        first = (mark, Text(str(one.bundle)), compiled) if at == 0 else ("", "", "")
        table.add_row(*first, *_limit(limit), *((then, now) if at == 0 else ("", "")))


def _limit(limit: HeldLimit) -> tuple[Text | str, ...]:
    low, high = ("unbounded" if ms is None else f"{ms:.3f}" for ms in (limit.low_ms, limit.high_ms))
    held = f"{limit.percentile} {limit.limit_ms:.3f} ms"
    return held, Text(f"{limit.measured_ms:.3f}", style=_STYLES[limit.standing]), low, high


def _remarks(bundles: Iterable[BundleVerdict]) -> Iterator[Text]:
    for one in bundles:
        style = "" if one.standing is Standing.MEETS and one.same_hardware else "yellow"
        for reason in one.reasons:
            yield Text(f"  {one.bundle}: {reason}", style=style)
        if one.changes:
            changes = "; ".join(f"{change.what} {change.then} -> {change.now}" for change in one.changes)
            yield Text(f"  {one.bundle}: changed since it was accepted: {changes}", style="dim")
