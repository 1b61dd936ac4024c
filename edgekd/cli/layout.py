"""The two shapes that every result is laid out in: pairs of a name and a text, and a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

_CONTINUED = "%s \\\n    "


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Lay out names and what they stand for."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(f"  {name}", Text(text))
    return grid


def sudoers(lines: Iterable[str], where: str) -> list[Text]:
    """Lay out the lines that let --tune run, to be copied: continued as sudoers has it, so that none is folded."""
    told = [
        Text(line.replace("NOPASSWD: ", _CONTINUED % "NOPASSWD:").replace(", ", _CONTINUED % ","))
        for line in lines
    ]
    head = Text(f"for --tune, {where}: sudo visudo -f /etc/sudoers.d/edgekd, and add")
    return [head, *told] if told else []


def table(title: str, *columns: str) -> Table:
    """Begin a table; its cells fold rather than being cut."""
    found = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left", pad_edge=False)
    for name in columns:
        found.add_column(name, overflow="fold")
    return found
