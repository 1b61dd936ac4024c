"""Calibration inputs, and the child that quantises: started late, kept, and replaced after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgekd.errors import BuildError, EdgekdError, WorkerDied
from edgekd.stages.quantize import Quantizers, calibrate, quantize
from edgekd.tasks import from_arrays
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.order import QuantizeOrder


class ChildBefore:
    """Stands in for the child process: records its orders, dies of what it is told to."""

    started: ClassVar[list[ChildBefore]] = []
    dies_of: ClassVar[list[EdgekdError]] = []

    def __init__(self, module: str, *, memory_mib: int) -> None:
        self.module, self.closed = module, False
        self.orders: list[QuantizeOrder] = []
        self.started.append(self)

    def ask(self, name: str, order: QuantizeOrder, reply: type, *, timeout_s: float) -> Any:
        self.orders.append(order)
        if self.dies_of:
            raise self.dies_of.pop()
        return Model(file=order.model)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ChildBefore]:
    monkeypatch.setattr(ChildBefore, "started", [])
    monkeypatch.setattr(ChildBefore, "dies_of", [])
    monkeypatch.setattr("edgekd.stages.quantize.Child", ChildBefore)
    return ChildBefore.started


@pytest.fixture
def model(tmp_path: Path) -> Model:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return Model(file=Artifact.of(path))


def test_calibration_images_are_training_images_pre_processed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    task = from_arrays(images, np.arange(60) % 3)
    rows = np.load(calibrate(tmp_path, task, 8, 16).verified(), allow_pickle=False)
    assert rows.shape == (16, 1, 1, 8, 8)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, task.inputs(task.train, 8, limit=16))


def test_no_child_is_started_before_the_first_order_and_one_serves_them_all(
    started: list[ChildBefore], model: Model, tmp_path: Path
) -> None:
    with Quantizers() as quantizers:
        assert started == []
        for runtime in ("openvino", "onnxruntime"):
            quantize(tmp_path, model, runtime, {"images": model.file}, quantizers)
        (child,) = started
        assert [order.runtime for order in child.orders] == ["openvino", "onnxruntime"]
        assert child.orders[0].folder == tmp_path
    assert child.closed


def test_a_model_that_kills_the_quantiser_cannot_be_built_and_the_next_order_has_a_fresh_child(
    started: list[ChildBefore], model: Model, tmp_path: Path
) -> None:
    ChildBefore.dies_of.append(WorkerDied("the quantiser crashed"))
    with Quantizers() as quantizers:
        with pytest.raises(BuildError, match="the quantiser crashed"):
            quantize(tmp_path, model, "openvino", {}, quantizers)
        assert quantize(tmp_path, model, "openvino", {}, quantizers) == model
    assert [child.closed for child in started] == [True, True]


def test_the_result_hangs_on_the_versions_of_the_tools() -> None:
    name = Quantizers().fingerprint
    assert all(tool in name for tool in ("nncf", "onnxruntime", "openvino"))
