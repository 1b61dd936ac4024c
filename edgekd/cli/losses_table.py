"""The losses that a job can name, as `edgekd distill --losses` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from edgekd.cli import layout

if TYPE_CHECKING:
    from edgekd.distillation.losses import Entry

_TASK = "classification"  # the one that a job can name today


def print_losses(asked: bool) -> None:
    """Print the catalogue and end, where the option was given."""
    if not asked:
        return
    from rich.console import Console

    from edgekd.distillation.losses import catalogue

    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    console.print(losses(tuple(one for one in catalogue() if _TASK in one.tasks)))
    raise typer.Exit


def losses(entries: tuple[Entry, ...]) -> Table:
    """Lay out what each loss compares, what it was published as, and what a job may set."""
    table = layout.table("[distillation] losses", "name", "knowledge", "loss", "source", "weight", "settings")
    for one in entries:
        taps = {"student": one.student, "teacher": one.teacher}
        named = [f"{side} = ..." for side, tap in taps.items() if not tap]
        given = ["..." if value is None else f"{value:g}" for value in one.settings.values()]
        settings = [f"{key} = {value}" for key, value in zip(one.settings, given)]
        table.add_row(
            one.name,
            one.representation,
            one.about,
            one.source,
            f"{one.weight:g}",
            ", ".join(named + settings),
        )
    return table
