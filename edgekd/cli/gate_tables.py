"""How the gate's verdict reads on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekd.stages.announce import words
from edgekd.values.gate import Arm, Comparison, Gate, GateRules, GateVerdict

_STYLES = {
    GateVerdict.PASS: "bold green", GateVerdict.IMPROVED: "bold green", GateVerdict.FAIL: "bold red",
    GateVerdict.INCONCLUSIVE: "bold yellow", GateVerdict.ENVIRONMENT: "bold yellow",
}  # fmt: skip
_GOOD = (GateVerdict.PASS, GateVerdict.IMPROVED)


def gate(found: Gate) -> RenderableType:
    """Lay out the verdict, then one block a comparison, the gravest first."""
    several = len(found.comparisons) > 1
    verdict = Text.assemble(
        (found.verdict.value, _STYLES[found.verdict]), *((f"  {words.headline(found)}",) if several else ())
    )
    blocks: list[RenderableType] = [verdict]
    for one in words.gravest_first(found):
        blocks += _block(one, found.rules, several=several)
    blocks += [Text(f"  history: {words.clean(change)}", style="dim") for change in found.changes]
    return Group(*blocks)


def _block(one: Comparison, rules: GateRules, *, several: bool) -> list[RenderableType]:
    title = Text(f"{words.name(one)} ({words.engine(one)})", style="bold")
    if several:
        title = Text.assemble("\n", (f"{one.verdict.value:<13}", _STYLES[one.verdict]), title)
    told = [
        *(("why" if one.verdict not in _GOOD else "note", reason) for reason in words.reasons(one)),
        *(("to mend it", mend) for mend in words.mends(one, rules)),
    ]
    rows = [("latency", words.sentence(one)), *told, *_evidence(one)]
    return [title, _rows(rows), _arms(one)]


def _evidence(one: Comparison) -> Iterable[tuple[str, str]]:
    if line := words.sparkline(one):
        yield "pairs", f"{line}  {words.legend(one)}"
    if one.other_ratio is not None:
        other = "CPU" if one.clock.value == "wall" else "wall"
        yield f"{other} time", f"{words.times(one.other_ratio.estimate)} {words.interval(one.other_ratio)}"
    if one.reference is not None:
        yield "reference", words.reference(one)
    if one.dropped:
        first = words.clean(one.dropped[0])
        yield "dropped", f"{len(one.dropped)} {'pair' if len(one.dropped) == 1 else 'pairs'}: {first}"


def _arms(one: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "p50 ms", "p95 ms", "p99 ms", "CPU p50 ms", "size", "memory", "start-up ms", "accuracy"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for name, arm in ((words.clean(one.against, 40), one.base), ("candidate", one.candidate)):
        table.add_row(Text(f"  {name}"), *_cells(arm))
    return table


def _cells(arm: Arm) -> tuple[str, ...]:
    times_ms = (arm.p50_ms, arm.p95_ms, arm.p99_ms, arm.cpu_p50_ms)
    sizes = (words.size(arm), words.memory(arm), words.ms(arm.open_ms), words.accuracy(arm))
    return (*map(words.ms, times_ms), *sizes)


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(f"  {name}", Text(text))
    return grid
