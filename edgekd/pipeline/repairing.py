"""Put segments of an int8 file back to float: those that are slower in int8, or those that cost the accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from edgekd.errors import ModelError
from edgekd.pipeline.forms import (
    Attempts,
    Form,
    Source,
    by_latency,
    form_of,
    in_turns,
    judged,
    kept_nodes,
    made,
    screened,
    words,
)
from edgekd.stages.race import LEAST_GAIN
from edgekd.stages.survey import rank
from edgekd.values.order import SurveyReply
from edgekd.values.variant import Blamed, Exchange, Segment

log = logging.getLogger(__name__)

_CHUNK = 8  # segments that are ranked, and kept, at a time
_DOUBT = 0.5  # of what a profile says: layers overlap when nobody looks
_LEAST_COST = 0.01  # of the parent's latency: what a segment costs at least, since profiles are rough


def for_speed(  # noqa: PLR0917 - what is known so far
    source: Source,
    surveyed: SurveyReply,
    forms: list[Form],
    blamed: Sequence[Blamed],
    saved: dict[str, float],
    attempts: Attempts,
) -> list[Form]:
    """Keep blamed segments float, or all but the run that saves most, and measure again.

    Returns:
        All forms, the fastest first.

    """
    if not blamed or not attempts.more:
        return forms
    told = ", ".join(f"{one.segment} ({one.why})" for one in blamed[:3])
    log.info("  int8 is slower than float in %d segments: %s", len(blamed), told)
    if math.fsum(max(0.0, one) for one in saved.values()) < LEAST_GAIN * forms[0].parent_ms:
        return forms  # whatever is put back, the rest saves too little
    names = [one.name for one in surveyed.segments]
    counts = sorted({min(count, len(blamed)) for count in (1, 2, 4)})
    sets = [{one.segment for one in blamed[:count]} for count in counts]
    sets.append(set(names) - set(_best_run(names, saved)))
    distinct = {kept_nodes(surveyed.segments, tuple(some)): None for some in sets if some < set(names)}
    ways = [replace(forms[0].quantization, kept=kept) for kept in distinct]
    return by_latency([*forms, *screened(source, surveyed, ways, attempts)])


def _best_run(names: Sequence[str], saved: dict[str, float]) -> Sequence[str]:
    """Return the segments in a row that save most together: between them nothing is converted."""
    best, start, total, found = 0.0, 0, 0.0, (0, 0)
    for at, name in enumerate(names):
        if total <= 0:
            start, total = at, 0.0
        total += saved.get(name, 0.0)
        if total > best:
            best, found = total, (start, at + 1)
    return names[found[0] : found[1]]


def for_accuracy(
    source: Source, surveyed: SurveyReply, form: Form, saved: dict[str, float], attempts: Attempts
) -> tuple[Form, Exchange] | None:
    """Put back the fewest segments that make a form pass, by what each regains for what it costs.

    How many is found by doubling and then by halving. None where the time runs out first, or where what passes is
    no longer faster than float.
    """
    order = _order(source, surveyed, form, saved, attempts)
    most = min(len(order), len(surveyed.segments) - 1)
    failed, passed, count = 0, None, min(1, most)
    while count > failed and attempts.more and _may_win(form, order[:count], saved):
        one = _reverted(source, surveyed, form, order[:count], attempts)
        if one is not None and _passes(source, one):
            passed = (count, one)
            break
        failed, count = count, min(2 * count, most)
    if passed is None:
        return None
    while passed[0] - failed > 1 and attempts.more:
        middle = (failed + passed[0]) // 2
        one = _reverted(source, surveyed, form, order[:middle], attempts)
        if one is not None and _passes(source, one):
            passed = (middle, one)
        else:
            failed = middle
    return _exchanged(source, form, order[: passed[0]], passed[1], attempts)


def _order(
    source: Source, surveyed: SurveyReply, form: Form, saved: dict[str, float], attempts: Attempts
) -> list[Segment]:
    """Order segments by the divergence that each brings about, for what its return to float costs."""
    kept = set(form.quantization.kept)
    left = [one for one in surveyed.segments if not kept & set(one.nodes)]
    effects: dict[str, float] = {}
    for at in range(0, len(left), _CHUNK):
        if not attempts.more:
            break  # what is ranked so far is kept, and goes on from here the next time
        some = tuple(left[at : at + _CHUNK])
        log.info("  ranking segments %d to %d of %d", at + 1, at + len(some), len(left))
        how = replace(form.quantization, kept=())
        rows = source.held_out or source.calibration
        reply = source.store.run(rank, surveyed.model, source.calibration, rows, how, some, source.quantizers)
        effects.update(zip((one.name for one in some), reply.divergences))
    floor = _LEAST_COST * form.parent_ms
    moving = [one for one in left if effects.get(one.name, 0.0) > 0]
    return sorted(moving, key=lambda one: -effects[one.name] / max(saved.get(one.name, 0.0), floor))


def _reverted(
    source: Source, surveyed: SurveyReply, form: Form, segments: Sequence[Segment], attempts: Attempts
) -> Form | None:
    """Make and judge a form with more segments in float; it is timed once it passes."""
    names = [one.name for one in segments]
    again = [one.name for one in surveyed.segments if set(one.nodes) & set(form.quantization.kept)]
    how = replace(form.quantization, kept=kept_nodes(surveyed.segments, [*names, *again]))
    try:
        engine = made(source, surveyed, how)
    except ModelError as error:
        attempts.fail(how, str(error))
        return None
    one = judged(source, replace(form, quantization=how, engine=engine), attempts)
    if one.loss is not None:
        log.info("  %d segments in float: %s", len(segments), words(one.loss))
    return one


def _may_win(form: Form, segments: Sequence[Segment], saved: dict[str, float]) -> bool:
    """Say whether a form may still be faster than float without what segments save, as profiles have it."""
    given_up_ms = sum(max(0.0, saved.get(one.name, 0.0)) for one in segments)
    return form.relative + _DOUBT * given_up_ms / form.parent_ms <= 1 - LEAST_GAIN


def _passes(source: Source, form: Form) -> bool:
    return form.loss is not None and source.tolerance.allows(form.loss)


def _exchanged(
    source: Source, form: Form, segments: Sequence[Segment], repaired: Form, attempts: Attempts
) -> tuple[Form, Exchange] | None:
    """Time a repaired form beside the one it came from; None where it is no longer faster than float."""
    parent, before, after = in_turns(source, [form.engine, repaired.engine])
    loss = repaired.loss
    repaired = replace(form_of(repaired.quantization, repaired.engine, parent, after), loss=loss)
    attempts.note(repaired)
    assert form.loss is not None  # noqa: S101 - it was judged
    assert loss is not None  # noqa: S101 - it passed
    exchange = Exchange(
        kept=tuple(one.name for one in segments),
        before_ms=before.percentile(50),
        after_ms=repaired.p50_ms,
        before_points=form.loss.points,
        after_points=loss.points,
    )
    if repaired.relative > 1 - LEAST_GAIN:
        attempts.note(repaired, "with its accuracy regained it is no longer faster than fp32")
        return None
    return repaired, exchange
