"""A search for the frontier, and trials as a study: through the whole loop and the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.__main__ import main
from edgekd.pipeline import searching
from edgekd.stages.propose import propose
from edgekd.values.budget import Limits
from edgekd.values.codec import decode, encode
from edgekd.values.job import Job
from edgekd.values.outcome import Outcome
from edgekd.values.trial import History, Proposal, Verdict
from tests.pipeline import rehearsed
from tests.pipeline.conftest import Finished, Run
from tests.pipeline.test_loop import trials_in

Edgekd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def edgekd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Edgekd:
    """Give a function that runs a command: its exit code and what it printed."""

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edgekd", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run_command


def test_a_search_for_the_frontier_aims_below_the_budget_too_and_tells_what_none_beats(
    run: Run, float_job: Job, tmp_path: Path, here: pytest.MonkeyPatch
) -> None:
    aimed: list[float] = []

    def told(
        space: object, history: History, limits: Mapping[str, Limits], **rest: object
    ) -> Proposal | None:
        aimed.append(limits["rehearsal"].latency_ms["p99"])
        return propose(space, history, limits, **rest)

    here.setattr(searching, "propose", told)
    outcome = run(rehearsed.with_(float_job, search={"aim": "frontier", "trials": 3}))
    whole = max(aimed)
    assert {round(one / whole, 3) for one in aimed} >= {1.0, 0.7, 0.5}

    history = History(trials=trials_in(tmp_path / "run"))
    points = [
        (one.latency.percentile(50), one.accuracy, one.proposal.spec)
        for one in history.with_verdict(Verdict.PROMISING, Verdict.FITS, Verdict.INACCURATE)
        if one.engine is None
    ]
    brief = [one for one in outcome.frontier if one.epochs == float_job.distillation.short_epochs]
    assert brief
    for point in brief:
        assert (point.p50_ms, point.accuracy, point.spec) in points
        assert not any(ms < point.p50_ms and accuracy >= point.accuracy for ms, accuracy, _ in points)
    assert [one.p50_ms for one in brief] == sorted(one.p50_ms for one in brief)
    full = [one for one in outcome.frontier if one.epochs == float_job.distillation.epochs]
    assert {one.spec for one in full} == {outcome.student.spec}
    assert decode(Outcome, json.loads(encode(outcome))) == outcome


def test_where_a_share_of_the_budget_is_out_of_reach_the_whole_is_aimed_at(
    run: Run, float_job: Job, here: pytest.MonkeyPatch
) -> None:
    aimed: list[float] = []

    def only_the_whole(
        space: object, history: History, limits: Mapping[str, Limits], **rest: object
    ) -> Proposal | None:
        aimed.append(limits["rehearsal"].latency_ms["p99"])
        within = aimed[-1] >= 0.99 * max(aimed)
        return propose(space, history, limits, **rest) if within else None

    here.setattr(searching, "propose", only_the_whole)
    outcome = run(rehearsed.with_(float_job, search={"aim": "frontier", "trials": 2}))
    assert outcome.trials["promising"] == 2
    assert min(aimed) == pytest.approx(0.7 * max(aimed))


def test_a_search_for_accuracy_tells_no_frontier(finished: Finished) -> None:
    assert finished.outcome.frontier == ()


def test_report_writes_the_page_again_and_the_trials_as_a_study(
    finished: Finished, edgekd: Edgekd, tmp_path: Path
) -> None:
    import optuna

    shutil.copytree(finished.out, tmp_path / "run", ignore=shutil.ignore_patterns("store"))
    page = tmp_path / "run" / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    code, out, _ = edgekd("report", str(tmp_path / "run"), "--study", storage, "--json")
    assert code == 0
    told = json.loads(out)
    assert Path(told["report"]) == page
    assert page.read_text(encoding="utf-8") == before
    study = optuna.load_study(study_name="small", storage=storage)
    assert len(study.trials) == told["study_trials"] > 0
    assert told["study"] == storage
    scored = [one for one in trials_in(finished.out) if one.accuracy is not None]
    assert max(one.value for one in study.get_trials() if one.value is not None) == pytest.approx(
        max(one.accuracy for one in scored)
    )

    code, _, err = edgekd("report", str(tmp_path / "run"), "--study", storage)
    assert code == 2
    assert "small" in err


def test_a_folder_without_a_run_has_no_study(edgekd: Edgekd, tmp_path: Path) -> None:
    code, _, err = edgekd("report", str(tmp_path), "--study", f"sqlite:///{tmp_path / 'study.db'}")
    assert code == 2
    assert "holds no finished run" in err
    assert not (tmp_path / "study.db").exists()


def test_the_python_call_says_how_many_trials_the_study_has(finished: Finished, tmp_path: Path) -> None:
    count = pipeline.export_study(finished.out, f"sqlite:///{tmp_path / 'study.db'}")
    assert 0 < count <= len(trials_in(finished.out))
