"""The whole loop on the rehearsal: what comes out of it, and what becomes of students that fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from edgekd import pipeline
from edgekd.distillation import loop as training
from edgekd.errors import BudgetError, ModelError
from edgekd.pipeline import trials as trying
from edgekd.stages.configure import load_target
from edgekd.store import TrialLog
from edgekd.values.codec import decode, encode
from edgekd.values.job import Job
from edgekd.values.model import Precision
from edgekd.values.outcome import Outcome
from edgekd.values.trial import History, Trial, Verdict
from tests.pipeline import rehearsed
from tests.pipeline.conftest import Finished, Run


def trials_in(out: Path) -> tuple[Trial, ...]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(out / "trials.sqlite")) as connection:
        keys = connection.execute("SELECT DISTINCT job FROM trials").fetchall()
    (key,) = [key for (key,) in keys]
    return TrialLog(out / "trials.sqlite").history(key).trials


def test_the_accepted_student_meets_its_budget_with_the_stated_confidence(finished: Finished) -> None:
    outcome = finished.outcome
    assert outcome.latency_ms.p99_upper is not None
    assert outcome.latency_ms.p99_upper <= outcome.budget["p99"]
    assert outcome.budget["p99"] == pytest.approx(outcome.teacher_latency_ms.p99 / 4)


def test_sustained_and_duty_cycle_are_figures_of_their_own(finished: Finished) -> None:
    outcome = finished.outcome
    assert list(outcome.modes) == ["one every 1000 ms", "sustained 1 min"]
    assert [ms.protocol.period_ms for ms in outcome.modes.values()] == [1000.0, 0.0]
    assert [ms.protocol.soak_s for ms in outcome.modes.values()] == [0.0, 60.0]
    for ms in outcome.modes.values():
        assert ms.p99_upper is not None
        assert ms.p99_upper <= outcome.budget["p99"]
    manifest = json.loads((outcome.bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["deployments"][0]["modes"].keys() == outcome.modes.keys()
    assert "p99, sustained 1 min" in outcome.report.read_text(encoding="utf-8")
    assert "Latency, one every 1000 ms" in (outcome.bundle / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("here")
def test_the_bundle_passes_its_own_verification(finished: Finished) -> None:
    report = pipeline.verify(finished.outcome.bundle, load_target(finished.job, Path()))
    assert report.passed, [check for check in report.checks if check.passed is False]


def test_the_bundle_holds_what_the_outcome_says(finished: Finished) -> None:
    outcome = finished.outcome
    manifest = json.loads((outcome.bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["spec"] == json.loads(encode(outcome.student.spec))
    assert manifest["accuracy"]["student"] == outcome.accuracy.student
    shipped = manifest["deployments"][0]
    assert (shipped["runtime"], shipped["precision"]) == ("rehearsal", outcome.student.precision.value)
    assert manifest["limits_ms"] == outcome.budget


def test_the_report_names_the_command_and_the_student(finished: Finished) -> None:
    page = finished.outcome.report.read_text(encoding="utf-8")
    assert "edgekd run small.toml" in page
    assert str(finished.outcome.student.spec) in page


def test_every_proposal_was_timed_before_it_was_trained_and_only_finalists_were_finished(
    finished: Finished,
) -> None:
    history = History(trials=trials_in(finished.out))
    assert len({trial.proposal.spec for trial in history.with_verdict(Verdict.MEASURED)}) == 4
    promising = history.with_verdict(Verdict.PROMISING)
    assert [trial.epochs for trial in promising] == [2, 2]
    assert all(trial.latency is not None for trial in promising)
    done = {trial.proposal.spec for trial in history.trials if trial.engine is not None}
    best = max(promising, key=lambda trial: trial.accuracy or 0.0)
    assert done == {best.proposal.spec}


def test_an_int8_file_is_judged_beside_its_float_parent(finished: Finished) -> None:
    judged = [trial for trial in trials_in(finished.out) if trial.engine is not None]
    assert {trial.proposal.precision for trial in judged} == {Precision.FP32, Precision.INT8}
    assert all(trial.accuracy is not None and trial.latency is not None for trial in judged)


def test_the_outcome_counts_what_happened_and_survives_json(finished: Finished) -> None:
    outcome = finished.outcome
    assert sum(outcome.trials.values()) == len(trials_in(finished.out))
    assert outcome.train_seconds > 0
    assert outcome.device_seconds > 0
    assert decode(Outcome, json.loads(encode(outcome))) == outcome


def test_the_json_of_a_run_has_what_the_design_promises(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd.__main__ import main

    monkeypatch.setattr(pipeline, "run", lambda *_, **__: finished.outcome)
    monkeypatch.setattr("sys.argv", ["edgekd", "run", "digits", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = json.loads(capsys.readouterr().out)
    promised = {"bundle", "student", "latency_ms", "budget", "accuracy", "trials", "device_seconds"}
    assert promised | {"train_seconds", "schema_version"} <= printed.keys()
    assert {"spec", "precision", "runtime"} <= printed["student"].keys()
    assert {"teacher", "student"} <= printed["accuracy"].keys()
    assert {"p50", "p99", "p99_upper"} <= printed["latency_ms"].keys()


def test_a_diverging_student_is_a_trial_and_the_search_goes_on(
    run: Run, float_job: Job, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    real, broken = training.take_step, []

    def first_student_gives_nan(state: object, *rest: object) -> torch.Tensor:
        if not broken:
            broken.append(state)
        loss = real(state, *rest)
        return loss * math.nan if state is broken[0] else loss

    here.setattr(training, "take_step", first_student_gives_nan)
    outcome = run(float_job)
    history = History(trials=trials_in(tmp_path / "run"))
    (diverged,) = history.with_verdict(Verdict.DIVERGED)
    assert "not finite" in diverged.why
    assert outcome.student.spec != diverged.proposal.spec
    assert outcome.trials["promising"] == 2


def test_a_student_that_cannot_be_compiled_is_a_trial_and_the_search_goes_on(
    run: Run, float_job: Job, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    real, refused = trying.judge, []

    def refuse_the_first(*arguments: object) -> object:
        if not refused:
            refused.append(arguments)
            raise ModelError("the runtime cannot take it", cause="an operator")
        return real(*arguments)

    here.setattr(trying, "judge", refuse_the_first)
    outcome = run(float_job)
    (unbuildable,) = History(trials=trials_in(tmp_path / "run")).with_verdict(Verdict.UNBUILDABLE)
    assert "an operator" in unbuildable.why
    assert outcome.trials["promising"] == 2


def test_short_and_full_distillation_of_the_same_length_still_finish(run: Run, float_job: Job) -> None:
    job = rehearsed.with_(float_job, distillation={"epochs": 2}, search={"trials": 1})
    assert run(job).trials["fits"] == 1


def test_a_budget_that_nothing_meets_ends_with_what_came_closest(
    run: Run, float_job: Job, tmp_path: Path
) -> None:
    job = rehearsed.with_(float_job, budget={"latency_ms": rehearsed.LatencyBudget(p99=0.001)})
    with pytest.raises(BudgetError, match=r"times the limit") as refused:
        run(job)
    assert refused.value.exit_code == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "No student is fast enough" in page
    assert "times the limit" in page
    assert "What would relax it" in page
    assert not (tmp_path / "run" / "bundle").exists()


def test_an_accuracy_floor_that_nothing_meets_ends_with_the_figures(
    run: Run, float_job: Job, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    here.setattr(trying, "accuracy_floor", lambda _: 1.01)
    with pytest.raises(BudgetError, match=r"floor 1\.01") as refused:
        run(rehearsed.with_(float_job, search={"trials": 1}))
    assert refused.value.exit_code == 1
    (trial,) = History(trials=trials_in(tmp_path / "run")).with_verdict(Verdict.INACCURATE)
    assert trial.accuracy is not None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "floor 1.01" in page
    assert "max_accuracy_drop" in refused.value.mend


def test_a_student_that_does_not_hold_when_measured_again_is_not_shipped(
    run: Run, float_job: Job, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from edgekd.pipeline import loop

    real = loop.judge

    def slower_now(*arguments: object) -> object:
        limit = rehearsed.Limits(latency_ms={"p99": 1e-6}, confidence=0.95)
        return tuple(replace(judged, limits=limit) for judged in real(*arguments))

    here.setattr(loop, "judge", slower_now)
    with pytest.raises(BudgetError, match="did not hold when measured again"):
        run(rehearsed.with_(float_job, search={"trials": 1}))
    last = trials_in(tmp_path / "run")[-1]
    assert last.verdict is Verdict.TOO_SLOW
    assert not (tmp_path / "run" / "bundle").exists()
