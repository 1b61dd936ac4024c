"""The gate as GitHub's workflow commands: annotations of a check run."""

# Without `from __future__ import annotations`: it would be the name of what is here.

from edgekd.stages.announce import words
from edgekd.values.gate import Comparison, Gate, GateRules, GateVerdict

MOST = 10  # of one kind that GitHub shows of a step
_LEVELS = {
    GateVerdict.FAIL: "error",
    GateVerdict.ENVIRONMENT: "warning",
    GateVerdict.INCONCLUSIVE: "warning",
    GateVerdict.IMPROVED: "notice",
}


def annotations(gate: Gate) -> tuple[str, ...]:
    """Write at most ten commands, the gravest first; one notice where all passed."""
    told = [_of(one, gate.rules) for one in words.gravest_first(gate) if one.verdict in _LEVELS]
    told += [_command("notice", "latency history", words.clean(change)) for change in gate.changes]
    if not told:
        told = [_command("notice", f"latency {gate.verdict.value}", words.headline(gate))]
    if len(told) > MOST:
        left = f"{len(told) - MOST + 1} more are in the job summary and in gate.json"
        told = [*told[: MOST - 1], _command("notice", "latency", left)]
    return tuple(told)


def _of(one: Comparison, rules: GateRules) -> str:
    lines = [words.sentence(one), *words.reasons(one), *words.mends(one, rules)]
    return _command(_LEVELS[one.verdict], f"latency {one.verdict.value}: {words.name(one)}", "\n".join(lines))


def _command(level: str, title: str, text: str) -> str:
    return f"::{level} title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
