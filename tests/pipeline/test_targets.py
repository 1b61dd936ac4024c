"""One search for two targets: what they share, what is their own, and what stops one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.errors import DeviceError, UsageError
from edgekd.pipeline import rounds, targets
from edgekd.store.journal import read
from edgekd.values.budget import LatencyBudget
from edgekd.values.codec import decode, encode
from edgekd.values.job import Job
from edgekd.values.targets import Outcomes, Round
from edgekd.values.trial import History, Trial, Verdict
from tests.pipeline import rehearsed
from tests.pipeline.test_cassette import forbid_processes
from tests.pipeline.test_loop import trials_in

PROFILE = """
name = "rehearsal, {threads} thread(s)"
description = "For tests that need no quantiser"
threads = {threads}
[runtimes]
rehearsal = ["fp32"]
"""


def profile(folder: Path, threads: int) -> str:
    path = folder / f"threads-{threads}.toml"
    path.write_text(PROFILE.format(threads=threads), encoding="utf-8")
    return str(path)


def jobs(folder: Path, **search: object) -> dict[str, Job]:
    """Return one job for two devices: one computes 2.6 times as fast, and calls cost as much on both."""
    asked = {"probes": 3, "trials": 3, **search}
    plain = replace(rehearsed.JOB.budget, sustained_minutes=None, period_ms=None)
    job = replace(rehearsed.with_(rehearsed.JOB, search=asked), budget=plain)
    return {
        name: rehearsed.with_(job, target={"profile": profile(folder, threads)})
        for name, threads in (("slow", 1), ("fast", 3))
    }


def run(given: dict[str, Job], out: Path) -> Outcomes:
    return pipeline.run_on_targets(
        given,
        name="small",
        out=out,
        teacher=rehearsed.teacher(),
        data=rehearsed.digits(),
        command="edgekd run",
    )


def run_alone(job: Job, out: Path) -> None:
    pipeline.run(job, out=out, teacher=rehearsed.teacher(), data=rehearsed.digits())


def trained(*outs: Path) -> set[tuple[str, int]]:
    """Name what runs trained, by student and epochs."""
    trials = [trial for out in outs for trial in trials_in(out)]
    return {(str(trial.proposal.spec), trial.epochs) for trial in trials if trial.epochs}


def with_results_of(out: Path, folder: Path) -> Path:
    """Return a folder whose store holds what was trained and exported before, and which knows of no trial."""
    shutil.copytree(out / "store", folder / "store")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Job], Path, Outcomes]:
    """Give two jobs, the folder of their common run, and what came of it."""
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        rehearsed.stay_in_this_process(patch)
        given = jobs(folder)
        return given, folder / "run", run(given, folder / "run")


Both = tuple[dict[str, Job], Path, Outcomes]


def test_each_target_has_its_own_student_limit_bundle_and_report(both: Both):
    _, out, found = both
    assert [one.target for one in found.targets] == ["slow", "fast"]
    assert found.exit_code == 0
    for one in found.targets:
        assert one.folder == out / one.target
        outcome = one.outcome
        assert outcome is not None
        assert outcome.latency_ms.p99_upper <= outcome.budget["p99"]
        assert outcome.bundle == out / one.target / "bundle"
        assert json.loads((outcome.bundle / "manifest.json").read_text())["limits_ms"] == outcome.budget
        assert "edgekd run" in outcome.report.read_text(encoding="utf-8")
        assert pipeline.report(one.folder) == one.folder / "report.html"
    slow, fast = (one.outcome for one in found.targets)
    assert slow.budget["p99"] > 1.5 * fast.budget["p99"]


def test_fewer_students_are_trained_than_by_two_runs(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given, out, found = both
    rehearsed.stay_in_this_process(monkeypatch)
    for name, job in given.items():
        run_alone(job, with_results_of(out, tmp_path / name))
    alone = [len(trained(tmp_path / name)) for name in given]
    assert len(trained(*(out / name for name in given))) == found.trainings < sum(alone)
    assert len([*out.glob("store/distill/*/result.json")]) == found.trainings
    served = [one.trainings for one in found.targets]
    assert sum(served) > found.trainings
    for one in found.targets:
        promising = History(trials=trials_in(one.folder)).with_verdict(Verdict.PROMISING)
        assert len(promising) == 3


def test_a_student_that_serves_both_scores_the_same_and_is_timed_on_each(both: Both):
    _, out, _ = both
    slow, fast = (History(trials=trials_in(out / name)) for name in ("slow", "fast"))
    scores = [
        {trial.proposal.spec: trial for trial in one.with_verdict(Verdict.PROMISING)} for one in (slow, fast)
    ]
    shared = scores[0].keys() & scores[1].keys()
    assert shared
    for spec in shared:
        first, second = (one[spec] for one in scores)
        assert first.accuracy == second.accuracy
        assert first.latency.percentile(50) > second.latency.percentile(50)


def test_a_run_that_is_given_again_trains_and_proposes_nothing_new(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given, out, found = both
    rehearsed.stay_in_this_process(monkeypatch)
    shutil.copytree(out, tmp_path / "again")
    monkeypatch.setattr("edgekd.distillation.loop.take_step", None)
    again = run(given, tmp_path / "again")
    for name in given:
        assert timeless(tmp_path / "again" / name) == timeless(out / name)
    assert again.trainings == found.trainings


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_run_that_is_killed_within_a_round_goes_on_to_the_same_trials(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    given, out, _ = both
    rehearsed.stay_in_this_process(monkeypatch)
    with monkeypatch.context() as patch:
        calls: list[object] = []

        def fragile(real: Callable[..., object]) -> Callable[..., object]:
            def counted(*arguments: object) -> object:
                calls.append(arguments)
                if len(calls) == at:
                    raise Killed
                return real(*arguments)

            return counted

        for name in ("screened", "taught"):
            patch.setattr(rounds, name, fragile(getattr(rounds, name)))
        with pytest.raises(Killed):
            run(given, with_results_of(out, tmp_path / "run"))
    again = run(given, tmp_path / "run")
    assert again.exit_code == 0
    for name in given:
        assert timeless(tmp_path / "run" / name) == timeless(out / name)
    assert len(read(tmp_path / "run" / rounds.ROUNDS, Round)) == len(read(out / rounds.ROUNDS, Round))


def timeless(out: Path) -> list[Trial]:
    """Return the trials of a run without where files lie and how long it took."""
    found = []
    for trial in trials_in(out):
        engine = trial.engine
        where = engine and replace(
            engine, model=replace(engine.model, file=replace(engine.model.file, path=Path()))
        )
        latency = trial.latency and replace(trial.latency, trust=replace(trial.latency.trust, reasons=()))
        found.append(replace(trial, seconds=0.0, device_seconds=0.0, engine=where, latency=latency))
    return found


def test_a_target_out_of_reach_stops_no_other(both: Both, tmp_path: Path, here: pytest.MonkeyPatch):
    given = jobs(tmp_path, trials=1)
    with_results_of(both[1], tmp_path / "run")
    hopeless = replace(
        given["fast"], budget=replace(given["fast"].budget, latency_ms=LatencyBudget(p99=1e-6))
    )
    found = run({**given, "fast": hopeless}, tmp_path / "run")
    slow, fast = found.targets
    assert slow.outcome is not None
    assert (fast.outcome, fast.exit_code, found.exit_code) == (None, 1, 1)
    assert "times the limit" in fast.cause
    assert "admits it" in fast.mend
    assert "No student is fast enough" in (tmp_path / "run" / "fast" / "report.html").read_text(
        encoding="utf-8"
    )
    assert not (tmp_path / "run" / "fast" / "bundle").exists()
    assert decode(Outcomes, json.loads(encode(found))) == found


def test_a_device_that_fails_stops_no_other_and_says_so(
    both: Both, tmp_path: Path, here: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
):
    given, real = jobs(tmp_path, trials=1), rounds.screened
    with_results_of(both[1], tmp_path / "run")

    def unplugged(bench: object, proposal: object) -> Trial:
        if "3 thread" in bench.target.profile.name:
            raise DeviceError("the board does not answer", cause="no route to it", mend="plug it in")
        return real(bench, proposal)

    monkeypatch.setattr(rounds, "screened", unplugged)
    found = run(given, tmp_path / "run")
    slow, fast = found.targets
    assert slow.outcome is not None
    assert (fast.problem, fast.exit_code, found.exit_code) == ("the board does not answer", 4, 4)


@pytest.mark.usefixtures("here")
def test_two_recorded_devices_are_replayed_to_the_same_trials(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = jobs(tmp_path, trials=1)
    recorded = {
        name: rehearsed.with_(job, target={"record": str(tmp_path / f"session-{name}.cassette")})
        for name, job in given.items()
    }
    live = run(recorded, with_results_of(both[1], tmp_path / "live"))
    forbid_processes(monkeypatch)
    replayed = {
        name: rehearsed.with_(job, target={"device": f"cassette:{tmp_path / f'session-{name}.cassette'}"})
        for name, job in given.items()
    }
    again = run(replayed, tmp_path / "again")
    assert again.exit_code == live.exit_code == 0
    for name in given:
        assert timeless(tmp_path / "again" / name) == timeless(tmp_path / "live" / name)


def test_jobs_that_differ_in_more_than_their_targets_share_nothing(tmp_path: Path):
    given = jobs(tmp_path)
    other = rehearsed.with_(given["fast"], distillation={"epochs": 9})
    with pytest.raises(UsageError, match="'fast' differs in more"):
        run({**given, "fast": other}, tmp_path / "run")


def test_optunas_samplers_know_one_target_only(tmp_path: Path, here: pytest.MonkeyPatch):
    given = jobs(tmp_path, sampler="optuna-random")
    with pytest.raises(UsageError, match="one student for one target"):
        run(given, tmp_path / "run")


def test_folders_are_named_after_targets_and_hold_no_path():
    names = targets.folder_names(["pi", "cassette:/tmp/a board.cassette", "../my/jetson.toml"])
    assert [*names.values()] == ["pi", "a-board", "jetson"]
    with pytest.raises(UsageError, match="folder of its own"):
        targets.folder_names(["jetson", "boards/jetson.toml"])
