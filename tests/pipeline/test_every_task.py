"""The whole loop for tasks without classes and without images, on the rehearsal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import pipeline
from edgekd.stages.configure import load_target
from edgekd.tasks import Task
from edgekd.tasks.generation import from_text
from edgekd.tasks.regression import from_table
from edgekd.values.job import Job
from tests.pipeline import rehearsed
from tests.tasks import tables


class Reader(nn.Module):
    """A teacher of letters, slow on the target."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, 64)
        self.recurrent = nn.GRU(64, 600, batch_first=True)
        self.head = nn.Linear(600, letters)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(letters))[0])


def rows() -> tuple[Task, nn.Module, dict[str, object]]:
    changed = {"kind": "regression", "data": "drawn"}
    task = from_table(tables.table(), section=rehearsed.with_(rehearsed.JOB, task=changed).task)
    net = nn.Sequential(nn.Linear(4, 900), nn.ReLU(), nn.Linear(900, 900), nn.ReLU(), nn.Linear(900, 2))
    return task, net, changed


def letters() -> tuple[Task, nn.Module, dict[str, object]]:
    changed = {"kind": "generation", "data": "text", "resolution": 6}
    text = "the quick brown fox jumps over the lazy dog\n" * 12
    task = from_text(text, section=rehearsed.with_(rehearsed.JOB, task=changed).task)
    return task, Reader(task.outputs), changed


def job_for(task: dict[str, object], folder: Path) -> Job:
    return rehearsed.with_(
        rehearsed.JOB,
        teacher={"epochs": 4, "learning_rate": 0.01},
        task=task,
        target={"profile": rehearsed.float_profile(folder)},
        budget={
            "latency_ms": rehearsed.LatencyBudget(speedup=1.2), "sustained_minutes": None, "period_ms": None,
        },
        search={"trials": 1, "probes": 3, "families": ()},
    )  # fmt: skip


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("make", [rows, letters])
def test_a_task_goes_from_its_data_to_a_bundle_that_runs_by_itself(make: object, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task, net, section = make()
    job = job_for(section, tmp_path)
    outcome = pipeline.run(job, name="small", out=tmp_path / "run", teacher=net, data=task)
    assert outcome.student.spec.family == task.families[0]
    assert outcome.accuracy.metric == task.metric
    report = pipeline.verify(outcome.bundle, load_target(job, Path()))
    assert report.passed, [check for check in report.checks if check.passed is False]
    manifest = json.loads((outcome.bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["task"] == task.kind
    assert manifest["decoding"] == task.decoding(task.resolution)
    assert manifest["classes"] == []
    shipped = manifest["deployments"][0]
    assert shipped["parity"]["max_error"] <= 1e-5 * shipped["parity"]["scale"]
    with np.load(outcome.bundle / "samples.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["samples"], task.test.spread(32).samples)
        assert kept["outputs"].shape == (len(kept["samples"]), *task.answer_shape(task.resolution))
    helped = subprocess.run(
        [sys.executable, str(outcome.bundle / "run.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: run.py" in helped.stdout
