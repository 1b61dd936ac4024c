"""Compare a candidate with a base on a device: interleaved pairs of fresh processes, until the answer is clear."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from edgekd.devices import Device
from edgekd.errors import BuildError, EdgekdError
from edgekd.stages.references import reference
from edgekd.stages.weigh import Evidence, Rivals, Side, engines_of, log_ratios, unfit, weigh
from edgekd.store.journal import append, read
from edgekd.timing.duet import decide, ratio_of
from edgekd.values.gate import Comparison, GateRules, Pair
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Precision

__all__ = ["PAIR", "Rivals", "Side", "compare", "pair_protocol", "replay"]

log = logging.getLogger(__name__)

PAIRS, REFERENCES = "pairs.jsonl", "references.jsonl"
PAIR = Protocol(launches=1, blocks=8, samples=40, warmup_ms=60.0, one_core=True)
_ROUGH = Protocol(launches=1, blocks=1, samples=5, warmup_ms=5.0)
_FINE, _FINE_BLOCKS = 0.01, 12  # up to this margin, turns scatter more than launches and are cheaper
_TURN_MS = 12.0  # long against the change of arms, short against what the machine does meanwhile
_LEAST_SAMPLES, _MOST_SAMPLES = 3, 120  # a turn
_LOST_IN_A_ROW = 3

Now = Callable[[], float]


def compare(
    folder: Path,
    device: Device,
    rivals: Rivals,
    rules: GateRules,
    *,
    alpha: float,
    now: Now = time.monotonic,
) -> Comparison:
    """Time pairs until a look decides, the pairs or the time run out, or the machine proves unfit.

    Every pair lies in `folder` before the next begins. `alpha` is this comparison's share of the chance of a
    false FAIL. A pair that throttling touched, or of which an arm died, is dropped before its ratio is
    looked at.

    Raises:
        BuildError: an arm cannot be built, or dies each time.

    """
    protocol = pair_protocol(device, rivals, rules)
    for name in (PAIRS, REFERENCES):  # of an earlier comparison in the same folder
        (folder / name).unlink(missing_ok=True)
    start, evidence = now(), Evidence()
    for evidence in _gathered(folder, device, rivals, protocol, rules):
        seen = log_ratios(evidence.kept, rules.clock)
        log.info("    %s", _progress(evidence, seen, rules))
        late = now() - start > 60 * rules.max_minutes
        if late or unfit(evidence, rules) or decide(seen, rules, alpha):
            break
    return weigh(replace(evidence, seconds=now() - start), rivals, rules, alpha, protocol)


def replay(folder: Path, rivals: Rivals, rules: GateRules, *, alpha: float) -> Comparison | None:
    """Judge the pairs that an earlier comparison left in its folder; None where it left none.

    Raises:
        IntegrityError: they were altered.

    """
    pairs = read(folder / PAIRS, Pair)
    if not pairs:
        return None
    evidence = Evidence(pairs=pairs, references=read(folder / REFERENCES, Pair))
    protocol = replace(pairs[0].base.protocol, seed=0)
    return weigh(evidence, rivals, rules, alpha, protocol)


def pair_protocol(device: Device, rivals: Rivals, rules: GateRules) -> Protocol:
    """Choose the samples of a turn so that it takes some milliseconds, and more turns for a fine question.

    Raises:
        BuildError: an arm cannot be measured; the message says which.

    """
    turns = _turns_of(max(_rough_ms(device, word, side) for word, side in _sides(rivals)))
    return turns if rules.margin > _FINE else replace(turns, blocks=_FINE_BLOCKS)


def _turns_of(inference_ms: float) -> Protocol:
    samples = math.ceil(_TURN_MS / max(inference_ms, 1e-3))
    return replace(PAIR, samples=min(max(samples, _LEAST_SAMPLES), _MOST_SAMPLES))


def _rough_ms(device: Device, word: str, side: Side) -> float:
    try:
        (latency,) = device.time([side.engine], _ROUGH)
    except BuildError as error:
        raise BuildError(
            f"the {word} {side.path} cannot be measured",
            cause=f"{error.what}: {error.cause}".rstrip(": "),
            mend=error.mend,
        ) from error
    return latency.percentile(50)


def _gathered(
    folder: Path, device: Device, rivals: Rivals, protocol: Protocol, rules: GateRules
) -> Iterator[Evidence]:
    """Yield the evidence after each pair."""
    evidence, in_a_row = Evidence(), 0
    healthy = Side(path="the reference model", engine=_reference_engine(rivals))
    twins = _turns_of(_rough_ms(device, "reference", healthy))
    for number in range(2 * rules.looks[-1]):
        turns = replace(protocol, seed=rules.seed + number)
        if number % rules.reference_every == 0:
            own = replace(twins, seed=rules.seed + number)
            health = _pair(number, device, (healthy.engine, healthy.engine), own)
            append(folder / REFERENCES, health)
            evidence = replace(evidence, references=(*evidence.references, health))
        try:
            pair = _pair(number, device, engines_of(rivals), turns)
        except BuildError as error:
            in_a_row += 1
            log.info("    pair %d is lost: %s", number, error.what)
            if in_a_row == _LOST_IN_A_ROW:
                raise _hopeless(device, rivals, turns, error) from error
            evidence = replace(evidence, lost=(*evidence.lost, f"pair {number}: {error.what}"))
        else:
            in_a_row = 0
            append(folder / PAIRS, pair)
            evidence = replace(evidence, pairs=(*evidence.pairs, pair))
            yield evidence


def _pair(number: int, device: Device, engines: tuple[Engine, Engine], protocol: Protocol) -> Pair:
    base, candidate = device.time(engines, protocol)
    reasons = [
        f"pair {number}: {word} was throttled: {latency.conditions.load.throttle}"
        for word, latency in (("base", base), ("candidate", candidate))
        if latency.conditions.load.throttle
    ]
    return Pair(number=number, base=base, candidate=candidate, dropped="; ".join(reasons))


def _reference_engine(rivals: Rivals) -> Engine:
    like = rivals.candidate.engine
    return replace(like, model=reference(), precision=Precision.FP32, shapes=None)


def _hopeless(device: Device, rivals: Rivals, protocol: Protocol, error: BuildError) -> BuildError:
    """Find out which arm it is that dies."""
    deaths = (_death(device, word, side, protocol) for word, side in _sides(rivals))
    return next((death for death in deaths if death), error)


def _death(device: Device, word: str, side: Side, protocol: Protocol) -> BuildError | None:
    try:
        device.time([side.engine], protocol)
    except EdgekdError as found:
        what = f"the {word} {side.path} dies while it is measured"
        return BuildError(what, cause=f"{found.what}: {found.cause}".rstrip(": "), mend=found.mend)
    return None


def _sides(rivals: Rivals) -> tuple[tuple[str, Side], tuple[str, Side]]:
    return (rivals.against, rivals.base), ("candidate", rivals.candidate)


def _progress(evidence: Evidence, seen: tuple[float, ...], rules: GateRules) -> str:
    if not seen:
        return evidence.dropped[-1] if evidence.dropped else "no pair counts yet"
    ratio = ratio_of(seen, rules.alpha / len(rules.looks))
    bounds = f" [{ratio.low:.3f}, {ratio.high:.3f}]" if math.isfinite(ratio.low + ratio.high) else ""
    dropped = f", {len(evidence.dropped)} dropped" if evidence.dropped else ""
    return f"pair {len(seen)} of at most {rules.looks[-1]}: {ratio.estimate:.3f}x{bounds}{dropped}"
