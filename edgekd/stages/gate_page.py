"""Write what the gate found as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgekd.stages.announce import words
from edgekd.stages.gate_plots import HEIGHT, WIDTH, RatioPlot, SpreadPlot, ratio_plot, spread_plot
from edgekd.values.gate import Arm, Comparison, Gate, GateRules, GateVerdict

_TONES = {
    GateVerdict.PASS: "good", GateVerdict.IMPROVED: "good", GateVerdict.FAIL: "bad",
    GateVerdict.INCONCLUSIVE: "warm", GateVerdict.ENVIRONMENT: "warm",
}  # fmt: skip
_BANNERS = {"good": "", "bad": "refused", "warm": "doubtful"}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One property of both arms."""

    name: str
    base: str
    candidate: str
    change: str


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One comparison in words and pictures."""

    name: str
    engine: str
    against: str
    verdict: str
    tone: str
    sentence: str
    reasons: tuple[str, ...]
    mends: tuple[str, ...]
    ratios: RatioPlot | None
    spread: SpreadPlot | None
    rows: tuple[_Row, ...]
    notes: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    conditions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class _View:
    """The page, in its order."""

    verdict: str
    banner: str
    headline: str
    blocks: tuple[_Block, ...]
    changes: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    command: str
    width: float = WIDTH
    height: float = HEIGHT


def page(gate: Gate, *, command: str) -> str:
    """Lay out the verdict, every comparison and its evidence; the same gate gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("gate.html.jinja").render(v=_view(gate, command)) + "\n"


def _view(gate: Gate, command: str) -> _View:
    return _View(
        verdict=gate.verdict.value,
        banner=_BANNERS[_TONES[gate.verdict]],
        headline=words.headline(gate),
        blocks=tuple(_block(one, gate.rules) for one in words.gravest_first(gate)),
        changes=tuple(map(words.clean, gate.changes)),
        rules=_rules(gate),
        command=words.clean(command, 4000),
    )


def _block(one: Comparison, rules: GateRules) -> _Block:
    return _Block(
        name=words.name(one),
        engine=words.engine(one),
        against=words.clean(one.against, 40),
        verdict=one.verdict.value,
        tone=_TONES[one.verdict],
        sentence=words.sentence(one),
        reasons=words.reasons(one),
        mends=words.mends(one, rules),
        ratios=ratio_plot(one, rules),
        spread=spread_plot(one),
        rows=tuple(_rows(one)),
        notes=tuple(_notes(one)),
        dropped=tuple(map(words.clean, one.dropped)),
        conditions=words.conditions(one),
    )


def _rows(one: Comparison) -> Iterator[_Row]:
    base, candidate = one.base, one.candidate
    fields = (
        ("p50", "p50_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"), ("CPU time, p50", "cpu_p50_ms"),
        ("start-up", "open_ms"),
    )  # fmt: skip
    for name, field in fields:
        yield _times(name, getattr(base, field), getattr(candidate, field))
    grown = words.change(base.size_bytes, candidate.size_bytes)
    yield _Row(name="size", base=words.size(base), candidate=words.size(candidate), change=grown)
    grown = words.change(base.memory_mib, candidate.memory_mib)
    yield _Row(name="memory", base=words.memory(base), candidate=words.memory(candidate), change=grown)
    gained = words.accuracy_change(one)
    yield _Row(name="accuracy", base=words.accuracy(base), candidate=words.accuracy(candidate), change=gained)
    samples = (f"{arm.samples:,}" for arm in (base, candidate))
    yield _Row(name="inferences timed", base=next(samples), candidate=next(samples), change="")


def _times(name: str, base_ms: float, candidate_ms: float) -> _Row:
    change = words.change(base_ms, candidate_ms)
    return _Row(name=f"{name}, ms", base=words.ms(base_ms), candidate=words.ms(candidate_ms), change=change)


def _file(arm: Arm) -> str:
    return f"{words.clean(arm.path, 120)} ({arm.sha256[:12]})"


def _notes(one: Comparison) -> Iterator[tuple[str, str]]:
    yield words.clean(one.against, 40), _file(one.base)
    yield "candidate", _file(one.candidate)
    yield "decided by", "wall-clock time" if one.clock.value == "wall" else "CPU time of the inferring thread"
    if one.other_ratio is not None:
        other = "CPU time" if one.clock.value == "wall" else "wall-clock time"
        yield f"by {other}", f"{words.times(one.other_ratio.estimate)} {words.interval(one.other_ratio)}"
    yield "reference model", words.reference(one)
    yield "chance of such pairs at the margin", f"{one.p_fail:.2g}"
    yield "pairs that count", f"{one.pairs}; {len(one.dropped)} dropped"


def _rules(gate: Gate) -> tuple[tuple[str, str], ...]:
    rules = gate.rules
    return (
        ("margin", words.share(rules.margin)),
        ("false FAIL", f"at most {words.share(rules.alpha)} a call, over all comparisons and looks"),
        ("looks", f"after {', '.join(map(str, rules.looks))} pairs"),
        ("clock", rules.clock.value),
        ("time", f"at most {rules.max_minutes:g} minutes a comparison"),
        ("size, memory", f"may grow by {words.share(rules.size_margin)}, {words.share(rules.memory_margin)}"),
        ("accuracy", f"may drop by {100 * rules.max_accuracy_drop:g} points"),
        ("reference model", f"every {rules.reference_every} pairs"),
        ("dropped pairs", f"at most {words.share(rules.most_dropped)}"),
        ("seed", str(rules.seed)),
        ("whole call", words.seconds(gate.seconds)),
    )
