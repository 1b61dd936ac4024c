"""Verbs about machines and about bundles that shipped: devices, devices calibrate, requalify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.options import (
    AsJson,
    Inconclusive,
    Out,
    ProfileName,
    Quiet,
    Runtimes,
    Threads,
    Verbose,
    state_file,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json
from edgekd.errors import UsageError
from edgekd.values.codec import plain
from edgekd.values.fleet import Requalified, Standing

DEVICES = """\
  [cyan]edgekd devices[/cyan]
  [cyan]edgekd devices calibrate --runtime openvino[/cyan]
"""
CALIBRATE = """\
  [cyan]edgekd devices calibrate[/cyan]
  [cyan]edgekd devices calibrate --runtime onnxruntime --pairs 60 --json[/cyan]
"""
REQUALIFY = """\
  [cyan]edgekd requalify runs/digits/bundle[/cyan]
  [cyan]edgekd requalify shipped/*/ --same-hardware --inconclusive fail --out requalified[/cyan]
"""

_EXIT = {
    Standing.REFUSED: 6,
    Standing.BREAKS: 1,
    Standing.UNAVAILABLE: 4,
    Standing.INCOMPARABLE: 5,
    Standing.INCONCLUSIVE: 3,
    Standing.MEETS: 0,
}

History = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="SQLite file that keeps calibrations; ~/.local/state/edgekd/history.sqlite unless given.",
        show_default=False,
    ),
]

devices = typer.Typer(
    help="List devices and what each can resolve; [bold]calibrate[/bold] finds that out.",
    epilog=f"[bold]Examples[/bold]\n\n{DEVICES}",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


@devices.callback()
def devices_(
    context: typer.Context,
    *,
    history: History = None,
    profile_name: ProfileName = "x86-cpu",
    as_json: AsJson = False,
) -> None:
    """List what can be reached, and what was calibrated; the help text is the app's."""
    if context.invoked_subcommand is not None:
        if history is not None or as_json:
            name = context.invoked_subcommand
            mend = f"write: edgekd devices {name} --json --history FILE"
            raise UsageError(f"options of {name} stand after it", mend=mend)
        return
    target = target_from_options(profile_name, None, None)
    from edgekd.cli import fleet_tables
    from edgekd.pipeline import fleet

    found = fleet.list_devices(target, history=history or state_file(), today=fleet.utc_now())
    show(found, fleet_tables.fleet, as_json=as_json)


@devices.command(epilog=f"[bold]Examples[/bold]\n\n{CALIBRATE}")
def calibrate(
    *,
    pairs: Annotated[int, typer.Option(min=10, help="Of a model against itself, for each runtime.")] = 40,
    history: History = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = "x86-cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time a model against itself, and say which slowdown this device shows in how many minutes.

    Takes a minute or two for each runtime. What was measured is kept after every 10 pairs.
    """
    from edgekd.values.gate import GateRules

    target = target_from_options(profile_name, runtime, threads)
    kept_in = history or state_file()
    with progress(quiet=quiet, verbose=verbose):
        from edgekd.pipeline import fleet

        found = fleet.calibrate_devices(
            target,
            pairs=pairs,
            rules=GateRules(),
            history=kept_in,
            today=fleet.utc_now(),
            chosen=bool(runtime),
        )
    from edgekd.cli import fleet_tables

    show(found, fleet_tables.calibrated, as_json=as_json)


def requalify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders of bundles.")],
    *,
    same_hardware: Annotated[
        bool, typer.Option("--same-hardware", help="Judge none that was measured on other hardware.")
    ] = False,
    inconclusive: Annotated[
        Inconclusive,
        typer.Option(help="fail: exit 3. warn, pass: exit 0, with and without a warning."),
    ] = Inconclusive.WARN,
    profile_name: ProfileName = "x86-cpu",
    out: Out = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say which bundles that shipped still keep to their limits, after a runtime or a driver changed.

    Each is checked as by `edgekd verify`, and its accepted file is measured again, beside the others' in turns. Exit
    code 1: one breaks a limit, no longer runs or computes something else. 4: its runtime is missing. 5: other
    hardware. 6: a file is not what its manifest says.
    """
    target = target_from_options(profile_name, None, None)
    with progress(quiet=quiet, verbose=verbose):
        from edgekd.pipeline import fleet

        found = fleet.requalify_bundles(bundles, target, out=out, same_hardware=same_hardware)
    from edgekd.cli import fleet_tables

    if as_json:
        show_json(requalified_json(found))
    else:
        show(found, fleet_tables.requalified, as_json=False)
    raise typer.Exit(_exit_code(found, inconclusive))


def requalified_json(found: Requalified) -> dict[str, Any]:
    """Give the fields, and the gravest standing at the top."""
    return {"standing": found.standing.value, **plain(found)}


def _exit_code(found: Requalified, inconclusive: Inconclusive) -> int:
    if found.standing is not Standing.INCONCLUSIVE or inconclusive is Inconclusive.FAIL:
        return _EXIT[found.standing]
    if inconclusive is Inconclusive.WARN:
        sys.stderr.write("warning: inconclusive, and let through by --inconclusive warn\n")
    return 0
