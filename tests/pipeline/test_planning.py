"""A plan: what a device can do with a budget, with nothing trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.distillation import loop as training
from edgekd.pipeline.planning import steps_from
from edgekd.stages.predict import predict
from edgekd.stages.propose import fastest
from edgekd.students import smallest
from edgekd.values.budget import LatencyBudget, Limits
from edgekd.values.job import Job, TeacherSection
from edgekd.values.outcome import Plan
from edgekd.values.trial import History
from tests.pipeline import rehearsed
from tests.stages import test_predict

Planned = Callable[..., Plan]

TEACHER = """
from tests.pipeline.rehearsed import teacher
"""


@pytest.fixture
def planned(here: pytest.MonkeyPatch, tmp_path: Path, float_job: Job) -> Planned:
    """Give a function that plans for a budget, with every training step forbidden."""

    def no_training(*_: object) -> None:
        raise AssertionError("a plan trains nothing")

    here.setattr(training, "take_step", no_training)
    (tmp_path / "teachers.py").write_text(TEACHER, encoding="utf-8")

    def plan(*, confidence: float = 0.95, **budget: float) -> Plan:
        asked = {"latency_ms": LatencyBudget(**budget), "confidence": confidence}
        job = rehearsed.with_(float_job, budget=asked)
        section = TeacherSection(model="teachers.py:teacher", epochs=5)
        job = rehearsed.with_(job, teacher=vars(section))
        return pipeline.plan(job, beside=tmp_path, out=tmp_path / "run")

    return plan


def test_a_plan_says_what_is_within_reach_and_trains_nothing(planned: Planned, tmp_path: Path) -> None:
    found = planned(speedup=4.0)
    assert found.reachable
    assert found.relaxations == ()
    limit_ms = found.limits_ms["rehearsal"]["p99"]
    assert found.teacher_p99_ms["rehearsal"] == pytest.approx(4 * limit_ms)
    assert found.fastest_measured_ms <= limit_ms
    assert found.measured == planned(speedup=4.0).measured == 3  # a second plan measures no student again
    assert not (tmp_path / "run" / "store" / "distill").exists()
    assert not (tmp_path / "run" / "store" / "teach").exists()


def test_the_fastest_student_has_a_latency_at_any_confidence(planned: Planned) -> None:
    sure, likely = (planned(speedup=4.0, confidence=share).fastest_measured_ms for share in (0.99, 0.95))
    assert 0 < sure == likely < math.inf


def test_the_frontier_gives_more_arithmetic_for_more_time(planned: Planned) -> None:
    frontier = planned(p99=1.0).frontier
    assert len(frontier) > 2
    assert [reach.expected_ms for reach in frontier] == sorted(reach.expected_ms for reach in frontier)
    assert [reach.mega_macs for reach in frontier] == sorted(reach.mega_macs for reach in frontier)
    assert all(reach.low_ms <= reach.expected_ms <= reach.high_ms for reach in frontier)


def test_a_budget_out_of_reach_says_what_would_admit_a_student(planned: Planned) -> None:
    found = planned(p99=0.002)
    assert not found.reachable
    assert found.fastest_measured_ms > 0.002
    assert found.relaxations
    assert all(one.saves_ms > 0 for one in found.relaxations)
    cheapest = found.relaxations[0]
    assert "admits rehearsal/fp32" in cheapest.change
    assert cheapest.saves_ms == min(one.saves_ms for one in found.relaxations)


def test_what_a_relaxation_promises_holds(planned: Planned) -> None:
    refused = planned(p99=0.002)
    wider_ms = 0.002 + refused.relaxations[0].saves_ms
    assert planned(p99=wider_ms * 1.01).reachable


def test_a_plan_says_how_long_a_run_may_take(planned: Planned) -> None:
    found = planned(speedup=4.0)
    assert found.expected_seconds is not None
    assert found.expected_seconds > 0
    assert found.expected_proposals >= found.trials
    assert planned(p99=0.002).expected_seconds is None


def test_a_budget_out_of_reach_says_what_single_changes_save() -> None:
    history, space = test_predict.history_of(12), test_predict.SPACE
    twice = [
        replace(
            trial, proposal=replace(trial.proposal, runtime="slower"), latency=test_predict.latency(2 * p50)
        )
        for trial in history.trials
        if trial.latency and (p50 := trial.latency.percentile(50))
    ]
    limit = Limits(latency_ms={"p99": 0.01}, confidence=0.95)
    limits = {"openvino": limit, "slower": limit}
    predictor = predict(History(trials=(*history.trials, *twice)), limits, channels=3, classes=10)
    least = fastest(smallest(space, "residual"), space, predictor, limits)
    assert least is not None
    steps = steps_from([least], predictor, space)
    assert [step.saves_ms for step in steps] == sorted((step.saves_ms for step in steps), reverse=True)
    saved = {step.change: step.saves_ms for step in steps}
    assert 0 < saved["input 32 -> 28"] < saved["input 32 -> 24"]
    assert saved["input 32 -> 24"] < saved["input 32 -> 16, which task.resolution would have to allow"]
    assert saved["openvino/fp32 and not slower/fp32"] == pytest.approx(least.expected_ms, rel=0.1)


def test_a_budget_within_reach_needs_no_steps(planned: Planned) -> None:
    assert planned(speedup=4.0).steps == ()
