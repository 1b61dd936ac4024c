"""The sub-commands of `edgekd cache`: measurements out of a run, and into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import AsJson
from edgekd.cli.show import show

_HELP = """\
Share measurements between runs and devices.

What a device took for the students that were timed there is where the next device's predictor begins: it then needs \
fewer measurements of its own. Imported measurements are never reported as measurements of the device at hand.
"""

Run = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="The folder of the run.", file_okay=False),
]

app = typer.Typer(help=_HELP, rich_markup_mode="rich", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write: lines of JSON.")],
    *,
    out: Run,
    as_json: AsJson = False,
) -> None:
    """Write what a run measured, and what it had imported, to one file with digests."""
    from edgekd.pipeline import sharing

    show(sharing.export(out, file), lambda done: f"{_told(done)} written to {done.path}", as_json=as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `edgekd cache export` wrote.")],
    *,
    out: Run,
    as_json: AsJson = False,
) -> None:
    """Take measurements of other devices into a run, as prior for its predictor."""
    from edgekd.pipeline import sharing

    show(
        sharing.import_(file, out),
        lambda done: f"{_told(done)} read from {done.path}, {done.new} of them new to {out}",
        as_json=as_json,
    )


def _told(done: object) -> str:
    from edgekd.pipeline.sharing import Exchanged

    assert isinstance(done, Exchanged)  # noqa: S101 - both commands give one
    return f"{done.measurements} measurements of {done.devices} device{'s' * (done.devices != 1)}"
