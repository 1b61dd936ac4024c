"""The verb about bundles that shipped: requalify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.options import (
    AsJson,
    DeviceName,
    Inconclusive,
    OnInconclusive,
    Out,
    ProfileName,
    Quiet,
    Tune,
    Verbose,
    Wait,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json
from edgekd.values.codec import plain
from edgekd.values.fleet import Requalified, Standing

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


def requalify(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders of bundles.")],
    *,
    same_hardware: Annotated[
        bool, typer.Option("--same-hardware", help="Judge none that was measured on other hardware.")
    ] = False,
    inconclusive: OnInconclusive = Inconclusive.WARN,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
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
    target = target_from_options(profile_name, None, None, device, wait, tune=tune)
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
