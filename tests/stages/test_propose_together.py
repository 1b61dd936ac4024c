"""One student for several targets: those that it is worth training for, within each one's limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from edgekd.stages.propose import Asking, propose, propose_together
from edgekd.values.codec import fingerprint
from edgekd.values.model import Precision
from edgekd.values.trial import History, Proposal, Verdict
from tests.stages.test_propose import SPACE, device_ms, latency, limits, macs, probed, searched, tried

__all__ = ["probed"]


@pytest.fixture(scope="module", autouse=True)
def _fewer_candidates() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekd.stages.propose._POOL", 500)
        patch.setattr("edgekd.stages.propose._CLIMBS", 2)
        yield


def slower(history: History, factor: float) -> History:
    """Return the same trials on a device that takes so many times as long."""
    return History(
        trials=tuple(
            replace(one, latency=latency(factor * one.latency.percentile(50))) for one in history.trials
        )
    )


def asked(history: History, limit_ms: float) -> Asking:
    return Asking(history=history, limits=limits(limit_ms))


def both(first: Asking, second: Asking) -> History:
    return History(trials=(*first.history.trials, *second.history.trials))


def test_equal_needs_get_one_student_for_both(probed: History) -> None:
    first, second = asked(probed, 1.0), asked(slower(probed, 3.0), 3.0)
    found = propose_together(SPACE, (first, second), both(first, second), seed=0)
    assert found.keys() == {0, 1}
    assert found[0].spec == found[1].spec
    assert device_ms(found[0].spec, found[0].precision) <= 1.0
    again = propose_together(SPACE, (first, second), both(first, second), seed=0)
    assert again == found


def test_needs_that_lie_far_apart_get_students_of_their_own(probed: History) -> None:
    tight, loose = asked(probed, 0.15), asked(probed, 4.0)
    found = propose_together(SPACE, (tight, loose), both(tight, loose), seed=0)
    assert len(found) == 1
    ((at, proposal),) = found.items()
    assert device_ms(proposal.spec, proposal.precision) <= (0.15, 4.0)[at]
    alone = propose(SPACE, probed, limits((0.15, 4.0)[at]), seed=0)
    assert macs(proposal.spec) == pytest.approx(macs(alone.spec), abs=0.5)  # decades


def test_each_target_compiles_it_as_it_is_fastest_there(probed: History) -> None:
    floats = History(trials=tuple(one for one in probed.trials if one.proposal.precision.value == "fp32"))
    first, second = asked(probed, 1.0), asked(floats, 1.0)
    found = propose_together(SPACE, (first, second), both(first, second), seed=0)
    assert found[1].precision.value == "fp32"


def test_what_one_target_has_tried_is_proposed_to_the_others_alone(probed: History) -> None:
    first, second = asked(probed, 1.0), asked(slower(probed, 3.0), 3.0)
    spec = propose_together(SPACE, (first, second), both(first, second), seed=0)[0].spec
    known = tried(Proposal(spec=spec, runtime="openvino", precision=Precision.INT8), 1.0)
    first = replace(first, history=first.history.adding(known))
    found = propose_together(SPACE, (first,), first.history, seed=0)
    assert fingerprint(found[0].spec) != fingerprint(spec)
    found = propose_together(SPACE, (first, second), both(first, second), seed=0)
    assert found
    assert all(fingerprint(one.spec) != fingerprint(spec) for at, one in found.items() if at == 0)


def test_what_was_trained_for_one_teaches_the_other(probed: History) -> None:
    known = searched(probed, 1.0, 5)
    fresh = asked(probed, 1.0)
    taught = propose_together(SPACE, (fresh,), known, seed=0)
    untaught = propose_together(SPACE, (fresh,), History(), seed=0)
    assert taught != untaught


def test_a_target_for_which_nothing_fits_waits_and_then_tries_what_is_not_hopeless(probed: History) -> None:
    fastest_ms = min(one.latency.percentile(50) for one in probed.trials)
    fitting, tight = asked(probed, 1.0), asked(probed, 0.9 * fastest_ms)
    found = propose_together(SPACE, (tight, fitting), both(tight, fitting), seed=0)
    assert found.keys() == {1}
    alone = propose_together(SPACE, (tight,), probed, seed=0)
    expected = propose(SPACE, probed, limits(0.9 * fastest_ms), seed=0)
    assert [*alone.values()] == ([expected] if expected else [])


def test_nothing_is_proposed_where_all_is_hopeless(probed: History) -> None:
    assert propose_together(SPACE, (asked(probed, 1e-4), asked(probed, 1e-4)), probed, seed=0) == {}


def test_a_search_for_two_trains_fewer_students_than_two_searches(probed: History) -> None:
    askings, factors = [asked(probed, 1.0), asked(slower(probed, 3.0), 3.3)], (1.0, 3.0)
    wanted, trainings = 5, 0
    while any(len(one.history.with_verdict(Verdict.PROMISING)) < wanted for one in askings):
        going = [
            at for at, one in enumerate(askings) if len(one.history.with_verdict(Verdict.PROMISING)) < wanted
        ]
        found = propose_together(SPACE, [askings[at] for at in going], both(*askings), seed=0)
        trainings += 1
        for at, proposal in found.items():
            number = going[at]
            known = tried(proposal, askings[number].limits["openvino"].latency_ms["p99"] / factors[number])
            known = replace(known, latency=latency(factors[number] * known.latency.percentile(50)))
            askings[number] = replace(askings[number], history=askings[number].history.adding(known))
    assert wanted <= trainings <= 1.4 * wanted
