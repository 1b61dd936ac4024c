"""The verb that guards a latency in CI: check."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import (
    AsJson,
    DeviceName,
    Inconclusive,
    Mean,
    OnInconclusive,
    ProfileName,
    Quiet,
    Record,
    Runtimes,
    Shapes,
    Std,
    Threads,
    Tune,
    Verbose,
    Wait,
    names_from,
    normalisation_from,
    shapes_from,
    state_file,
    target_from_options,
)
from edgekd.cli.progress import progress
from edgekd.cli.show import show, show_json, this_command
from edgekd.errors import UsageError
from edgekd.values.budget import RANKS
from edgekd.values.gate import Clock, Gate, GateRules, Question
from edgekd.values.target import Target

CHECK = """\
  [cyan]edgekd check main.onnx pull.onnx[/cyan]
  [cyan]edgekd check main/ pull/ --margin 2% --runtime openvino --annotate[/cyan]
  [cyan]edgekd check main pull.onnx --base-cmd "python export.py --out {out}"[/cyan]
  [cyan]edgekd check pull.onnx --baseline latency.json[/cyan]
"""

_GATE = "The question"
_REPORT = "The answer"
_FOLDER = Path("latency-gate")
EXIT_CODES = {"PASS": 0, "IMPROVED": 0, "FAIL": 1, "INCONCLUSIVE": 3, "ENVIRONMENT": 4}


def share_from(given: str | float) -> float:
    """Read `3%` or `0.03`.

    Raises:
        UsageError: it is neither, or not within (0, 1).

    """
    text = str(given)  # Typer brings the defaults through here too
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(f"{text!r} is not a share", mend="write 3%, or 0.03")
    return share


Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="[BASE] CANDIDATE",
        help="Model files, bundles, or two folders of them. With --base-cmd, BASE is a git revision.",
        show_default=False,
    ),
]


Margin = Annotated[
    float,
    typer.Option(
        parser=share_from,
        metavar="3%",
        show_default="3%",
        help="A slowdown up to this is none.",
        rich_help_panel=_GATE,
    ),
]
ClockChoice = Annotated[
    Clock,
    typer.Option(help="cpu: steadier under load; single-threaded inference only.", rich_help_panel=_GATE),
]
Alpha = Annotated[
    float,
    typer.Option(help="Chance of a false FAIL, over everything in this call.", rich_help_panel=_GATE),
]
MaxMinutes = Annotated[
    float, typer.Option(help="A comparison takes at most this long.", rich_help_panel=_GATE)
]
MaxSize = Annotated[
    float,
    typer.Option(
        parser=share_from,
        metavar="10%",
        show_default="10%",
        help="The file may grow by this.",
        rich_help_panel=_GATE,
    ),
]
MaxMemory = Annotated[
    float,
    typer.Option(
        parser=share_from,
        metavar="10%",
        show_default="10%",
        help="Memory may grow by this.",
        rich_help_panel=_GATE,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Labelled images: a folder with one folder a class, or an .npz; compares accuracy too.",
        show_default=False,
        rich_help_panel=_GATE,
    ),
]
MaxAccuracyDrop = Annotated[
    float,
    typer.Option(
        parser=share_from,
        metavar="1%",
        show_default="1%",
        help="Accuracy may fall by this.",
        rich_help_panel=_GATE,
    ),
]
BaseCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Builds BASE at that git revision; {out} stands for the .onnx it writes.",
        show_default=False,
        rich_help_panel=_GATE,
    ),
]
Release = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL",
        help="The last release: against slow boiling, held to 5 % unless --margin is wider.",
        show_default=False,
        rich_help_panel=_GATE,
    ),
]
BaselineFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Absolute limits that were measured on this very machine.",
        show_default=False,
        rich_help_panel=_GATE,
    ),
]
Update = Annotated[
    bool, typer.Option("--update", help="Measure and write --baseline.", rich_help_panel=_GATE)
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="p99=2.0",
        help="With --update: a limit in ms; what was measured and the margin unless given.",
        show_default=False,
        rich_help_panel=_GATE,
    ),
]
HistoryFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Adds to this SQLite file and reports changes in it, never blocking; a file of the user's unless given.",
        show_default=False,
        rich_help_panel=_REPORT,
    ),
]
Annotate = Annotated[
    bool,
    typer.Option(
        "--annotate", help="Print GitHub annotations; on in GitHub Actions.", rich_help_panel=_REPORT
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Every sample, JUnit XML, a comment, a page and JSON go here; latency-gate/ unless given.",
        show_default=False,
        rich_help_panel=_REPORT,
    ),
]


def check(
    models: Models,
    *,
    margin: Margin = 0.03,
    clock: ClockChoice = Clock.WALL,
    alpha: Alpha = 0.01,
    max_minutes: MaxMinutes = 10.0,
    max_size: MaxSize = 0.10,
    max_memory: MaxMemory = 0.10,
    data: Data = None,
    max_accuracy_drop: MaxAccuracyDrop = 0.01,
    mean: Mean = None,
    std: Std = None,
    base_cmd: BaseCommand = None,
    release: Release = None,
    baseline: BaselineFile = None,
    update: Update = False,
    limit: Limit = None,
    shape: Shapes = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    profile_name: ProfileName = None,
    device: DeviceName = None,
    wait: Wait = 0.0,
    tune: Tune = "",
    record: Record = "",
    history: HistoryFile = None,
    inconclusive: OnInconclusive = Inconclusive.FAIL,
    annotate: Annotate = False,
    out: Folder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say whether a candidate is slower than its base, here and now.

    Both are timed in turns, in fresh processes, until the answer is clear: a busy machine makes it slower, not wrong.
    """
    question = Question(
        models=tuple(models),
        release=release,
        base_command=base_cmd or "",
        baseline=baseline,
        update=update,
        limits_ms=limits_from(limit),
        rules=GateRules(
            margin=margin, clock=clock, alpha=alpha, max_minutes=max_minutes, size_margin=max_size,
            memory_margin=max_memory, max_accuracy_drop=max_accuracy_drop,
        ),
        runtimes=names_from(runtime),
        shapes=shapes_from(shape),
        data=data or "",
        normalisation=normalisation_from(mean, std),
        command=this_command(),
    )  # fmt: skip
    target = target_from_options(profile_name, runtime, threads, device, wait, record=record, tune=tune)
    found = _asked(question, target, out or _FOLDER, history, quiet=quiet, verbose=verbose)
    raise _answered(found, out or _FOLDER, inconclusive, as_json=as_json, annotate=annotate)


def _asked(
    question: Question, target: Target, out: Path, history: Path | None, *, quiet: bool, verbose: bool
) -> Gate:
    summary = os.environ.get("GITHUB_STEP_SUMMARY")  # the file that GitHub shows as the job's summary
    with progress(quiet=quiet, verbose=verbose):
        from edgekd import pipeline

        return pipeline.check(
            question,
            target,
            out=out,
            history=history or state_file(),
            summary=Path(summary) if summary else None,
        )


def limits_from(texts: list[str] | None) -> dict[str, float]:
    """Read `p99=2.0`, once a percentile.

    Raises:
        UsageError: a text has another form.

    """
    found = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            limit_ms = float(value)
        except ValueError:
            limit_ms = -1.0
        if name not in RANKS or not limit_ms > 0:
            raise UsageError(f"--limit {text!r} is not PERCENTILE=MS", mend="write --limit p99=2.0")
        found[name] = limit_ms
    return found


def _answered(
    found: Gate, folder: Path, inconclusive: Inconclusive, *, as_json: bool, annotate: bool
) -> typer.Exit:
    """Print the answer; return what ends the process."""
    from edgekd.cli import gate_tables
    from edgekd.stages import announce

    if annotate or os.environ.get("GITHUB_ACTIONS") == "true":
        for line in announce.annotations(found):  # GitHub reads them from either stream; stdout carries data
            sys.stderr.write(line + "\n")
    if as_json:
        show_json(announce.gate_json(found))
    else:
        show(found, gate_tables.gate, as_json=False)
        sys.stderr.write(f"  reports in {folder}\n")
    return typer.Exit(_exit_code(found, inconclusive))


def _exit_code(found: Gate, inconclusive: Inconclusive) -> int:
    code = EXIT_CODES[found.verdict.value]
    if found.verdict.value == "INCONCLUSIVE" and inconclusive is not Inconclusive.FAIL:
        if inconclusive is Inconclusive.WARN:
            sys.stderr.write("warning: inconclusive, and let through by --inconclusive warn\n")
        return 0
    return code
