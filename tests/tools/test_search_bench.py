"""The search bench: what it reports of a small table, and what it says of tables that cannot be searched."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("none", "conv_1x1", "conv_3x3")


def table(folder: Path, **changed: Any) -> Path:
    """Write 243 chains of five operations whose accuracy and latency follow their arithmetic, on three devices."""
    rng = np.random.default_rng(0)
    ops = np.array(list(product(range(3), repeat=5)))
    work = np.array([0.0, 1.0, 3.0])[ops]
    latency_ms = np.array([1 + work @ rng.uniform(0.5, 1.5, 5) for _ in range(3)])
    latency_ms *= np.exp(0.02 * rng.normal(size=latency_ms.shape))
    accuracy = 70 + 10 * np.log1p(work[:, :3].sum(axis=1)) + rng.normal(0, 0.2, len(ops))
    fields = {
        "ops": ops, "op_names": np.array(NAMES), "device": np.array(["alpha", "beta", "gamma"]),
        "latency_ms": latency_ms, "acc_some": accuracy, **changed,
    }  # fmt: skip
    np.savez(folder / "table.npz", **fields)
    return folder / "table.npz"


def bench(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/bench/search.py"), "--table", str(path), *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_every_cell_is_reported_beside_its_peers(tmp_path: Path) -> None:
    options = [
        "--accuracy",
        "acc_some",
        "--device",
        "alpha,beta",
        "--budget-quantile",
        ".3,.5",
        "--seeds",
        "2",
        "--trainings",
        "10",
    ]
    done = bench(table(tmp_path), *options, "--peers", "random,evolution", "--peer-trainings", "10")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["cells"]) == 4
    assert found["mean_regret"] == pytest.approx(
        np.mean([cell["mean_regret"] for cell in found["cells"]]), abs=1e-3
    )
    assert found["worst_regret"] == max(cell["mean_regret"] for cell in found["cells"])
    assert found["broken_budgets"] == 0
    assert found["mean_regret"] < found["peers"]["random"]["regret_at"]["10"]
    assert set(found["peers"]) == {"random", "evolution"}


def test_few_measurements_break_no_budget(tmp_path: Path) -> None:
    options = (
        "--accuracy acc_some --device alpha --budget-quantile .3 --seeds 3 --trainings 10 --mode few-shot"
    )
    done = bench(table(tmp_path), *options.split(), "--peers", "")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["broken_budgets"], found["picks"]) == (0, 3)
    assert 0 <= found["mean_regret"] < 10


def test_tables_that_cannot_be_searched_say_why_and_what_mends_them(tmp_path: Path) -> None:
    good = table(tmp_path)
    with np.load(good) as file:
        latency_ms = file["latency_ms"]
    missing, constant = latency_ms.copy(), latency_ms.copy()
    missing[0, 7], constant[0] = np.nan, 3.0
    cases = (
        ({"latency_ms": missing}, ("--accuracy", "acc_some"), "1 latencies of alpha are NaN"),
        ({"latency_ms": constant}, ("--accuracy", "acc_some"), "every latency is 3 ms"),
        ({}, ("--accuracy", "acc_other"), "did you mean 'acc_some'"),
        ({"acc_some": np.full(243, 90.0)}, ("--accuracy", "acc_some"), "every value is 90"),
        ({}, ("--accuracy", "acc_some", "--device", "alfa"), "no device 'alfa'"),
        ({}, ("--accuracy", "acc_some", "--peers", "tep"), "no peer 'tep'"),
    )
    for changed, options, words in cases:
        done = bench(table(tmp_path, **changed), *options, "--seeds", "1")
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
