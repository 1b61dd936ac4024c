"""How each result reads on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekd.cli import layout
from edgekd.stages.configure import Configured
from edgekd.stages.doctor import Examination, Grade
from edgekd.stages.init import Initialised
from edgekd.values.bundle import Accuracies, LatencySummary, VerifyReport
from edgekd.values.codec import plain
from edgekd.values.outcome import (
    Compiled,
    Distilled,
    Exported,
    ExportedFile,
    Outcome,
    Plan,
    Profiled,
)

# What the bundle's runner can be asked, by kind of task; it says the rest itself.
_ASKED = {
    "classification": "--image some.png", "recognition": "--image some.png --against other.png",
    "regression": "--csv rows.csv", "ranking": "--list items.csv", "generation": "--prompt 'Once upon'",
    "keywords": "--wav word.wav", "detection": "--image some.png", "segmentation": "--image some.png",
}  # fmt: skip
_MARKS = {Grade.GOOD: ("ok", "green"), Grade.WARNING: ("warn", "yellow"), Grade.BAD: ("bad", "red")}


def outcome(found: Outcome) -> RenderableType:
    """Lay out what a run accepted."""
    student, accuracy = found.student, found.accuracy
    rows = [
        ("student", str(student.spec)),
        ("compiled", f"{student.runtime}, {student.precision.value}"),
        ("latency", _latency(found.latency_ms)),
        *((name, _latency(ms)) for name, ms in found.modes.items()),
        ("limit", _limits(found.budget, found.latency_ms)),
        *([("energy", found.energy.words)] if found.energy else []),
        ("teacher", f"{_latency(found.teacher_latency_ms)}; {_times_faster(found)}"),
        ("accuracy", _accuracy(accuracy)),
        ("trials", ", ".join(f"{count} {verdict}" for verdict, count in found.trials.items())),
        ("time", _times(found)),
        ("report", str(found.report)),
        ("bundle", str(found.bundle)),
        ("use it", f"python {shlex.quote(str(found.bundle / 'run.py'))} {_ASKED.get(found.task, '--help')}"),
    ]
    return Group(Text("ACCEPTED", style="bold green"), layout.pairs(rows))


def plan(found: Plan) -> RenderableType:
    """Lay out what is within reach."""
    verdict = (
        Text("WITHIN REACH", style="bold green")
        if found.reachable
        else Text("OUT OF REACH", style="bold red")
    )
    rows = [
        *((f"limit, {name}", _milliseconds(limits)) for name, limits in found.limits_ms.items()),
        *((f"teacher, {name}", f"p99 {p99_ms:.3f} ms") for name, p99_ms in found.teacher_p99_ms.items()),
        ("fastest timed", f"{found.fastest_measured_ms:.3f} ms"),
        (
            "space",
            f"{found.space_size:.2e} students; {found.measured} measurements, {found.device_seconds:.0f} s",
        ),
    ]
    frontier = layout.table(
        "largest students expected at each latency", "ms", "range", "MMACs", "compiled", "student"
    )
    for reach in found.frontier:
        frontier.add_row(
            f"{reach.expected_ms:.3f}",
            f"{reach.low_ms:.3f}-{reach.high_ms:.3f}",
            f"{reach.mega_macs:.2f}",
            f"{reach.runtime}/{reach.precision.value}",
            str(reach.spec),
        )
    if found.expected_seconds is not None:
        expected = f"{found.trials} trials from about {found.expected_proposals:.0f} proposals"
        rows.append(("a run", f"{expected}, roughly {found.expected_seconds / 60:.0f} min"))
    mends = [Text(f"  to mend it: {one.change} ({one.saves_ms:.2g} ms more)") for one in found.relaxations]
    if found.steps:
        saved = "; ".join(f"{one.change}: -{one.saves_ms:.2g} ms" for one in found.steps)
        mends.append(Text(f"  fastest measured {found.fastest_measured_ms:.3g} ms; {saved}"))
    return Group(verdict, *mends, layout.pairs(rows), Text(), frontier)


def exported(found: Exported) -> RenderableType:
    """Lay out the files of an export."""
    table = layout.table(
        f"{found.source}, opset {found.opset}",
        "file",
        "compiled",
        "MB",
        "p50 ms",
        "p99 ms",
        "largest error",
        "labels changed",
    )
    for one in found.exports:
        table.add_row(
            ", ".join(one.files),
            compiled_name(one),
            f"{one.size_bytes / 1e6:.2f}",
            f"{one.latency_ms.p50:.3f}",
            f"{one.latency_ms.p99:.3f}",
            Text(_error(one.max_error, one.scale), style="" if one.faithful else "bold red"),
            _changed(one.changed_labels, one.samples),
        )
    kind = "real" if found.calibration_sha256 else "random"
    checked = Text(f"  compared with the source on {kind} inputs", style="dim")
    return Group(
        table,
        checked,
        *_problems(found),
        *trust((compiled_name(one), one.latency_ms) for one in found.exports),
    )


def compiled(found: Compiled) -> RenderableType:
    """Lay out what a runtime made of a model."""
    opened = f"{found.open_ms:.0f} ms; the source takes {found.source_open_ms:.0f} ms"
    rows = [
        *_files(found.files),
        ("size", f"{found.size_bytes / 1e6:.3f} MB"),
        ("compiled", f"{found.runtime}/{found.precision.value}, {found.threads} thread(s)"),
        ("opens in", f"{opened}; {found.memory_mib:.0f} MiB"),
        ("departs", f"{_error(found.max_error, found.scale)} from the source"),
    ]
    return Group(layout.pairs(rows), *_problems(found))


def distilled(found: Distilled) -> RenderableType:
    """Lay out one student that was trained without a budget."""
    points = 100 * (found.student - found.teacher)
    rows = [
        ("student", str(found.spec)),
        (
            "validation",
            f"teacher {found.teacher:.4f}, student {found.student:.4f} ({points:+.2f} points; {found.metric})",
        ),
        (
            "training",
            f"{found.epochs} epochs, {found.train_seconds:.0f} s, {found.images_per_second:.0f} images/s",
        ),
        ("departs", f"{_error(found.max_error, found.scale)} from torch, exported"),
        *_files(found.files),
    ]
    return layout.pairs(rows)


def verified(found: VerifyReport) -> RenderableType:
    """Lay out what was checked in a bundle."""
    table = layout.table(str(found.folder), "", "check", "found")
    for check in found.checks:
        mark = Text("skip" if check.passed is None else "ok" if check.passed else "bad")
        mark.stylize("yellow" if check.passed is None else "green" if check.passed else "bold red")
        table.add_row(mark, check.name, check.detail)
    verdict = (
        Text("VERIFIED", style="bold green") if found.passed else Text("NOT WHAT IT WAS", style="bold red")
    )
    return Group(verdict, table)


def with_verdict(found: Exported | VerifyReport) -> dict[str, Any]:
    """Give the fields, and whether all that was checked holds."""
    return {"passed": found.passed, **plain(found)}


def examined(found: Examination) -> RenderableType:
    """Lay out what the doctor found."""
    machine = layout.table("this machine", "", "looked at", "found", "to mend it")
    for finding in found.findings:
        word, style = _MARKS[finding.grade]
        machine.add_row(Text(word, style=style), finding.name, finding.value, finding.mend)
    runtimes = layout.table("a real inference on each runtime", "", "runtime", "found", "to mend it")
    for health in found.runtimes:
        if health.works:
            error = f", at most {health.max_error:.0e} from numpy" if health.max_error else ", as numpy does"
            text = f"{health.version.partition('-')[0]} works{error}"
            runtimes.add_row(Text("ok", style="green"), health.name, text, "")
        else:
            state = "present but broken" if health.version else "absent"
            text = f"{state}: {health.problem}" if health.problem else state
            runtimes.add_row(Text("bad", style="red"), health.name, text, health.mend)
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in found.packages.items())
    lines = layout.sudoers(found.sudoers, "here")
    return Group(machine, runtimes, *lines, Text(f"\n{versions}", style="dim"))


def configured(found: Configured) -> RenderableType:
    """Lay out every key of a job with its origin."""
    table = layout.table(f"{found.name}, paths relative to {found.beside}", "key", "value", "from")
    section = ""
    for setting in found.settings():
        if section not in ("", setting.key.partition(".")[0]):
            table.add_section()
        section = setting.key.partition(".")[0]
        style = "dim" if setting.origin == "default" else ""
        table.add_row(setting.key, _value(setting.value), setting.origin, style=style)
    return table


def configured_json(found: Configured) -> dict[str, Any]:
    """Give every key with its value and origin."""
    settings = {one.key: {"value": one.value, "origin": one.origin} for one in found.settings()}
    return {"name": found.name, "beside": str(found.beside), "settings": settings}


def initialised(found: Initialised) -> RenderableType:
    """Name the files written and the next command."""
    job = next(path for path in found.files if path.name == "job.toml")
    return layout.pairs(
        [*(("wrote", str(path)) for path in found.files), ("next", f"edgekd plan {shlex.quote(str(job))}")]
    )


def fields(found: object) -> RenderableType:
    """Lay out a small value, a field a line."""
    return layout.pairs([(name.replace("_", " "), _value(value)) for name, value in _flat(plain(found))])


def _flat(data: Mapping[str, Any], within: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        elif name != "schema_version":
            yield f"{within}{name}", value


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        shown = ", ".join(_value(item) for item in value[:12])
        return f"{shown}, …" if len(value) > 12 else shown  # noqa: PLR2004 - what fits a line
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value in (None, []) else f"{value:g}" if isinstance(value, float) else str(value)


def _latency(ms: LatencySummary) -> str:
    bound = (
        "too few independent samples for a bound" if ms.p99_upper is None else f"at most {ms.p99_upper:.3f}"
    )
    return f"p50 {ms.p50:.3f} ms, p99 {ms.p99:.3f} ms ({bound} at {ms.confidence:.0%})"


def _limits(budget: Mapping[str, float], ms: LatencySummary) -> str:
    doubt = "" if ms.trust.verdict.value == "good" else f"; noisy: {'; '.join(ms.trust.reasons)}"
    return f"{_milliseconds(budget)}, kept over {ms.samples} samples{doubt}"


def _times_faster(found: Outcome) -> str:
    return f"the student is {found.teacher_latency_ms.p99 / found.latency_ms.p99:.1f}x faster at p99"


def _accuracy(accuracy: Accuracies) -> str:
    points = 100 * (accuracy.student - accuracy.teacher)
    return (
        f"teacher {accuracy.teacher:.4f}, student {accuracy.student:.4f} ({points:+.2f} points; "
        f"{accuracy.metric} on {accuracy.test_samples} test samples)"
    )


def _times(found: Outcome) -> str:
    whole = f"{int(found.seconds) // 60} min {int(found.seconds) % 60:02d} s"
    return f"{whole}; training {found.train_seconds:.0f} s, on the device {found.device_seconds:.0f} s"


def _files(files: Mapping[str, str]) -> list[tuple[str, str]]:
    return [("file", f"{path}  sha256 {sha256[:16]}…") for path, sha256 in files.items()]


def _error(error: float, scale: float) -> str:
    return f"{error / scale if scale else error:.1e} of the scale"


def _changed(changed: int | None, samples: int) -> str:
    return "no labels" if changed is None else f"{changed} of {samples}"


def _problems(found: Exported | Compiled) -> list[Text]:
    return [Text(f"  warning: {problem}", style="yellow") for problem in found.problems]


def compiled_name(one: Profiled | ExportedFile) -> str:
    """Name a file by its runtime and precision."""
    return f"{one.runtime}/{one.precision.value}"


def _milliseconds(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {limit_ms:.3f} ms" for name, limit_ms in limits.items())


def trust(latencies: Iterable[tuple[str, LatencySummary]]) -> list[Text]:
    """Say of each file why its numbers are noisy."""
    return [
        Text(f"  noisy, {name}: {'; '.join(ms.trust.reasons)}", style="yellow")
        for name, ms in latencies
        if ms.trust.reasons
    ]
