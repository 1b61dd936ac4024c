"""The verb about machines: devices, and what can be done with one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.cli.device_options import (
    Destination,
    Fingerprint,
    Fitting,
    Folder,
    History,
    Name,
    NewName,
    Python,
    Reach,
    SshConfig,
    Yes,
)
from edgekd.cli.options import (
    AsJson,
    DeviceName,
    ProfileName,
    Quiet,
    Runtimes,
    Threads,
    Tune,
    Verbose,
    Wait,
    state_file,
    target_from_options,
    unwrapped,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json
from edgekd.errors import UsageError

if TYPE_CHECKING:
    from edgekd.devices.hostkeys import HostKey

_HELP = """\
Machines to measure on: this one, and boards behind SSH.

A board needs an SSH server, Python 3.10 or newer, numpy and one runtime. edgekd logs in as you would (your keys, \
agent, jump hosts and ~/.ssh/config), copies a small worker into one folder there, installs nothing, and removes it \
all with [bold]clean[/bold].

[bold]From a board to its first latency[/bold]

  [cyan]edgekd devices add pi ssh://user@raspberrypi.local[/cyan]
  [cyan]edgekd profile model.onnx --target pi[/cyan]

[bold]When something is wrong[/bold]

  [cyan]edgekd devices doctor pi[/cyan]
"""
_ADD = """\
  [cyan]edgekd devices add pi ssh://user@raspberrypi.local[/cyan]
  [cyan]edgekd devices add orin ssh://orin-of-my-ssh-config --python python3.11 --profile jetson-orin-nano[/cyan]
  [cyan]edgekd devices add ci-board ssh://ci@10.0.0.7:2222 --fingerprint SHA256:... --json[/cyan]
"""
_LIST = """\
  [cyan]edgekd devices[/cyan]
  [cyan]edgekd devices list --reach --json[/cyan]
"""
_PROBE = """\
  [cyan]edgekd devices probe pi[/cyan]
  [cyan]edgekd devices probe pi --write-profile profiles/my-board.toml[/cyan]
"""
_DOCTOR = """\
  [cyan]edgekd devices doctor pi[/cyan]
  [cyan]edgekd devices doctor pi --json | jq -r '.findings[] | select(.grade != "good") | .mend'[/cyan]
"""
_LOCK = """\
  [cyan]edgekd devices lock pi --minutes 30 --why "new fan"[/cyan]
  [cyan]edgekd devices lock pi --release[/cyan]
"""
_CLEAN = """\
  [cyan]edgekd devices clean pi[/cyan]
"""
_REMOVE = """\
  [cyan]edgekd devices remove pi[/cyan]
  [cyan]edgekd devices remove pi --keep-files[/cyan]   it is broken, or gone
"""
_CALIBRATE = """\
  [cyan]edgekd devices calibrate[/cyan]
  [cyan]edgekd devices calibrate --target pi --runtime onnxruntime --pairs 60 --json[/cyan]
"""
app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", pretty_exceptions_enable=False, invoke_without_command=True
)


@app.callback()
def devices(
    context: typer.Context,
    *,
    history: History = None,
    profile_name: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """List what is known where no sub-command is given; the help text is the app's."""
    if context.invoked_subcommand is None:
        _list(profile_name, history, reach=False, as_json=as_json)
    elif history is not None or as_json:
        name = context.invoked_subcommand
        mend = f"write: edgekd devices {name} --json --history FILE"
        raise UsageError(f"options of {name} stand after it", mend=mend)


def add(
    name: NewName,
    destination: Destination,
    *,
    python: Python = "python3",
    folder: Folder = ".cache/edgekd",
    profile_name: Fitting = None,
    fingerprint: Fingerprint = None,
    yes: Yes = False,
    ssh_config: SshConfig = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Add a board: its host key is shown once, then it is logged into and looked at.

    The key is fetched without logging in, and never asked about again: from then on another key is refused before
    anything is sent. Nothing is written down unless the login works.
    """
    from edgekd.devices import registry

    agree = _agreement(yes=yes, wanted=fingerprint)
    path = (
        str(Path(profile_name).absolute()) if profile_name and Path(profile_name).is_file() else profile_name
    )
    asked = registry.new_board(
        name, destination, python=python, folder=folder, profile=path or "", ssh_config=ssh_config
    )
    with progress(quiet=quiet, verbose=verbose):
        from edgekd.pipeline import boards, fleet

        found = boards.add(
            asked,
            config=registry.config_folder(),
            agree=agree,
            today=fleet.utc_now(),
            wanted=fingerprint or "",
        )
    from edgekd.cli import device_tables

    show(found, device_tables.added, as_json=as_json)


def list_(
    *,
    reach: Reach = False,
    history: History = None,
    profile_name: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """List this machine, the boards that were added, and what was calibrated on them.

    `edgekd devices` alone does the same.
    """
    _list(profile_name, history, reach=reach, as_json=as_json)


def probe(
    name: Name,
    *,
    write_profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Makes a hardware profile: what works there, in which precisions, with how much memory.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what a board is now, with a real inference on each runtime.

    A board that had no profile has the one that is written from then on; otherwise it is used with --profile FILE.
    """
    with progress(quiet=quiet, verbose=verbose):
        from edgekd.devices import registry
        from edgekd.pipeline import boards, fleet

        config = registry.config_folder()
        found = boards.probe(name, config=config, today=fleet.utc_now(), profile_file=write_profile)
    from edgekd.cli import device_tables

    show(found, device_tables.probed, as_json=as_json)


def doctor(name: Name, *, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Examine a board by doing what a measurement does, and say what mends each thing that is wrong.

    Exit code 4: nothing can be measured there as it is. 6: it shows another host key.
    """
    with progress(quiet=quiet, verbose=verbose):
        from edgekd.devices import registry
        from edgekd.pipeline import boards

        found = boards.doctor(name, config=registry.config_folder())
    from edgekd.cli import device_tables

    if as_json:
        show_json(device_tables.examined_json(found))
    else:
        show(found, device_tables.examined, as_json=False)
    raise typer.Exit(0 if found.usable else 4)


def lock(
    name: Name,
    *,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440.0, help="It frees itself after these.")] = 10.0,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Shown to whoever wants it meanwhile.")] = "",
    release: Annotated[bool, typer.Option("--release", help="Free it now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep others from measuring on a board for a while.

    A measurement locks the board by itself, as long as it runs.
    """
    from edgekd.cli import device_tables
    from edgekd.devices import registry
    from edgekd.pipeline import boards

    config = registry.config_folder()
    if release:
        found = boards.unlock(name, config=config)
    else:
        found = boards.lock(name, config=config, minutes=minutes, why=why)
    show(found, device_tables.leased, as_json=as_json)


def clean(name: Name, *, as_json: AsJson = False) -> None:
    """Remove everything that edgekd has put on a board; what is needed is copied again."""
    from edgekd.cli import device_tables
    from edgekd.devices import registry
    from edgekd.pipeline import boards

    show(boards.clean(name, config=registry.config_folder()), device_tables.cleaned, as_json=as_json)


def remove(
    name: Name,
    *,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Leave what lies there; the board need not answer.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Clean a board, then forget it and its host key."""
    from edgekd.cli import device_tables
    from edgekd.devices import registry
    from edgekd.pipeline import boards

    found = boards.remove(name, config=registry.config_folder(), keep_files=keep_files)
    show(found, device_tables.cleaned, as_json=as_json)


def calibrate(
    *,
    pairs: Annotated[int, typer.Option(min=10, help="Of a model against itself, for each runtime.")] = 40,
    history: History = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time a model against itself, and say which slowdown a device shows in how many minutes.

    Takes a minute or two for each runtime. What was measured is kept after every 10 pairs.
    """
    from edgekd.values.gate import GateRules

    target = target_from_options(profile_name, runtime, threads, device, wait, tune=tune)
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
    from edgekd.cli import device_tables

    show(found, device_tables.calibrated, as_json=as_json)


def _list(profile_name: str | None, history: Path | None, *, reach: bool, as_json: bool) -> None:
    target = target_from_options(profile_name, None, None)
    from edgekd.cli import device_tables
    from edgekd.devices import registry
    from edgekd.pipeline import fleet

    found = fleet.list_devices(
        target,
        history=history or state_file(),
        today=fleet.utc_now(),
        config=registry.config_folder(),
        reach=reach,
    )
    show(found, device_tables.fleet, as_json=as_json)


def _agreement(*, yes: bool, wanted: str | None) -> Callable[[HostKey], bool]:
    """Return what shows a host key and asks about it, where somebody is there to answer.

    Raises:
        UsageError: nobody is, and neither --yes nor --fingerprint answers.

    """
    asks = not yes and wanted is None
    if asks and not sys.stdin.isatty():
        mend = "give --fingerprint SHA256:..., or --yes to take the key that the host shows now"
        what = "nobody is there to look at the host key"
        raise UsageError(
            what, cause="stdin is no terminal, and neither --fingerprint nor --yes is given", mend=mend
        )

    def agree(key: HostKey) -> bool:
        sys.stderr.write(f"{key.name} shows the host key\n  {key.kind} {key.fingerprint}\n")
        if not asks:
            return True
        return typer.confirm("Is it the board's?", default=False, err=True)

    return agree


for _verb, _examples in (
    (add, _ADD),
    (list_, _LIST),
    (probe, _PROBE),
    (doctor, _DOCTOR),
    (lock, _LOCK),
    (clean, _CLEAN),
    (remove, _REMOVE),
    (calibrate, _CALIBRATE),
):
    app.command(
        _verb.__name__.rstrip("_"),
        help=unwrapped(_verb.__doc__ or ""),
        epilog=f"[bold]Examples[/bold]\n\n{_examples}",
    )(_verb)
