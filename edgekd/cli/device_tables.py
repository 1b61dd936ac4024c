"""How machines, boards and their calibrations read on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekd.cli import layout
from edgekd.devices.hostkeys import printable
from edgekd.stages.doctor import Grade
from edgekd.stages.examine_board import BoardExamination
from edgekd.values.board import Board, Survey
from edgekd.values.codec import plain
from edgekd.values.conditions import Conditions
from edgekd.values.fleet import (
    Added,
    Calibrated,
    CalibrationReport,
    Cleaned,
    Fleet,
    KnownBoard,
    KnownCalibration,
    KnownDevice,
    Leased,
    Probed,
    Resolution,
)
from edgekd.values.order import RuntimeHealth

_MARKS = {Grade.GOOD: ("ok", "green"), Grade.WARNING: ("warn", "yellow"), Grade.BAD: ("fail", "red")}


def fleet(found: Fleet) -> RenderableType:
    """Lay out the devices and what was calibrated."""
    reached = layout.table("this machine", "name", "processor", "cores", "memory", "runtimes", "fingerprint")
    for one in found.devices:
        reached.add_row(*_device(one))
    parts: list[RenderableType] = [reached, _boards(found.boards)]
    if not found.calibrations:
        return Group(*parts, Text("  none is calibrated yet: edgekd devices calibrate", style="dim"))
    kept = layout.table(
        "calibrations", "device", "runtime", "model", "p50", "noise", "by CPU time", "pairs", "date", ""
    )
    for known in found.calibrations:
        kept.add_row(*_calibration(known), style="dim" if known.outdated else "")
    return Group(*parts, kept, Text(f"  kept in {found.history}", style="dim"))


def added(found: Added) -> RenderableType:
    """Lay out a board that was written down, and what to do with it now."""
    board = found.board
    rows = [
        ("board", f"{board.name}, {board.destination}{_port(board)}"),
        ("host key", f"{found.key_kind} {board.fingerprint}"),
        *_survey(found.survey),
        *_machine(found.conditions),
        ("profile", board.profile or "none fits"),
    ]
    problems = [Text(f"  warning: {_said(problem)}", style="yellow") for problem in found.problems]
    after = f"edgekd profile model.onnx --target {board.name}"
    if found.problems:
        after = f"edgekd devices doctor {board.name}"
    return Group(
        Text("ADDED", style="bold green"),
        layout.pairs(rows),
        *_health(found.runtimes),
        *problems,
        Text(f"  next: {after}", style="dim"),
    )


def probed(found: Probed) -> RenderableType:
    """Lay out what a board is now."""
    rows = [
        ("board", f"{found.board.name}, {found.board.destination}{_port(found.board)}"),
        *_survey(found.survey),
        *_machine(found.conditions),
        ("load", _load(found.conditions)),
        ("fingerprint", found.conditions.fingerprint[:12]),
        ("lease", _lease(found.survey)),
    ]
    remarks = []
    if found.changed:
        remarks.append(Text("  it is not what it was when it was last looked at", style="yellow"))
    if found.profile_file is not None:
        used = found.board.profile == str(found.profile_file.absolute())
        how = "the board's own from now on" if used else f"used with --profile {found.profile_file}"
        remarks.append(Text(f"  profile written: {found.profile_file}, {how}", style="dim"))
    return Group(layout.pairs(rows), *_health(found.runtimes), *remarks)


def examined(found: BoardExamination) -> RenderableType:
    """Lay out what the doctor found on a board."""
    table = layout.table(found.device, "", "looked at", "found", "to mend it")
    for one in found.findings:
        word, style = _MARKS[one.grade]
        table.add_row(
            Text(word, style=style), one.name, Text(_said(one.value)), Text(_said(one.mend, most=600))
        )
    verdict = Text("USABLE", style="bold green") if found.usable else Text("NOT USABLE", style="bold red")
    return Group(verdict, table, *layout.sudoers(found.sudoers, f"on {found.device}"))


def examined_json(found: BoardExamination) -> dict[str, Any]:
    """Give the fields, and the verdict at the top."""
    return {"usable": found.usable, **plain(found)}


def leased(found: Leased) -> RenderableType:
    """Lay out who holds a board."""
    if found.lease is None:
        return Text(f"{found.device} is free")
    held = found.lease
    why = f": {_said(held.why)}" if held.why else ""
    return Text(f"{found.device} is held by {_said(held.owner)} for {held.expires_s / 60:.1f} minutes{why}")


def cleaned(found: Cleaned) -> RenderableType:
    """Lay out what was removed."""
    files = (
        "its files were left" if found.freed_mib is None else f"{found.freed_mib:.1f} MiB were freed there"
    )
    return Text(f"{found.device} is {'forgotten' if found.forgotten else 'clean'}; {files}")


def calibrated(found: CalibrationReport) -> RenderableType:
    """Lay out what each runtime's noise is, and what it lets the gate find."""
    parts: list[RenderableType] = [Text("CALIBRATED", style="bold green")]
    for one in found.calibrated:
        parts += [layout.pairs(_noise(one, found.threads)), _resolutions(one)]
    problems = [Text(f"  warning: {problem}", style="yellow") for problem in found.problems]
    return Group(*parts, *problems, Text(f"  kept in {found.history}", style="dim"))


def _boards(boards: Sequence[KnownBoard]) -> RenderableType:
    if not boards:
        return Text("  no board was added yet: edgekd devices add NAME ssh://user@host", style="dim")
    asked = any(one.survey is not None or one.problem for one in boards)
    table = layout.table(
        "boards", "name", "destination", "machine", "profile", "fingerprint", "seen", *(["now"] * asked)
    )
    for one in boards:
        table.add_row(*_board(one), *([_now(one)] * asked))
    return table


def _board(one: KnownBoard) -> tuple[Text | str, ...]:
    board = one.board
    return (
        board.name,
        Text(f"{board.destination}{_port(board)}"),
        Text(board.machine or "-"),
        Text(board.profile or "-"),
        board.conditions[:12] or "-",
        board.seen.partition("T")[0] or "-",
    )


def _now(one: KnownBoard) -> Text:
    if one.survey is None:
        return Text(_said(one.problem), style="red")
    if one.survey.lease is not None:
        return Text(_lease(one.survey), style="yellow")
    return Text("answers", style="green")


def _device(one: KnownDevice) -> tuple[Text | str, ...]:
    hardware, software = one.conditions.hardware, one.conditions.software
    runtimes = ", ".join(f"{name} {version.partition('-')[0]}" for name, version in software.runtimes.items())
    memory = f"{hardware.memory_mib / 1024:.0f} GiB"
    return (
        one.name,
        Text(hardware.processor),
        str(hardware.cores),
        memory,
        Text(runtimes or "none"),
        one.fingerprint[:12],
    )


def _port(board: Board) -> str:
    return f", port {board.port}" if board.port else ""


def _survey(found: Survey) -> Iterator[tuple[str, str]]:
    yield "Python", _said(f"{found.python} on {found.machine}, numpy {found.numpy or 'absent'}")
    yield "free", f"{found.free_mib / 1024:.1f} GiB"


def _machine(found: Conditions | None) -> Iterator[tuple[str, str]]:
    if found is not None:
        hardware = found.hardware
        value = f"{hardware.processor}, {hardware.cores} cores, {hardware.memory_mib / 1024:.1f} GiB"
        yield "machine", _said(value)


def _load(found: Conditions) -> str:
    parts = [f"{found.load.load_average:.2f} on {found.hardware.cores} cores"]
    if found.load.temperature_c is not None:
        parts.append(f"{found.load.temperature_c:.0f} °C")
    parts.append(f"governor {found.software.governor}")
    return _said(", ".join([*parts, *([found.load.throttle] if found.load.throttle else [])]))


def _lease(found: Survey) -> str:
    if found.lease is None:
        return "free"
    held = found.lease
    return _said(f"held by {held.owner} for another {held.expires_s:.0f} s: {held.why or 'no reason given'}")


def _health(runtimes: Iterable[RuntimeHealth]) -> Iterator[RenderableType]:
    runtimes = tuple(runtimes)
    if not runtimes:
        return
    table = layout.table("a real inference on each runtime", "", "runtime", "found", "to mend it")
    for health in runtimes:
        if health.works:
            text = f"{health.version.partition('-')[0]} works"
            table.add_row(Text("ok", style="green"), health.name, Text(_said(text)), "")
        else:
            broken = bool(health.version)
            state = f"present but broken: {health.problem}" if broken else "absent"
            mark = Text("fail", style="red") if broken else Text("-", style="dim")
            table.add_row(mark, health.name, Text(_said(state)), Text(_said(health.mend)))
    yield table


def _said(text: str, most: int = 300) -> str:
    """Make words of a board fit for a terminal."""
    return printable(text, most)


def _calibration(known: KnownCalibration) -> tuple[str, ...]:
    one = known.calibration
    return (
        one.device,
        one.runtime if one.threads == 1 else f"{one.runtime}, {one.threads} threads",
        one.reference,
        f"{one.p50_ms:.2f} ms",
        f"{one.noise:.2%}",
        f"{one.cpu_noise:.2%}",
        str(one.pairs),
        one.date.partition("T")[0],
        known.outdated,
    )


def _noise(one: Calibrated, threads: int) -> list[tuple[str, str]]:
    found = one.calibration
    return [
        ("runtime", f"{found.runtime}, {threads} thread(s)"),
        ("reference", f"{found.reference}, p50 {found.p50_ms:.3f} ms"),
        ("noise of a pair", f"{found.noise:.2%} by the wall clock, {found.cpu_noise:.2%} by CPU time"),
        ("measured", f"{found.pairs} pairs of {found.pair_seconds:.1f} s"),
    ]


def _resolutions(one: Calibrated) -> Table:
    table = layout.table(
        "what the gate finds here", "a slowdown of", "over a margin of", "clock", "pairs", "minutes", ""
    )
    for found in one.resolutions:
        table.add_row(
            f"+{_share(found.effect)}",
            _share(found.margin),
            found.clock.value,
            f"{found.pairs:,}",
            f"{found.minutes:.1f}",
            Text(_advice(found), style="yellow"),
        )
    return table


def _advice(found: Resolution) -> str:
    if found.within_reach:
        return ""
    if found.honest_margin is None:
        return "out of reach: a quieter machine, or more time for each comparison"
    slowdown = found.effect / found.margin * found.honest_margin
    return f"out of reach: an honest margin is {_share(found.honest_margin)}, which shows +{_share(slowdown)}"


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"
