"""Options and arguments of `edgekd devices`, each told once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_THERE = "On the board"
_TRUST = "Its host key"

History = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="SQLite file that keeps calibrations; ~/.local/state/edgekd/history.sqlite unless given.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A device that was added.")]
Reach = Annotated[bool, typer.Option("--reach", help="Ask each board whether it answers.")]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="What to call it: a-z, 0-9 and -.")]
Destination = Annotated[
    str,
    typer.Argument(
        metavar="ssh://USER@HOST[:PORT]",
        help="Or ssh://ALIAS, a host of ~/.ssh/config with its keys and jump hosts.",
    ),
]
Python = Annotated[str, typer.Option(metavar="PROGRAM", help="Python 3.10 or newer.", rich_help_panel=_THERE)]
Folder = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="All that edgekd copies lies here; below the home folder unless absolute.",
        rich_help_panel=_THERE,
    ),
]
Fitting = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Hardware profile, by name or path; the one that fits unless given.",
        show_default=False,
        rich_help_panel=_THERE,
    ),
]
Fingerprint = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256:...",
        help="Asks nothing and takes this key only: for CI. Another one is exit code 6.",
        show_default=False,
        rich_help_panel=_TRUST,
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Asks nothing and takes the key that it shows now.", rich_help_panel=_TRUST),
]
SshConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Read by ssh instead of ~/.ssh/config.", exists=True, show_default=False
    ),
]
