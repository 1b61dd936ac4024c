"""One rehearsed run that the tests of the pipeline look at, and a way to make others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.values.job import Job
from edgekd.values.outcome import Outcome
from tests.backends.faked import driver, faked
from tests.pipeline import rehearsed

__all__ = ["driver", "faked", "finished", "float_job", "here", "run"]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that came to its end."""

    job: Job
    out: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Give a run of the small job, made once."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        rehearsed.stay_in_this_process(patch)
        outcome = pipeline.run(
            rehearsed.JOB,
            name="small",
            out=out,
            command="edgekd run small.toml",
            teacher=rehearsed.teacher(),
            data=rehearsed.digits(),
        )
    return Finished(job=rehearsed.JOB, out=out, outcome=outcome)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let devices work without processes of their own, for one test."""
    rehearsed.stay_in_this_process(monkeypatch)
    return monkeypatch


Run = Callable[..., Outcome]


@pytest.fixture
def run(here: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Give a function that runs a job in `tmp_path`."""

    def run_job(job: Job) -> Outcome:
        return pipeline.run(job, out=tmp_path / "run", teacher=rehearsed.teacher(), data=rehearsed.digits())

    return run_job


@pytest.fixture
def float_job(tmp_path: Path) -> Job:
    """Give the small job on a profile without int8."""
    return rehearsed.with_(
        rehearsed.JOB, target={"profile": rehearsed.float_profile(tmp_path)}, search={"probes": 3}
    )
