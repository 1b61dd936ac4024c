"""Find the int8 form of a float file that is worth shipping: the fastest that loses nothing, or none."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

from edgekd.errors import ModelError
from edgekd.pipeline.forms import (
    Attempts,
    Form,
    Source,
    blamed_of,
    judged,
    made,
    screened,
    suffix,
    surveyed_of,
    words,
)
from edgekd.pipeline.repairing import for_accuracy, for_speed
from edgekd.stages.race import LEAST_GAIN, race, wins
from edgekd.stages.variants import structures, with_ranges
from edgekd.values.order import SurveyReply
from edgekd.values.variant import Blamed, Exchange, Quantization, Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of looking for an int8 form."""

    best: Form | None  # the fastest that is tolerated and beats its parent
    fastest: Form | None  # beats its parent, whatever it lost
    quickest: Form | None  # of all that were timed, whatever it lost and against fp32
    variants: tuple[Variant, ...]  # all that were tried
    blamed: tuple[Blamed, ...] = ()  # of the fastest structure as its quantiser makes it
    exchange: Exchange | None = None
    beyond: dict[str, float] = field(default_factory=dict)  # tensors whose held-out values leave their ranges
    why: str = ""  # there is no best


def find_int8(source: Source) -> Found:
    """Try int8 forms in the order of expected gain until the rest cannot win, and repair what lost.

    Structures are timed first: ranges change no latency. The fastest that loses nothing wins, the first way to find
    its ranges that passes ends the search; where none does, segments go back to float by effect and cost. What
    would ship is raced against its parent; a file that is not faster beyond doubt never is.

    Raises:
        DataError: the calibration inputs cannot serve.
        ModelError: it is malformed, or quantised already.

    """
    surveyed, attempts = surveyed_of(source), Attempts(source)
    forms = screened(source, surveyed, structures(source.parent.runtime, suffix(source)), attempts)
    if not forms:
        return _found(attempts, surveyed, why=_failure(attempts))
    blamed, saved = blamed_of(source, surveyed, forms[0])
    forms = for_speed(source, surveyed, forms, blamed, saved, attempts)
    quick = _quick(forms)
    if not quick:
        why = f"no int8 form is faster than fp32: the fastest takes {forms[0].p50_ms:.3f} ms against {forms[0].parent_ms:.3f}"
        return replace(_found(attempts, surveyed, why=why), blamed=blamed, quickest=forms[0])
    best: Form | None = None
    exchange: Exchange | None = None
    fastest: Form | None = None
    for form in quick:
        if best is not None and form.relative >= best.relative:
            break  # neither it nor what is slower can win
        judged, passed = _best_ranges(source, surveyed, form, attempts)
        fastest = fastest or judged
        if passed:
            best, exchange = judged, None
            continue
        repaired = for_accuracy(source, surveyed, judged, saved, attempts)
        if repaired and (best is None or repaired[0].relative < best.relative):
            best, exchange = repaired
    wanted = fastest if source.lossy else None
    found = _raced(source, surveyed, attempts, best=best, fastest=wanted)
    return replace(found, blamed=blamed, exchange=exchange, quickest=forms[0])


def _quick(forms: list[Form]) -> list[Form]:
    """Return the forms that beat fp32 by enough, of each structure the fastest."""
    found: dict[Quantization, Form] = {}
    for form in forms:
        if form.relative <= 1 - LEAST_GAIN:
            found.setdefault(replace(form.quantization, kept=()), form)
    return list(found.values())


def _best_ranges(source: Source, surveyed: SurveyReply, form: Form, attempts: Attempts) -> tuple[Form, bool]:
    """Judge a structure by each way to find its ranges, until one passes; else the one that lost least."""
    tried: list[Form] = []
    for how in with_ranges(form.quantization):
        if tried and not attempts.more:
            break
        try:
            engine = form.engine if how == form.quantization else made(source, surveyed, how)
        except ModelError as error:
            attempts.fail(how, str(error))
            continue
        one = judged(source, replace(form, quantization=how, engine=engine), attempts)
        assert one.loss is not None  # noqa: S101 - it was judged
        log.info("  %s: %.2f times as slow as fp32, %s", how.name, one.relative, words(one.loss))
        if source.tolerance.allows(one.loss):
            return one, True
        tried.append(one)
    return min(tried, key=lambda one: one.loss.divergence if one.loss else math.inf), False


def _raced(
    source: Source, surveyed: SurveyReply, attempts: Attempts, *, best: Form | None, fastest: Form | None
) -> Found:
    """Race what may ship against its parent."""
    won: dict[Quantization, Form] = {}
    why = "" if best else "no int8 form keeps the accuracy and is faster than fp32"
    for candidate in {form.quantization: form for form in (fastest, best) if form}.values():
        ratio = race(
            source.device,
            source.parent,
            candidate.engine,
            about_ms=max(candidate.p50_ms, candidate.parent_ms),
            seed=source.seed,
        )
        if wins(ratio):
            won[candidate.quantization] = replace(candidate, ratio=ratio)
            attempts.note(candidate, f"{ratio.estimate:.2f} of fp32's time, at most {ratio.high:.2f}")
        else:
            lost = f"not faster than fp32 beyond doubt: {ratio.estimate:.2f} of its time, perhaps {ratio.high:.2f}"
            attempts.note(candidate, lost)
            why = lost if candidate is best else why
    found = _found(attempts, surveyed, why=why)
    return replace(
        found,
        best=won.get(best.quantization) if best else None,
        fastest=won.get(fastest.quantization) if fastest else None,
    )


def _found(attempts: Attempts, surveyed: SurveyReply, *, why: str) -> Found:
    variants = tuple(attempts.variants.values())
    return Found(best=None, fastest=None, quickest=None, variants=variants, beyond=surveyed.beyond, why=why)


def _failure(attempts: Attempts) -> str:
    return next((one.why for one in attempts.variants.values() if one.why), "there was no time to make one")
