"""A rung holds by its precision's limit, by the labels of real inputs, or by the limit that was given."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgekd.stages.match import Match
from edgekd.stages.rungs import Rules, judged, rows_at, worst_rows
from edgekd.values.artifact import Artifact
from edgekd.values.model import Precision


def verdict(
    precision: Precision,
    *,
    error: float,
    changed: int | None = 0,
    samples: int = 100,
    limit: float | None = None,
    real: bool = True,
) -> bool | None:
    found = Match(output="y", max_error=error, scale=1.0, changed_labels=changed, samples=samples)
    return judged("b", "a", found, precision, Rules(limit=limit, real=real)).passed


def test_fp32_keeps_every_label_and_a_hundred_thousandth():
    assert verdict(Precision.FP32, error=1e-6)
    assert not verdict(Precision.FP32, error=1e-4)
    assert not verdict(Precision.FP32, error=1e-6, changed=1)


def test_int8_may_change_a_fifth_of_the_labels_of_real_inputs():
    assert verdict(Precision.INT8, error=0.9, changed=20)
    assert not verdict(Precision.INT8, error=0.1, changed=21)
    assert not verdict(Precision.INT8, error=math.inf, changed=0)


@pytest.mark.parametrize("how", [{"real": False}, {"samples": 2}, {"changed": None}])
def test_where_labels_mean_nothing_int8_is_judged_by_its_error(how: dict[str, object]):
    asked = {"changed": 1, **how}
    assert verdict(Precision.INT8, error=0.2, **asked)  # type: ignore[arg-type]
    assert not verdict(Precision.INT8, error=0.3, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", list(Precision))
def test_a_limit_that_is_given_decides_alone(precision: Precision):
    assert verdict(precision, error=0.4, changed=50, limit=0.5)
    assert not verdict(precision, error=0.4, changed=0, limit=0.3)


def test_the_rows_that_depart_most_are_looked_into_first(tmp_path: Path):
    wanted = {"a": np.zeros((4, 1, 2)), "b": np.full((4, 1), 10.0)}
    found = {"a": wanted["a"].copy(), "b": wanted["b"].copy()}
    found["a"][2] = 0.5
    found["b"][1] = 11.0
    found["b"][3] = np.nan
    assert worst_rows(wanted, found) == [3, 2, 1, 0]
    np.save(tmp_path / "x.npy", np.arange(4))
    kept = rows_at({"x": Artifact.of(tmp_path / "x.npy")}, [3, 1, 9], tmp_path / "kept")
    assert np.load(kept["x"].path).tolist() == [3, 1]
