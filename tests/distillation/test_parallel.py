"""Several processes train one student: the same result as one with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd.distillation.loop import train
from edgekd.distillation.parallel import ALONE, Crew, asked_for, meeting
from edgekd.distillation.state import saved_progress
from edgekd.errors import UsageError
from tests.distillation.in_company import KILLED, courses

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module in two processes that meet on a free port."""
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@dataclass(frozen=True)
class Trained:
    together: dict[str, dict[str, torch.Tensor]]
    alone: dict[str, dict[str, torch.Tensor]]
    losses: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Give the weights of the small courses, trained by two processes that were killed once, and by this one."""
    folder = tmp_path_factory.mktemp("crew")
    first = torchrun("tests.distillation.in_company", str(folder / "two"), "1")
    assert first.returncode, "the leader was killed"
    assert f"exitcode  : {KILLED}" in first.stderr
    assert saved_progress(folder / "two" / "plain" / "state.safetensors").epoch == 1
    second = torchrun("tests.distillation.in_company", str(folder / "two"))
    assert second.returncode == 0, second.stderr[-3000:]
    together, alone, losses = {}, {}, {}
    from edgekd.distillation import loop
    from edgekd.distillation.arithmetic import Arithmetic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "choose_arithmetic", lambda *_, **__: Arithmetic())
        for name, (module, course) in courses().items():
            whole = train(folder / "one" / name, module, course)
            together[name] = load_file(folder / "two" / name / "weights.safetensors")
            alone[name] = load_file(whole.weights.path)
            state = saved_progress(folder / "two" / name / "state.safetensors")
            losses[name] = (state.losses, whole.losses)
    return Trained(together=together, alone=alone, losses=losses)


def test_without_norm_two_processes_learn_what_one_with_the_whole_batch_does(trained: Trained):
    for name, value in trained.alone["plain"].items():
        torch.testing.assert_close(trained.together["plain"][name], value, rtol=1e-4, atol=1e-6)
    two, one = trained.losses["plain"]
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("name", ["norm", "dropout"])
def test_with_norm_or_dropout_they_come_close(trained: Trained, name: str):
    two, one = trained.losses[name]
    assert len(two) == len(one) == 3
    assert two == pytest.approx(one, rel=0.1)
    assert any(
        not torch.allclose(trained.together[name][key], value) for key, value in trained.alone[name].items()
    )


def test_a_batch_is_shared_out_whole_and_in_order():
    indices = np.arange(33)
    parts = [Crew(rank=rank, size=2).part(indices) for rank in range(2)]
    assert [len(part) for part in parts] == [17, 16]
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert ALONE.part(indices) is indices


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(UsageError, match="a batch of 3 cannot be shared by 4 processes"):
        Crew(rank=0, size=4).part(np.arange(3))


def test_a_process_alone_is_left_as_it_is():
    weight = nn.Parameter(torch.ones(3))
    ALONE.sum_gradients([weight])
    assert weight.grad is None
    assert ALONE.seed(5) == 5
    assert Crew(rank=1, size=2).seed(5) != 5
    assert ALONE.total(torch.ones(2)).tolist() == [1.0, 1.0]


def test_an_environment_that_says_half_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert asked_for() == ALONE
    with pytest.raises(UsageError, match="nobody to meet"), meeting():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="cannot find each other") as caught:
        asked_for()
    assert "MASTER_ADDR" in caught.value.cause
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="no numbers"):
        asked_for()
