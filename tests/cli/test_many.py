"""`edgekd run` with several targets: how each is read, and what is printed of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.cli.options import overrides_with
from edgekd.errors import DeviceError
from edgekd.values.targets import Outcomes, TargetOutcome
from tests.cli.test_verbs import OUTCOME, Edgekd, answering, edgekd

__all__ = ["edgekd"]

PROFILE = """
name = "{name}"
description = "for a test"
threads = {threads}
[runtimes]
onnxruntime = ["fp32"]
"""

MET = TargetOutcome(target="one.toml", folder=Path("runs/one"), outcome=OUTCOME, trainings=6)
MISSED = TargetOutcome(
    target="two.toml",
    folder=Path("runs/two"),
    trainings=5,
    problem="no student is fast enough",
    cause="the fastest is 1.3 times the limit",
    mend="a limit for p99 of 2.6 ms admits it",
    exit_code=1,
)


def outcomes(*each: TargetOutcome) -> Outcomes:
    return Outcomes(targets=each, trainings=7, train_seconds=70.0, seconds=100.0)


@pytest.fixture
def profiles(tmp_path: Path) -> None:
    for threads, name in ((1, "one"), (2, "two")):
        (tmp_path / f"{name}.toml").write_text(PROFILE.format(name=name, threads=threads), encoding="utf-8")


TWO = ("--target", "one.toml", "--target", "two.toml")


@pytest.mark.usefixtures("profiles")
def test_each_target_has_its_profile_and_its_own_overrides(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, "run_on_targets", outcomes(MET))
    code, _, err = edgekd(
        "run", "digits", "search.trials=2", "two.toml:budget.latency_ms.p99=7", *TWO, "--record", "s.cassette"
    )
    assert (code, err) == (0, "")
    (jobs,) = asked["given"]
    assert [*jobs] == ["one.toml", "two.toml"]
    assert [Path(job.target.profile).name for job in jobs.values()] == ["one.toml", "two.toml"]
    assert {job.target.device for job in jobs.values()} == {"local"}
    assert {job.search.trials for job in jobs.values()} == {2}
    assert [job.budget.latency_ms.p99 for job in jobs.values()] == [None, 7.0]
    assert [Path(job.target.record).name for job in jobs.values()] == ["s-one.cassette", "s-two.cassette"]
    assert asked["out"] == Path("runs/digits")


@pytest.mark.usefixtures("profiles")
def test_a_table_says_what_came_of_each_and_one_that_failed_ends_with_1(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "run_on_targets", outcomes(MET, MISSED))
    code, out, _ = edgekd("run", "digits", *TWO)
    assert code == 1
    for part in ("ACCEPTED", "one.toml", "openvino/int8", "refused", "two.toml", "7 trainings"):
        assert part in out
    assert "they served 11 times" in out
    assert "no student is fast enough: the fastest is 1.3 times the limit" in out
    assert "to mend it: a limit for p99 of 2.6 ms admits it" in out


@pytest.mark.usefixtures("profiles")
def test_as_json_there_is_a_list_of_targets(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "run_on_targets", outcomes(MET, MISSED))
    code, out, _ = edgekd("run", "digits", *TWO, "--json")
    told = json.loads(out)
    assert code == 1
    assert told["accepted"] is False
    assert [one["target"] for one in told["targets"]] == ["one.toml", "two.toml"]
    assert told["targets"][0]["outcome"]["student"]["runtime"] == "openvino"
    assert told["targets"][1]["outcome"] is None
    assert told["targets"][1]["mend"] == MISSED.mend
    assert told["trainings"] == 7


def test_a_device_that_failed_ends_with_its_code_unless_a_budget_was_missed() -> None:
    lost = TargetOutcome(target="pi", folder=Path("runs/pi"), problem="it does not answer", exit_code=4)
    assert outcomes(MET, lost).exit_code == 4
    assert outcomes(lost, MISSED).exit_code == 1
    assert outcomes(MET).exit_code == 0


@pytest.mark.usefixtures("profiles")
def test_a_target_given_twice_is_a_usage_error(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "run_on_targets", outcomes(MET))
    code, _, err = edgekd("run", "digits", "--target", "one.toml", "--target", "one.toml")
    assert code == 2
    assert "given twice" in err
    assert not asked


def test_one_target_is_a_run_of_its_own(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "run", OUTCOME)
    code, _, _ = edgekd("run", "digits", "--target", "rehearsal", "--cluster", "local", "--or-here")
    (job,) = asked["given"]
    assert code == 0
    assert (job.target.profile, job.target.device) == ("rehearsal", "local")
    assert (asked["cluster"], asked["or_here"]) == ("local", True)


def test_what_is_neither_a_device_nor_a_profile_is_refused() -> None:
    with pytest.raises(DeviceError, match="nowhere"):
        overrides_with((), "nowhere", 0.0, "")


def test_a_helper_of_torchrun_runs_nothing_and_prints_nothing(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    helped = answering(monkeypatch, "help_to_train", 3)
    for name in ("run", "run_on_targets", "distill"):
        answering(monkeypatch, name, AssertionError("the leader does that"))
    assert edgekd("run", "digits") == (0, "", "")
    assert helped["out"] == Path("runs/digits")
    assert edgekd("distill", "digits", "--out", "here") == (0, "", "")
    assert helped["out"] == Path("here")
    assert callable(pipeline.help_to_train)
