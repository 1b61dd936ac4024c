"""The gate as the one comment of a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from edgekd.stages.announce import words
from edgekd.values.gate import Comparison, Gate, GateVerdict

MARKER = "<!-- edgekd-latency-gate -->"
_SIGNS = {
    GateVerdict.PASS: "✅", GateVerdict.IMPROVED: "🚀", GateVerdict.FAIL: "❌", GateVerdict.INCONCLUSIVE: "❔",
    GateVerdict.ENVIRONMENT: "⚠️",
}  # fmt: skip
# Characters; a comment holds 65,536, and escaping may make five of one. What is left out is in gate.json.
_TABLE, _PAIRS, _EXPLANATIONS = 18_000, 6_000, 16_000
_MOST_REASONS = 6
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!$])")
_JOINER = "\N{WORD JOINER}"  # invisible; keeps what looks like a mention or a link from becoming one
_LINKS = re.compile(r"@|:(?=//)|(?<=www)\.|(?<=\\#)(?=\d)", re.IGNORECASE)
_COLUMNS = (
    "model", "runs as", "p50, base → candidate", "ratio", "margin", "verdict", "size", "memory", "accuracy",
)  # fmt: skip


def markdown(gate: Gate, *, command: str = "") -> str:
    """Write the comment; its first line is a hidden marker by which it is found and updated."""
    ordered = words.gravest_first(gate)
    parts = [
        MARKER,
        f"### {_SIGNS[gate.verdict]} Latency: {gate.verdict.value}",
        escaped(words.headline(gate), 400),
        _table(ordered),
        _pairs(ordered),
        _explanations(gate, ordered),
        _changes(gate),
        _folded("Reproduce", _fenced(command)) if command else "",
        _folded("Conditions and rules", _circumstances(gate)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def code(text: str, most: int = 120) -> str:
    """Quote a stranger's name: within a code span nothing is markup, a mention or a link."""
    # A bar would end a table's cell even here, and a backtick the span.
    return f"`{words.clean(text, most).replace('`', chr(39)).replace('|', '¦') or '?'}`"


def escaped(text: str, most: int = 300) -> str:
    """Make text of unknown origin read as itself: no markup, no HTML, no mention, no link."""
    plain = words.clean(text, most).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKS.sub(lambda found: f"{found[0]}{_JOINER}", _SPECIAL.sub(r"\\\1", plain))


def _table(ordered: tuple[Comparison, ...]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'|'.join([' --- '] * len(_COLUMNS))}|"]
    rows = [f"| {' | '.join(_cells(one))} |" for one in ordered]
    kept = _within(rows, _TABLE)
    if len(kept) < len(rows):
        kept.append(f"\n… and {len(rows) - len(kept)} more in `gate.json`.")
    return "\n".join([*lines, *kept])


def _within(parts: Sequence[str], most: int) -> list[str]:
    """Keep the first parts, as many as have `most` characters together."""
    ends = accumulate(len(part) + 2 for part in parts)
    return [part for part, end in zip(parts, ends) if end <= most]


def _cells(one: Comparison) -> tuple[str, ...]:
    base, candidate = one.base, one.candidate
    ratio = f"{words.times(one.ratio.estimate)} {words.interval(one.ratio)}" if one.ratio else words.DASH
    against = "" if one.against == "base" else f" against {words.clean(one.against, 40)}"
    return (
        code(one.name),
        escaped(f"{words.engine(one)}{against}"),
        f"{words.ms(base.p50_ms)} → {words.ms(candidate.p50_ms)} ms",
        escaped(ratio),
        words.share(one.margin),
        f"**{one.verdict.value}**",
        f"{words.size(candidate)} ({words.change(base.size_bytes, candidate.size_bytes)})",
        f"{words.memory(candidate)} ({words.change(base.memory_mib, candidate.memory_mib)})",
        words.accuracy_change(one),
    )


def _pairs(ordered: tuple[Comparison, ...]) -> str:
    drawn = [one for one in ordered if one.log_ratios]
    lines = [f"- {words.sparkline(one)} {words.legend(one)}, {code(one.name)}" for one in drawn]
    return "\n".join(["Ratio of each pair, in run order:", "", *_within(lines, _PAIRS)]) if lines else ""


def _explanations(gate: Gate, ordered: tuple[Comparison, ...]) -> str:
    told = [one for one in ordered if words.reasons(one) or words.mends(one, gate.rules)]
    return "\n\n".join(_within([_explanation(one, gate) for one in told], _EXPLANATIONS))


def _explanation(one: Comparison, gate: Gate) -> str:
    reasons = words.reasons(one)
    lines = [f"- {escaped(reason)}" for reason in reasons[:_MOST_REASONS]]
    if len(reasons) > _MOST_REASONS:
        lines.append(f"- … and {len(reasons) - _MOST_REASONS} more in `gate.json`")
    lines += [f"- to mend it: {escaped(mend)}" for mend in words.mends(one, gate.rules)]
    why = (
        "Note on" if one.verdict in (GateVerdict.PASS, GateVerdict.IMPROVED) else f"Why {one.verdict.value},"
    )
    return "\n".join([f"**{why}** {code(one.name)}:", "", *lines])


def _changes(gate: Gate) -> str:
    if not gate.changes:
        return ""
    lines = [f"- {escaped(change, 150)}" for change in gate.changes[:_MOST_REASONS]]
    return "\n".join(["**Seen in the history** (blocks nothing):", "", *lines])


def _circumstances(gate: Gate) -> str:
    one, rules = gate.decisive, gate.rules
    rows = (
        *words.conditions(one),
        ("reference model", words.reference(one)),
        ("decided by", f"{one.clock.value} time, looks after {', '.join(map(str, rules.looks))} pairs"),
        ("false FAIL", f"at most {words.share(rules.alpha)} a call, over all comparisons and looks"),
        ("pairs dropped", f"{len(one.dropped)}{f': {one.dropped[0]}' if one.dropped else ''}"),
        ("whole call", words.seconds(gate.seconds)),
    )
    return "\n".join(f"- {escaped(name)}: {escaped(text, 100)}" for name, text in rows)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _fenced(command: str) -> str:
    text = words.clean(command, 2000)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
