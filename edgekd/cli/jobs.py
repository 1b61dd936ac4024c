"""Verbs about a job: run, plan, distill, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.losses_table import print_losses
from edgekd.cli.options import (
    AsJson,
    DeviceName,
    JobArgument,
    Out,
    Overrides,
    Quiet,
    Record,
    Tune,
    Verbose,
    Wait,
    overrides_with,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json, this_command
from edgekd.pipeline.company import helps

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="A board of `edgekd devices`, local, a hardware profile for this machine by name or path, or"
        " cassette:FILE; this machine unless given. Again for each further target.",
        show_default=False,
        rich_help_panel="The target",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Train on the workers of a Ray cluster, several students at a time; `local`: on processes here.",
        show_default=False,
        rich_help_panel="The training",
    ),
]
OrHere = Annotated[
    bool,
    typer.Option(
        "--or-here",
        help="Train here what a --cluster that goes away has left.",
        rich_help_panel="The training",
    ),
]

RUN = """\
  [cyan]edgekd run digits[/cyan]
  [cyan]edgekd run job.toml --out runs/today budget.latency_ms.p99=1.5 search.trials=4[/cyan]
  [cyan]edgekd run job.toml --target pi[/cyan]
  [cyan]edgekd run job.toml --target pi --target local pi:budget.latency_ms.p99=20[/cyan]
  [cyan]edgekd run job.toml --cluster local[/cyan]
  [cyan]torchrun --nproc-per-node 2 -m edgekd run job.toml[/cyan]
  [cyan]edgekd run job.toml --json | jq .latency_ms.p99_upper[/cyan]
"""
PLAN = """\
  [cyan]edgekd plan job.toml[/cyan]
  [cyan]edgekd plan job.toml budget.latency_ms.speedup=8 || echo out of reach[/cyan]
"""
DISTILL = """\
  [cyan]edgekd distill job.toml --out student[/cyan]
  [cyan]edgekd distill job.toml --student runs/job/bundle/manifest.json distillation.epochs=60[/cyan]
  [cyan]edgekd distill --losses[/cyan]
  [cyan]torchrun --nproc-per-node 2 -m edgekd distill job.toml[/cyan]
"""
REPORT = """\
  [cyan]edgekd report runs/digits[/cyan]
"""


def run(
    job: JobArgument,
    overrides: Overrides = None,
    *,
    targets: Targets = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    record: Record = "",
    cluster: Cluster = "",
    or_here: OrHere = False,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find, train, compile and measure a student until one meets the budget.

    Writes DIR/bundle and DIR/report.html; DIR is runs/NAME unless given. Stopped at any moment, the same
    command goes on where it was. Several targets share what is trained; each has DIR/TARGET for itself, and one that
    fails stops no other. Exit code 1: no student meets the budget of a target.
    """
    from edgekd.stages.configure import configure

    if len(targets or ()) > 1:
        _run_on_targets(
            job,
            overrides or [],
            targets or [],
            Several(wait=wait, record=record, tune=tune, cluster=cluster, or_here=or_here),
            out=out,
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
        )
        return
    asked = configure(job, overrides_with(overrides, next(iter(targets or ()), None), wait, record, tune))
    with progress(quiet=quiet or helps(), verbose=verbose):
        from edgekd import pipeline

        folder = out or Path("runs") / asked.name
        if helps():
            pipeline.help_to_train(asked.job, beside=asked.beside, out=folder)
            return
        outcome = pipeline.run(
            asked.job,
            beside=asked.beside,
            name=asked.name,
            out=folder,
            command=this_command(),
            cluster=cluster,
            or_here=or_here,
        )
    from edgekd.cli import tables

    show(outcome, tables.outcome, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Several:
    """What is asked of every target of a run."""

    wait: float
    record: str
    tune: str
    cluster: str
    or_here: bool


def _run_on_targets(
    job: str,
    overrides: list[str],
    targets: list[str],
    several: Several,
    *,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    from edgekd.cli import many

    each = many.configured_for(
        job, overrides, targets, wait=several.wait, record=several.record, tune=several.tune
    )
    first = each[targets[0]]
    folder = out or Path("runs") / first.name
    with progress(quiet=quiet or helps(), verbose=verbose):
        from edgekd import pipeline

        if helps():
            pipeline.help_to_train(first.job, beside=first.beside, out=folder)
            return
        found = pipeline.run_on_targets(
            {target: asked.job for target, asked in each.items()},
            beside=first.beside,
            name=first.name,
            out=folder,
            command=this_command(),
            cluster=several.cluster,
            or_here=several.or_here,
        )
    if as_json:
        show_json(many.outcomes_json(found))
    else:
        show(found, many.outcomes, as_json=False)
    raise typer.Exit(found.exit_code)


def plan(
    job: JobArgument,
    overrides: Overrides = None,
    *,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    record: Record = "",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which budgets are within reach, before anything is trained.

    Times a handful of untrained students on the target; a run in the same DIR uses what was measured.
    Exit code 1: the budget is out of reach, and what would bring it within.
    """
    from edgekd.stages.configure import configure

    asked = configure(job, overrides_with(overrides, device, wait, record, tune))
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        found = pipeline.plan(
            asked.job, beside=asked.beside, name=asked.name, out=out or Path("runs") / asked.name
        )
    from edgekd.cli import tables

    show(found, tables.plan, as_json=as_json)
    raise typer.Exit(0 if found.reachable else 1)


def distill(
    job: JobArgument,
    overrides: Overrides = None,
    *,
    student: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The student to train: a spec, a bundle's manifest.json, or the JSON of a run.",
            show_default=False,
        ),
    ] = None,
    _losses: Annotated[
        bool,
        typer.Option(
            "--losses",
            callback=print_losses,
            is_eager=True,
            help="List the losses that a job can name, and end.",
        ),
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one student to match the job's teacher, without looking at the budget."""
    from edgekd.stages.configure import configure, student_from

    asked = configure(job, overrides or ())
    spec = student_from(student) if student else None
    with progress(quiet=quiet or helps(), verbose=verbose):
        from edgekd import pipeline

        if helps():
            pipeline.help_to_train(asked.job, beside=asked.beside, out=out or Path("runs") / asked.name)
            return
        made = pipeline.distill(
            asked.job,
            beside=asked.beside,
            name=asked.name,
            spec=spec,
            out=out or Path("runs") / asked.name,
        )
    from edgekd.cli import tables

    show(made, tables.distilled, as_json=as_json)


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", exists=True)],
    *,
    study: Annotated[
        str,
        typer.Option(
            metavar="STORAGE",
            help="Also write the trials as a study in Optuna's storage, such as sqlite:///study.db.",
            show_default=False,
        ),
    ] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a run's report again: one HTML file that needs no network."""
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        page = pipeline.report(run_folder)
        trials = pipeline.export_study(run_folder, study) if study else None
    from edgekd.cli import tables

    exported = {} if trials is None else {"study": study, "study_trials": trials}
    show({"report": page, **exported}, tables.fields, as_json=as_json)
