"""Examine a board: what measuring there needs, what would spoil it, and which runtimes really work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekd.devices.restoring import sudoers
from edgekd.errors import EdgekdError
from edgekd.stages.doctor import Finding, Grade, governor, load, tuning
from edgekd.values.board import Board, Survey
from edgekd.values.conditions import Conditions
from edgekd.values.order import ProbeReply, RuntimeHealth

OLDEST_PYTHON = (3, 10)
_SPOILT = ("slowed now", "was slowed", "not understood")  # how lines of `BoardReading.words` begin
_CLOCK_S = 120.0  # a wrong clock breaks certificates, `apt` and what one reads from logs
_LEAST_MIB, _EASY_MIB = 200, 1024  # free there: for the worker and a model; for a search and its data


@dataclass(frozen=True, kw_only=True)
class BoardExamination:
    """Everything `edgekd devices doctor` found."""

    device: str
    findings: tuple[Finding, ...]
    conditions: Conditions | None = None  # None where no worker ran
    runtimes: tuple[RuntimeHealth, ...] = ()
    sudoers: tuple[
        str, ...
    ] = ()  # lines that let --tune run there; none where it may, or nothing can be tuned
    schema_version: int = 1

    @property
    def usable(self) -> bool:
        """Whether something can be measured there now."""
        return all(one.grade is not Grade.BAD for one in self.findings)


def examine_board(
    board: Board,
    survey: Survey | EdgekdError,
    reply: ProbeReply | EdgekdError | None,
    *,
    expected: Sequence[str] = (),
    clock_off_s: float | None = None,
) -> BoardExamination:
    """Judge what was found on a board.

    Args:
        board: as it was added.
        survey: what it says of itself, or why it could not be asked.
        reply: what its worker found with a real inference on each runtime, or why there is no answer; None: not asked.
        expected: runtimes of its hardware profile, whose absence is told.
        clock_off_s: how far its clock is ahead of this machine's; None where that is not known.

    """
    if isinstance(survey, EdgekdError):
        return BoardExamination(device=board.name, findings=(_failure("ssh", survey),))
    ground = [*_reached(board), *_ground(board, survey), *_clock(clock_off_s)]
    if reply is None:
        return BoardExamination(device=board.name, findings=tuple(ground))
    if isinstance(reply, EdgekdError):
        return BoardExamination(device=board.name, findings=(*ground, _failure("worker", reply)))
    worker = Finding(name="worker", grade=Grade.GOOD, value=f"{survey.used_mib:.1f} MiB in {board.folder}")
    health = _runtimes(reply.runtimes, expected)
    return BoardExamination(
        device=board.name,
        findings=(
            *ground,
            worker,
            *_state(reply.conditions),
            *_own_words(reply.board),
            *tuning(allowed=reply.may_tune),
            *health,
        ),
        conditions=reply.conditions,
        runtimes=reply.runtimes,
        sudoers=sudoers(_user(board)) if reply.may_tune is False else (),
    )


def shortcomings(board: Board, survey: Survey) -> tuple[Finding, ...]:
    """Return what keeps a worker from running on a board that can be logged into."""
    return tuple(one for one in _ground(board, survey) if one.grade is Grade.BAD)


def _reached(board: Board) -> Iterator[Finding]:
    yield Finding(name="ssh", grade=Grade.GOOD, value=f"logs in as {board.destination}")
    shown = board.fingerprint or "known to ssh, not written down by edgekd"
    yield Finding(name="host key", grade=Grade.GOOD, value=shown)


def _ground(board: Board, survey: Survey) -> Iterator[Finding]:
    yield _python(survey)
    yield _numpy(board, survey)
    yield _disk(board, survey)
    yield _lease(board, survey)


def _clock(off_s: float | None) -> Iterator[Finding]:
    if off_s is None:
        return
    grade, mend = Grade.GOOD, ""
    if abs(off_s) > _CLOCK_S:
        grade, mend = Grade.WARNING, "run there: sudo timedatectl set-ntp true"
    side = "ahead of" if off_s > 0 else "behind"
    value = f"{abs(off_s):,.0f} s {side} this machine's" if mend else "in step"
    yield Finding(name="clock", grade=grade, value=value, mend=mend)


def _python(survey: Survey) -> Finding:
    value = f"{survey.python} on {survey.machine}"
    if _version(survey.python) < OLDEST_PYTHON:
        mend = "install Python 3.10 or newer there; then remove the board and add it with --python python3.10"
        return Finding(name="Python", grade=Grade.BAD, value=f"{value} is too old", mend=mend)
    return Finding(name="Python", grade=Grade.GOOD, value=value)


def _numpy(board: Board, survey: Survey) -> Finding:
    if not survey.numpy:
        mend = f"run there: {board.python} -m pip install numpy, or apt install python3-numpy"
        return Finding(name="numpy", grade=Grade.BAD, value="absent", mend=mend)
    return Finding(name="numpy", grade=Grade.GOOD, value=survey.numpy)


def _disk(board: Board, survey: Survey) -> Finding:
    value = f"{survey.free_mib / 1024:.1f} GiB free for {board.folder}"
    if survey.free_mib >= _EASY_MIB:
        return Finding(name="disk", grade=Grade.GOOD, value=value)
    grade = Grade.WARNING if survey.free_mib >= _LEAST_MIB else Grade.BAD
    mend = f"free {_EASY_MIB / 1024:.0f} GiB there, or run: edgekd devices clean {board.name}"
    return Finding(name="disk", grade=grade, value=value, mend=mend)


def _lease(board: Board, survey: Survey) -> Finding:
    if survey.lease is None:
        return Finding(name="lease", grade=Grade.GOOD, value="nobody measures there")
    held = survey.lease
    value = f"held by {held.owner} for another {held.expires_s:.0f} s: {held.why or 'no reason given'}"
    mend = f"wait; where it is yours, run: edgekd devices lock {board.name} --release"
    return Finding(name="lease", grade=Grade.WARNING, value=value, mend=mend)


def _own_words(words: Sequence[str]) -> Iterator[Finding]:
    for line in words:
        spoilt = line.startswith(_SPOILT)
        mend = "let it cool, and look at its power supply and power mode" if spoilt else ""
        yield Finding(name="board", grade=Grade.WARNING if spoilt else Grade.GOOD, value=line, mend=mend)


def _state(conditions: Conditions) -> Iterator[Finding]:
    hardware = conditions.hardware
    value = f"{hardware.processor}, {hardware.cores} cores, {hardware.memory_mib / 1024:.1f} GiB"
    yield Finding(name="machine", grade=Grade.GOOD, value=value)
    yield governor(conditions)
    yield load(conditions)
    yield _heat(conditions)


def _heat(conditions: Conditions) -> Finding:
    degrees = conditions.load.temperature_c
    value = "no thermometer to be read" if degrees is None else f"{degrees:.0f} °C"
    if conditions.load.throttle:
        mend = "cool it and check its power supply: latencies taken now are not those of the board"
        return Finding(
            name="throttling", grade=Grade.WARNING, value=f"{value}; {conditions.load.throttle}", mend=mend
        )
    return Finding(name="throttling", grade=Grade.GOOD, value=f"none seen; {value}")


def _user(board: Board) -> str:
    user, at, _ = board.destination.partition("@")
    return user if at else "USER"  # an alias of the SSH configuration keeps it


def _runtimes(found: Sequence[RuntimeHealth], expected: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for each runtime; that none works is one of its own."""
    works = any(health.works for health in found)
    for health in found:
        if health.works:
            error = f", at most {health.max_error:.0e} from numpy" if health.max_error else ", as numpy does"
            value = f"{health.version.partition('-')[0]} computes{error}"
            yield Finding(name=health.name, grade=Grade.GOOD, value=value)
        elif health.version or health.name in expected or not works:
            state = "present but broken" if health.version else "absent"
            value = f"{state}: {health.problem}" if health.problem else state
            grade = Grade.WARNING if works else Grade.BAD
            yield Finding(name=health.name, grade=grade, value=value, mend=health.mend)
    if not found:
        yield Finding(name="runtimes", grade=Grade.BAD, value="none was looked at", mend="give a profile")


def _failure(name: str, error: EdgekdError) -> Finding:
    value = f"{error.what}: {error.cause}" if error.cause else error.what
    return Finding(name=name, grade=Grade.BAD, value=value, mend=error.mend)


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)
