"""Weigh what was measured of two arms: the same evidence gives the same verdict, whenever it is asked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from edgekd.timing.duet import (
    decide,
    fail_p,
    hodges_lehmann,
    noise_floor,
    pair_log_ratio,
    pairs_needed,
    ratio_of,
)
from edgekd.values.gate import Arm, Clock, Comparison, GateRules, GateVerdict, Pair
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine

_HEALTHY = 0.03  # the reference against itself may be so far off, and as far as its own scatter explains
_SIGMAS = 3.0
_MEMORY_SLACK_MIB = 2.0  # an allocator takes pages in bulk
LEAST_LOST = 3  # pairs; fewer are an accident


@dataclass(frozen=True, kw_only=True)
class Side:
    """One arm: what is run, and what it is called."""

    path: str
    engine: Engine
    accuracy: float | None = None  # where labelled data were given
    better: int = 0  # labelled samples that this side alone gets right


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The two arms of a comparison."""

    name: str
    base: Side
    candidate: Side
    against: str = "base"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was measured for a comparison, in run order."""

    pairs: tuple[Pair, ...] = ()
    references: tuple[Pair, ...] = ()  # the reference model against itself
    lost: tuple[str, ...] = ()  # pairs of which an arm died
    seconds: float = 0.0

    @property
    def kept(self) -> tuple[Pair, ...]:
        """The pairs that count."""
        return tuple(pair for pair in self.pairs if not pair.dropped)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Why each of the others does not."""
        return (*(pair.dropped for pair in self.pairs if pair.dropped), *self.lost)


def log_ratios(pairs: Iterable[Pair], clock: Clock) -> tuple[float, ...]:
    """Return the log ratio of each pair."""
    return tuple(pair_log_ratio(pair.base, pair.candidate, clock) for pair in pairs)


def unfit(evidence: Evidence, rules: GateRules) -> bool:
    """Say whether throttling, or arms that died, cost more pairs than may be lost."""
    lost = len(evidence.dropped)
    return lost >= LEAST_LOST and lost > rules.most_dropped * (len(evidence.kept) + lost)


def weigh(
    evidence: Evidence, rivals: Rivals, rules: GateRules, alpha: float, protocol: Protocol
) -> Comparison:
    """Say what the evidence means.

    `alpha` is this comparison's share of the chance of a false FAIL. Latency is judged first, then what the
    candidate breaks beside it: size, memory, accuracy.
    """
    seen = log_ratios(evidence.kept, rules.clock)
    base, candidate = _arms(evidence, rivals)
    verdict, reasons = _latency_verdict(evidence, seen, rules, alpha)
    breaches = _breaches(base, candidate, rivals, rules)
    engine, look_alpha = rivals.candidate.engine, alpha / len(rules.looks)
    other = Clock.CPU if rules.clock is Clock.WALL else Clock.WALL
    others = log_ratios(evidence.kept, other) if engine.threads == 1 else ()
    return Comparison(
        name=rivals.name,
        against=rivals.against,
        runtime=engine.runtime,
        precision=engine.precision,
        threads=engine.threads,
        verdict=GateVerdict.FAIL if breaches else verdict,
        reasons=(*breaches, *reasons, *_remarks(evidence, rivals)),
        clock=rules.clock,
        ratio=ratio_of(seen, look_alpha) if seen else None,
        other_ratio=ratio_of(others, look_alpha) if others else None,
        margin=rules.margin,
        pairs=len(seen),
        dropped=evidence.dropped,
        seconds=evidence.seconds,
        base=base,
        candidate=candidate,
        log_ratios=seen,
        p_fail=fail_p(seen, rules) if seen else 1.0,
        reference=ratio_of(log_ratios(evidence.references, rules.clock), look_alpha)
        if evidence.references
        else None,
        reference_p50_ms=pooled_latency([one.base for one in evidence.references]).percentile(50)
        if evidence.references
        else None,
        protocol=protocol,
        conditions=[*evidence.references, *evidence.pairs][-1].candidate.conditions,
    )


def _latency_verdict(
    evidence: Evidence, seen: Sequence[float], rules: GateRules, alpha: float
) -> tuple[GateVerdict, tuple[str, ...]]:
    if unfit(evidence, rules):
        taken = len(evidence.kept) + len(evidence.dropped)
        return GateVerdict.ENVIRONMENT, (f"{len(evidence.dropped)} of {taken} pairs were lost",)
    if sick := _sickness(evidence, rules):
        return GateVerdict.ENVIRONMENT, (sick,)
    decided = decide(seen, rules, alpha)
    if decided is None:
        return GateVerdict.INCONCLUSIVE, (
            f"the time given ended after {len(seen)} pairs",
            _advice(seen, rules),
        )
    if decided is GateVerdict.INCONCLUSIVE:
        return decided, (f"{len(seen)} pairs could not tell", _advice(seen, rules))
    return decided, ()


def _sickness(evidence: Evidence, rules: GateRules) -> str:
    """Say why the machine cannot measure: the reference model differs from itself by more than its scatter."""
    seen = log_ratios(evidence.references, rules.clock)
    if not seen:
        return ""
    off = hodges_lehmann(seen)
    allowed = max(_HEALTHY, _SIGMAS * noise_floor(seen) / math.sqrt(len(seen)))
    if abs(off) <= math.log1p(allowed):
        return ""
    return f"the reference model is {math.exp(off):.3f}x itself by the same method: the machine cannot measure now"


def _advice(seen: Sequence[float], rules: GateRules) -> str:
    """Name a margin that this machine could answer for, given the scatter that was seen."""
    scatter = noise_floor(seen) if seen else 0.0
    for margin in (0.05, 0.08, 0.10, 0.15, 0.20, 0.30):
        effect = 2 * margin  # a slowdown worth finding at such a margin
        if margin > rules.margin and pairs_needed(scatter, effect, margin, rules) <= rules.looks[-1]:
            return f"pairs scatter by {scatter:.1%}; a margin of {margin:.0%} is one that they can answer for"
    return f"pairs scatter by {scatter:.1%}: ask for a quieter machine"


def _breaches(base: Arm, candidate: Arm, rivals: Rivals, rules: GateRules) -> tuple[str, ...]:
    found = []
    if candidate.size_bytes > base.size_bytes * (1 + rules.size_margin):
        grown = candidate.size_bytes / base.size_bytes - 1
        found.append(f"the file grew by {grown:.1%}, more than {rules.size_margin:.0%}")
    if candidate.memory_mib > base.memory_mib * (1 + rules.memory_margin) + _MEMORY_SLACK_MIB:
        found.append(
            f"memory grew from {base.memory_mib:.1f} to {candidate.memory_mib:.1f} MiB, "
            f"more than {rules.memory_margin:.0%}"
        )
    if base.accuracy is not None and candidate.accuracy is not None:
        drop = base.accuracy - candidate.accuracy
        if drop > rules.max_accuracy_drop and _mcnemar_p(rivals) <= rules.alpha:
            found.append(f"accuracy fell by {drop:.2%}, more than {rules.max_accuracy_drop:.2%}")
    return tuple(found)


def _mcnemar_p(rivals: Rivals) -> float:
    """Return the exact one-sided p of McNemar's test: the candidate's losses on the same samples are chance."""
    losses, gains = rivals.base.better, rivals.candidate.better
    count = losses + gains
    return float(sum(math.comb(count, k) for k in range(losses, count + 1)) / 2**count)


def _remarks(evidence: Evidence, rivals: Rivals) -> tuple[str, ...]:
    """Say what a reader should know that decided nothing."""
    same = rivals.base.engine == rivals.candidate.engine
    files = rivals.base.engine.model.file.sha256 == rivals.candidate.engine.model.file.sha256
    noisy = chain.from_iterable(
        (*pair.base.trust.reasons, *pair.candidate.trust.reasons) for pair in evidence.kept
    )
    kinds = dict.fromkeys(reason.split(":")[0] for reason in noisy if reason.startswith("waited"))
    return (
        *(("base and candidate are the same file",) if same or files else ()),
        *(f"in some pairs an arm {kind}" for kind in kinds),
    )


def _arms(evidence: Evidence, rivals: Rivals) -> tuple[Arm, Arm]:
    pairs = evidence.kept or evidence.pairs
    return (
        arm_of(rivals.base, [pair.base for pair in pairs]),
        arm_of(rivals.candidate, [pair.candidate for pair in pairs]),
    )


def arm_of(side: Side, latencies: Sequence[Latency]) -> Arm:
    """Sum up one side: percentiles over all its samples, medians over its launches."""
    pooled = pooled_latency(latencies)
    launches = pooled.launches
    return Arm(
        path=side.path,
        sha256=side.engine.model.file.sha256,
        p50_ms=pooled.percentile(50),
        p95_ms=pooled.percentile(95),
        p99_ms=pooled.percentile(99),
        cpu_p50_ms=statistics.median(pooled.cpu_ms),
        samples=len(pooled.undisturbed_ms),
        size_bytes=side.engine.model.size_bytes,
        memory_mib=statistics.median(launch.memory_mib for launch in launches),
        open_ms=statistics.median(launch.open_ms for launch in launches),
        accuracy=side.accuracy,
        quantiles_ms=tuple(pooled.percentile(rank) for rank in range(1, 100)),
    )


def pooled_latency(latencies: Sequence[Latency]) -> Latency:
    """Put the samples of several measurements of one engine together, in run order."""
    return replace(
        latencies[-1],
        samples_ms=tuple(chain.from_iterable(one.samples_ms for one in latencies)),
        cpu_ms=tuple(chain.from_iterable(one.cpu_ms for one in latencies)),
        preempted=tuple(chain.from_iterable(one.preempted for one in latencies)),
        block_sizes=tuple(chain.from_iterable(one.block_sizes for one in latencies)),
        launches=tuple(chain.from_iterable(one.launches for one in latencies)),
    )


def engines_of(rivals: Rivals) -> tuple[Engine, Engine]:
    """Return what is timed, base first."""
    return rivals.base.engine, rivals.candidate.engine
