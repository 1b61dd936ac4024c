"""The two shapes that every result is laid out in: pairs of a name and a text, and a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Lay out names and what they stand for."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(f"  {name}", Text(text))
    return grid


def table(title: str, *columns: str) -> Table:
    """Begin a table; its cells fold rather than being cut."""
    found = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left", pad_edge=False)
    for name in columns:
        found.add_column(name, overflow="fold")
    return found
