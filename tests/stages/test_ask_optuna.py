"""Optuna in place of our search: within the budget, from the history alone; and trials as its study."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.errors import DataError, UsageError
from edgekd.stages.ask_optuna import export_study, propose_with_optuna
from edgekd.stages.propose import probes
from edgekd.students import contains
from edgekd.values.job import SAMPLERS
from edgekd.values.model import Precision
from edgekd.values.trial import History, Proposal, Trial, Verdict
from tests.stages.test_propose import SPACE, device_ms, latency, limits, tried

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def probed() -> History:
    trials = [
        Trial(
            proposal=Proposal(spec=spec, runtime="openvino", precision=Precision.FP32),
            verdict=Verdict.MEASURED,
            latency=latency(device_ms(spec)),
        )
        for spec in probes(SPACE, 8, seed=0)
    ]
    return History(trials=tuple(trials))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("edgekd", "optuna-gp")])
def test_every_sampler_proposes_new_students_within_the_budget(sampler: str, probed: History) -> None:
    history = probed
    for _ in range(7):
        found = propose_with_optuna(sampler, SPACE, history, limits(1.0), seed=0)
        assert found is not None
        assert found == propose_with_optuna(sampler, SPACE, history, limits(1.0), seed=0)
        assert contains(SPACE, found.spec)
        history = history.adding(tried(found, 1.0))
    later = history.trials[len(probed.trials) :]
    assert len({trial.proposal.spec for trial in later}) == 7
    assert {trial.verdict for trial in later} == {Verdict.PROMISING}


def test_there_is_no_proposal_where_nothing_fits(probed: History) -> None:
    assert propose_with_optuna("optuna-random", SPACE, probed, limits(0.01), seed=0) is None
    assert propose_with_optuna("optuna-random", SPACE, History(), limits(1.0), seed=0) is None


def test_trials_become_a_study_with_the_budget_as_constraint(probed: History, tmp_path: Path) -> None:
    first = probed.trials[0].proposal
    small, large = (
        replace(first, spec=trial.proposal.spec) for trial in (probed.trials[0], probed.trials[-1])
    )
    trials = (
        Trial(proposal=small, verdict=Verdict.PROMISING, latency=latency(0.5), accuracy=0.8, epochs=3),
        Trial(proposal=large, verdict=Verdict.TOO_SLOW, latency=latency(1.5)),
        Trial(proposal=large, verdict=Verdict.UNBUILDABLE, why="no kernel"),
    )
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    history = History(trials=(*probed.trials, *trials))
    assert export_study(history, limits(1.0), storage, "digits") == 3
    study = optuna.load_study(study_name="digits", storage=storage)
    assert study.best_value == 0.8
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "FAIL"]
    assert [trial.user_attrs["verdict"] for trial in study.trials] == ["promising", "too slow", "unbuildable"]
    over = [trial.system_attrs["constraints"][0] for trial in study.trials]
    assert over == [0.0, pytest.approx(0.5), 1.0]
    with pytest.raises(DataError, match="no study can be written"):
        export_study(history, limits(1.0), storage, "digits")


def test_a_search_that_tried_nothing_is_not_exported(probed: History, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to export"):
        export_study(probed, limits(1.0), f"sqlite:///{tmp_path / 'study.db'}", "digits")
    assert not (tmp_path / "study.db").exists()


def test_without_optuna_it_says_what_to_install(probed: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r'pip install "edgekd\[optuna\]"'):
        propose_with_optuna("optuna-tpe", SPACE, probed, limits(1.0), seed=0)
