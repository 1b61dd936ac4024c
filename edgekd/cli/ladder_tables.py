"""How the parity ladder reads on a terminal: a rung a line, then the layers at which it breaks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekd.cli import layout
from edgekd.devices.hostkeys import printable
from edgekd.values.codec import plain
from edgekd.values.ladder import Blame, Ladder, Rung

_LONGEST_NAME = 80
_MARKS = {True: ("ok", "green"), False: ("bad", "bold red"), None: ("", "yellow")}


def climbed(found: Ladder) -> RenderableType:
    """Lay out every rung, where it breaks, and the verdict."""
    kind = "real" if found.real else "random"
    table = layout.table(
        f"the ladder, on {kind} inputs", "", "rung", "held against", "departs by", "may", "labels changed", ""
    )
    for rung in found.rungs:
        word, style = _MARKS[rung.passed]
        table.add_row(
            Text(word or ("skip" if rung.problem else ""), style=style),
            printable(rung.name),
            printable(rung.against),
            _share(rung.error),
            _share(rung.limit),
            "" if rung.changed_labels is None else f"{rung.changed_labels} of {rung.samples}",
            printable(rung.problem),
        )
    verdict = Text("THE SAME", style="bold green") if found.passed else Text("NOT THE SAME", style="bold red")
    notes = [Text(f"  warning: {problem}", style="yellow") for problem in found.problems]
    return Group(verdict, table, *_broken(found.rungs), *notes)


def climbed_json(found: Ladder) -> dict[str, Any]:
    """Give the fields, whether all rungs hold, and the first bad layer."""
    first = found.first_bad
    return {
        "passed": found.passed,
        "first_bad": None if first is None else {**plain(first), "stands_out": first.stands_out},
        **plain(found),
    }


def _broken(rungs: Iterable[Rung]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for rung in rungs:
        if rung.blames:
            table = layout.table(
                f"where {printable(rung.name)} departs ({rung.layers} layers compared)",
                "layer", "operator", "by itself", "may", "as it runs", "torch module", "line",
            )  # fmt: skip
            for one in rung.blames:
                table.add_row(*_cells(one))
            shown += [table, _verdict(rung.blames[0])]
        elif rung.inside:
            shown.append(
                Text(f"  {rung.name}: no layer can be named: {printable(rung.inside)}", style="yellow")
            )
    return shown


def _cells(one: Blame) -> Iterable[str]:
    name = printable(one.layer)[:_LONGEST_NAME]
    other = f" (was {printable(one.counterpart)[:_LONGEST_NAME]})" if one.counterpart else ""
    yield name + other
    yield printable(one.operator)
    yield _share(one.own_error)
    yield _share(one.limit)
    yield _share(one.error)
    yield printable(one.module)
    yield printable(one.source)


def _verdict(first: Blame) -> Text:
    if first.stands_out:
        return Text(f"  the first bad layer: {printable(first.layer)}", style="bold red")
    return Text(f"  no layer stands out; most comes from {printable(first.layer)}", style="yellow")


def _share(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
