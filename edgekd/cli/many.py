"""`edgekd run` for several targets, and its part in a training of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekd.cli import layout
from edgekd.cli.options import overrides_with
from edgekd.errors import UsageError
from edgekd.stages.configure import Configured, configure
from edgekd.values.codec import plain
from edgekd.values.outcome import Outcome
from edgekd.values.targets import Outcomes, TargetOutcome


def configured_for(
    job: str, overrides: Sequence[str], targets: Sequence[str], *, wait: float, record: str, tune: str
) -> dict[str, Configured]:
    """Read a job once for each target: `TARGET:section.key=value` is for that target alone.

    Raises:
        ConfigError: the job or an override is wrong.
        DeviceError: a target is neither a device nor a hardware profile.
        UsageError: a target is given twice.

    """
    from edgekd.pipeline.targets import folder_names

    folders = folder_names(targets) if len(set(targets)) == len(targets) else {}
    if not folders:
        raise UsageError("a target is given twice", mend="give each --target once")
    found = {}
    for target in targets:
        own = [text.removeprefix(f"{target}:") for text in overrides if text.startswith(f"{target}:")]
        common = [text for text in overrides if not any(text.startswith(f"{one}:") for one in targets)]
        tape = Path(record).with_stem(f"{Path(record).stem}-{folders[target]}") if record else None
        asked = overrides_with([*common, *own], target, wait, str(tape or ""), tune)
        found[target] = configure(job, asked)
    return found


def outcomes(found: Outcomes) -> RenderableType:
    """Lay out what came of each target."""
    alone = sum(one.trainings for one in found.targets)
    told = (
        f"{found.trainings} trainings, {found.train_seconds:.0f} s of training, {found.seconds:.0f} s in all"
    )
    if alone > found.trainings:
        told += f"; they served {alone} times"
    columns = (
        "",
        "target",
        "student",
        "compiled",
        "p99 ms",
        "limit ms",
        "accuracy",
        "teacher",
        "trainings",
        "in",
    )
    table = layout.table(told, *columns)
    for one in found.targets:
        table.add_row(*_row(one))
    remarks = [
        Text(
            f"  {one.target}: {one.problem}{f': {one.cause}' if one.cause else ''}\n    to mend it: {one.mend}"
        )
        for one in found.targets
        if one.outcome is None
    ]
    return Group(table, *remarks)


def outcomes_json(found: Outcomes) -> dict[str, Any]:
    """Give the fields, and at the top whether every target has its student."""
    held: dict[str, Any] = plain(found)
    return {"accepted": found.exit_code == 0, **held}


def _row(one: TargetOutcome) -> tuple[Text | str, ...]:
    trainings, folder = str(one.trainings), str(one.folder)
    if one.outcome is None:
        word = "refused" if one.exit_code == 1 else "failed"
        return Text(word, style="bold red"), one.target, "-", "-", "-", "-", "-", "-", trainings, folder
    return Text("ACCEPTED", style="bold green"), one.target, *_student(one.outcome), trainings, folder


def _student(found: Outcome) -> tuple[str, ...]:
    upper, limit = found.latency_ms.p99_upper, found.budget.get("p99")
    return (
        str(found.student.spec),
        f"{found.student.runtime}/{found.student.precision.value}",
        f"{found.latency_ms.p99:.3f}" + (f" (<= {upper:.3f})" if upper is not None else ""),
        f"{limit:.3f}"
        if limit is not None
        else ", ".join(f"{name} {ms:.3f}" for name, ms in found.budget.items()),
        f"{found.accuracy.student:.4f}",
        f"{found.accuracy.teacher:.4f}",
    )
