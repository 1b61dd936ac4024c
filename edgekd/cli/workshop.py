"""Verbs about settings and health: init, config, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import AsJson, JobArgument, Overrides, ProfileName, target_from_options
from edgekd.cli.show import show, show_json

INIT = """\
  [cyan]edgekd init myjob --data images/ --teacher models.py:resnet56 --weights w.safetensors --p99 2.0[/cyan]
"""
CONFIG = """\
  [cyan]edgekd config show digits[/cyan]
  [cyan]EDGEKD_SEARCH__TRIALS=4 edgekd config show job.toml budget.latency_ms.p99=1.5[/cyan]
"""
DOCTOR = """\
  [cyan]edgekd doctor[/cyan]
  [cyan]edgekd doctor --json | jq '.runtimes[] | select(.works) | .name'[/cyan]
"""


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write.")] = Path(),
    *,
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help='A folder with a folder of images a class, an .npz, or "digits".'),
    ] = "digits",
    teacher: Annotated[
        str, typer.Option(metavar="FILE.py:FUNCTION", help="The function that returns your network.")
    ] = "models.py:teacher",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its weights; trained first unless given.", show_default=False),
    ] = None,
    p99: Annotated[
        float | None,
        typer.Option(metavar="MS", min=1e-6, help="Limit of the 99th percentile in ms.", show_default=False),
    ] = None,
    speedup: Annotated[
        float, typer.Option(min=1e-6, help="Over the teacher, where no --p99 is given.")
    ] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Write a commented job.toml and its next steps; overwrites nothing."""
    from edgekd.cli import tables
    from edgekd.stages.init import Answers
    from edgekd.stages.init import init as write

    answers = Answers(data=data, teacher=teacher, weights=weights, p99_ms=p99, speedup=speedup)
    show(write(folder, answers), tables.initialised, as_json=as_json)


def config(
    what: Annotated[str, typer.Argument(metavar="show", help="show: print every value with its origin.")],
    job: JobArgument,
    overrides: Overrides = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say what a job holds, and where each value comes from."""
    from edgekd.cli import tables
    from edgekd.cli.options import choices_from
    from edgekd.stages.configure import configure

    choices_from(what, ("show",), "config")
    configured = configure(job, overrides or ())
    if as_json:
        show_json(tables.configured_json(configured))
    else:
        show(configured, tables.configured, as_json=False)


def doctor(*, profile_name: ProfileName = None, as_json: AsJson = False) -> None:
    """Examine this machine, with a real inference on every runtime.

    Exit code 4: no runtime works.
    """
    from edgekd.cli import tables
    from edgekd.devices import connect
    from edgekd.stages.doctor import doctor as examine

    with connect(target_from_options(profile_name, None, None)) as device:
        examination = examine(device, Path.cwd())
    show(examination, tables.examined, as_json=as_json)
    raise typer.Exit(0 if examination.healthy else 4)
