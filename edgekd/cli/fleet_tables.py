"""How bundles that were judged again read on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekd.cli import layout
from edgekd.values.fleet import (
    GRAVEST_FIRST,
    BundleVerdict,
    HeldLimit,
    Requalified,
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
