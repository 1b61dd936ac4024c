"""The closed loop with TensorRT as the runtime, on the fakes: they compute, and their times mean nothing."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekd import pipeline
from edgekd.backends import draws
from edgekd.errors import UsageError
from edgekd.pipeline import delivery, drawing, exporting, loop, single
from edgekd.pipeline import trials as steps
from edgekd.pipeline.origin import Request
from edgekd.pipeline.quantizing import Wish, quantize_model
from edgekd.quantizers.optimize import optimize
from edgekd.values.budget import Budget, LatencyBudget
from edgekd.values.codec import decode
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target
from edgekd.values.trial import Trial, Verdict
from tests.backends.faked import COMPILER
from tests.contracts import models
from tests.pipeline import rehearsed

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make the fake CUDA driver with")

PROFILE = """
name = "a Jetson that is none"
description = "For tests of the loop on fakes"
[runtimes]
tensorrt = ["fp32", "fp16", "int8"]
"""
TYPES = {
    Precision.FP32: onnx.TensorProto.FLOAT,
    Precision.FP16: onnx.TensorProto.FLOAT16,
    Precision.INT8: onnx.TensorProto.INT8,
}


class OptimizerHere(rehearsed.WorkerHere):
    def ask(self, name: str, order: Any, reply: type, *, timeout_s: float) -> Any:
        order.folder.mkdir(parents=True, exist_ok=True)
        return optimize(order)


def kernels(path: Path) -> set[int]:
    """Types in which the weights of convolutions are stored."""
    return {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer if len(tensor.dims) == 4}


def logged(path: Path) -> list[Trial]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT trial FROM trials ORDER BY id").fetchall()
    return [decode(Trial, json.loads(text), "trial") for (text,) in rows]


def test_the_loop_times_fp32_fp16_and_int8_files_and_ships_one_of_several_builds(
    here: pytest.MonkeyPatch, faked: Callable[[], int], tmp_path: Path
):
    (tmp_path / "fake.toml").write_text(PROFILE, encoding="utf-8")
    here.setattr(loop, "_WORTHWHILE", 1e9)  # what is slow on a fake is no news
    here.setattr(drawing, "BUILDS", 3)
    brief = Protocol(launches=1, blocks=1, samples=20, warmup_ms=0.1)
    for module in (loop, steps, delivery, drawing):
        here.setattr(module, "FULL", brief)
    here.setattr(steps, "QUICK", brief)
    here.setattr(drawing, "_TURNS", dataclasses.replace(brief, launches=2))
    job = rehearsed.with_(
        rehearsed.JOB,
        target={"profile": str(tmp_path / "fake.toml")},
        search={"trials": 1, "probes": 3},
        distillation={"epochs": 1, "short_epochs": 1, "views": 1},
    )
    budget = Budget(latency_ms=LatencyBudget(p50=1e4), max_accuracy_drop=0.95)
    job = dataclasses.replace(job, budget=budget)
    out = tmp_path / "run"
    outcome = pipeline.run(job, out=out, teacher=rehearsed.teacher(), data=rehearsed.digits())

    trials = logged(out / "trials.sqlite")
    finished = [trial for trial in trials if trial.engine is not None]
    for precision, kind in TYPES.items():
        (path,) = {one.engine.model.file.path for one in finished if one.proposal.precision is precision}
        assert kind in kernels(path)
    assert Verdict.UNBUILDABLE not in {trial.verdict for trial in trials}

    manifest = json.loads((outcome.bundle / "manifest.json").read_text(encoding="utf-8"))
    accepted = manifest["deployments"][0]
    assert accepted["runtime"] == "tensorrt"
    assert len(accepted["builds"]["p50_ms"]) == 3
    shipped = outcome.bundle / accepted["files"][0]
    assert draws.draw_of(shipped) == accepted["builds"]["picked"] + 1
    assert TYPES[Precision(accepted["precision"])] in kernels(shipped)
    assert np.isfinite(accepted["accuracy"])
    page = outcome.report.read_text(encoding="utf-8")
    assert "3 builds of the accepted file" in page


@pytest.fixture
def source(here: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give a float model, its optimiser in this process and measurements that are brief."""
    here.setattr("edgekd.stages.convert.Child", OptimizerHere)
    here.setattr(single, "PROFILING", Protocol(launches=1, blocks=1, samples=10, warmup_ms=0.1))
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((8, 1, 3, 8, 8), dtype=np.float32))
    return models.conv_net(tmp_path / "m.onnx", width=16)


def target() -> Target:
    profile = Profile(name="fake", description="", runtimes={"tensorrt": tuple(TYPES)})
    return Target(profile=profile, device="local", runtimes=("tensorrt",), threads=1)


def test_an_export_for_tensorrt_has_its_precisions_in_its_graphs(
    faked: Callable[[], int], source: Path, tmp_path: Path
):
    request = Request(
        source=source, to=("tensorrt",), precisions=(Precision.FP16, Precision.INT8),
        calibrate=tmp_path / "rows.npy",
    )  # fmt: skip
    exported = exporting.export_model(request, target(), tmp_path / "out")
    found = {one.precision: next(iter(one.files)) for one in exported.exports}
    assert found == {Precision.FP16: "model.fp16.onnx", Precision.INT8: "model.tensorrt.int8.onnx"}
    for precision, name in found.items():
        assert TYPES[precision] in kernels(tmp_path / "out" / name)
    assert all(one.max_error < 0.05 * one.scale for one in exported.exports)


def test_fp16_is_a_file_for_tensorrt_alone(source: Path, tmp_path: Path):
    request = Request(source=source, to=("onnx",), precisions=(Precision.FP16,))
    with pytest.raises(UsageError, match="fp16"):
        exporting.export_model(request, target(), tmp_path / "out")


def test_a_model_is_quantised_for_tensorrt_and_measured_beside_its_parent(
    faked: Callable[[], int], source: Path, tmp_path: Path
):
    # What is slow on a fake is no news: the int8 file is asked for.
    wish = Wish(path=source, calibrate=tmp_path / "rows.npy", anyway=True)
    made = quantize_model(wish, target(), tmp_path / "out")
    path = Path(next(iter(made.files)))
    assert (made.runtime, made.precision) == ("tensorrt", Precision.INT8)
    assert kernels(path) == {onnx.TensorProto.INT8}
    assert [kernels(Path(one)) for one in made.float_files] == [{onnx.TensorProto.FLOAT}]
    assert 0 < made.max_error < 0.05 * made.scale


def half(path: Path) -> Path:
    """Cast a model to fp16, with fp32 inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    OnnxModel.graph_topological_sort(model.graph, is_deterministic=True)  # the converter puts its casts last
    onnx.save(model, str(path))
    return path


def test_an_fp16_file_is_measured_as_fp16_where_the_graph_says_what_is_computed(
    faked: Callable[[], int], source: Path
):
    profile = Profile(
        name="fake", description="", runtimes={"tensorrt": tuple(TYPES), "onnxruntime": (Precision.FP32,)}
    )
    both = dataclasses.replace(target(), profile=profile, runtimes=("tensorrt", "onnxruntime"))
    results = single.profile(half(source), both, protocol=single.PROFILING).results
    # ONNX Runtime puts casts around what its processor has no halves for, and is asked for fp32 here.
    assert [(one.runtime, one.precision, one.problem) for one in results] == [
        ("tensorrt", Precision.FP16, ""), ("onnxruntime", Precision.FP32, ""),
    ]  # fmt: skip


def test_an_fp32_file_is_measured_on_tensorrt_as_nothing_else(faked: Callable[[], int], source: Path):
    results = single.profile(source, target(), protocol=single.PROFILING).results
    assert [(one.precision, one.problem) for one in results] == [(Precision.FP32, "")]
