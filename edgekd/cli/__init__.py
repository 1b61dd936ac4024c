"""The command line: each verb parses, calls one function and prints what it returns."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekd.cli import cache, devices, fleet, gate, jobs, models, quantize, verify, workshop
from edgekd.cli.options import unwrapped

_LOOP = "The loop: a job in, a measured student out"
_GATE = "The gate: does it still keep to its latency?"
_MODELS = "Single steps, on any model"
_WORKSHOP = "Settings and health"

_HELP = """\
[bold]A teacher and a latency budget in; a measured and accepted student out.[/bold]

edgekd finds a small network that learns from yours, compiles it for the device, measures the compiled file there, \
and accepts it only if its measured latency keeps to your budget and its accuracy to the teacher's.

[bold]Begin with[/bold]

  [cyan]edgekd doctor[/cyan]                      has this machine what it takes?
  [cyan]edgekd run digits[/cyan]                  the whole loop on real data, about two minutes
  [cyan]edgekd init myjob --data images/[/cyan]   a commented job of your own
  [cyan]edgekd profile model.onnx[/cyan]          a latency you can trust; no training needed
"""

_EPILOG = """\
[bold]Streams[/bold]   stdout carries data (one object with --json), stderr everything else.

[bold]Settings[/bold]  command line > EDGEKD_SECTION__KEY > job > ~/.config/edgekd/config.toml > defaults

[bold]Exit codes[/bold]

    [bold]0[/bold]   done
    [bold]1[/bold]   no student fits, or a check failed
    [bold]2[/bold]   the command line, a job, a model or the data is wrong
    [bold]3[/bold]   inconclusive: too noisy for the question
    [bold]4[/bold]   the device or a runtime is unavailable
    [bold]5[/bold]   nothing comparable to compare with
    [bold]6[/bold]   refused: a digest or a path is not what it must be
    [bold]7[/bold]   disk or memory ran out; the same command goes on where it was
   [bold]70[/bold]   a fault in edgekd; the message names a report file
  [bold]130[/bold]   interrupted (143: terminated, 129: hung up); the same command goes on where it was
"""

app = typer.Typer(
    name="edgekd",
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(importlib.metadata.version("edgekd"))
        raise typer.Exit


@app.callback()
def edgekd(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Carry the options that stand before a verb; the help text is the app's."""


for _panel, _verb, _examples in (
    (_LOOP, jobs.run, jobs.RUN),
    (_LOOP, jobs.plan, jobs.PLAN),
    (_LOOP, jobs.distill, jobs.DISTILL),
    (_LOOP, jobs.report, jobs.REPORT),
    (_LOOP, verify.verify, verify.VERIFY),
    (_GATE, gate.check, gate.CHECK),
    (_GATE, fleet.requalify, fleet.REQUALIFY),
    (_MODELS, models.profile, models.PROFILE),
    (_MODELS, models.export, models.EXPORT),
    (_MODELS, quantize.quantize, quantize.QUANTIZE),
    (_MODELS, models.compile_, models.COMPILE),
    (_WORKSHOP, workshop.init, workshop.INIT),
    (_WORKSHOP, workshop.config, workshop.CONFIG),
    (_WORKSHOP, workshop.doctor, workshop.DOCTOR),
):
    app.command(
        _verb.__name__.rstrip("_"),
        help=unwrapped(_verb.__doc__ or ""),
        epilog=f"[bold]Examples[/bold]\n\n{_examples}",
        rich_help_panel=_panel,
    )(_verb)

app.add_typer(devices.app, name="devices", rich_help_panel=_WORKSHOP)
app.add_typer(cache.app, name="cache", rich_help_panel=_WORKSHOP)
