from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgekd import pipeline
from edgekd.errors import DataError, IntegrityError, ModelError, TeacherError, UsageError
from edgekd.pipeline import exporting, single
from edgekd.quantizers.optimize import optimize
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Bundle
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.outcome import Exported
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

FP32, INT8 = Precision.FP32, Precision.INT8
BOTH = ("onnxruntime", "openvino")
TARGET = Target(
    profile=Profile(name="test", description="", runtimes=dict.fromkeys(BOTH, (FP32, INT8))),
    device="local",
    runtimes=BOTH,
    threads=1,
)
CODE = """
import torch
from torch import nn

def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""


class Two(nn.Module):
    """Two named inputs; two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 16), nn.Linear(4, 16)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.left(left) + self.right(right))
        return {"hidden": hidden, "sum": hidden.sum(dim=1, keepdim=True)}


class OptimizerHere(WorkerHere):
    def ask(self, name: str, order: Any, reply: type, *, timeout_s: float) -> Any:
        order.folder.mkdir(parents=True, exist_ok=True)
        return optimize(order)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr("edgekd.stages.quantize.Child", WorkerHere)
    monkeypatch.setattr("edgekd.stages.convert.Child", OptimizerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Mapping[Precision, float]:
    """Let latencies follow from the precision, so that what is kept follows too."""
    speed = {FP32: 1.0, INT8: 0.5}
    real = single.timed

    def timed(device: Any, engines: Any, protocol: Any = None) -> tuple[Latency, ...]:
        return tuple(
            dataclasses.replace(
                latency, samples_ms=tuple(speed[engine.precision] for _ in latency.samples_ms)
            )
            for engine, latency in zip(engines, real(device, engines, protocol))
        )

    monkeypatch.setattr(exporting, "timed", timed)
    return speed


def inputs(folder: Path, **shapes: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((12, *shape), dtype=np.float32) for name, shape in shapes.items()}
    np.savez(folder / "inputs.npz", **arrays)
    return folder / "inputs.npz"


def names(exported: Exported) -> list[str]:
    return [name for one in exported.exports for name in one.files]


def test_a_module_becomes_every_file_asked_for_checked_measured_and_digested(
    tmp_path: Path, faster: Mapping[Precision, float]
):
    (tmp_path / "net.py").write_text(CODE)
    out = tmp_path / "out"
    exported = pipeline.export(
        f"{tmp_path}/net.py:small",
        target=TARGET,
        out=out,
        inputs={"images": (1, 3, 8, 8)},
        to=("onnx", "openvino"),
        precisions=(FP32, INT8),
        calibrate=inputs(tmp_path, images=(3, 8, 8)),
    )
    assert names(exported) == [
        "model.onnx", "model.int8.onnx", "model.xml", "model.bin", "model.int8.xml", "model.int8.bin",
    ]  # fmt: skip
    assert exported.passed
    for one in exported.exports:
        assert one.samples == 12
        assert one.latency_ms.p50 == faster[one.precision]
        assert all(Artifact(path=out / name, sha256=digest).verified() for name, digest in one.files.items())
        assert one.max_error <= (1e-5 if one.precision is FP32 else 0.5) * one.scale
    held = json.loads((out / "manifest.json").read_text())
    assert held["schema_version"] == 1
    assert held["exports"][1]["files"] == exported.exports[1].files
    assert [value.name for value in onnx.load(out / "model.onnx").graph.input] == ["images"]


def test_int8_that_is_not_faster_is_left_out_unless_nothing_else_was_asked_for(
    tmp_path: Path, faster: dict[Precision, float]
):
    faster[INT8] = 1.0
    path, data = models.conv_net(tmp_path / "net.onnx"), inputs(tmp_path, image=(3, 8, 8))
    for precisions, kept in (((FP32, INT8), ["model.onnx"]), ((INT8,), ["model.int8.onnx"])):
        out = tmp_path / str(len(precisions))
        exported = pipeline.export(path, target=TARGET, out=out, precisions=precisions, calibrate=data)
        assert names(exported) == kept
        assert any("not faster" in problem for problem in exported.problems)
        assert sorted(file.name for file in out.iterdir()) == sorted([*kept, "manifest.json"])


def test_an_export_takes_away_what_an_earlier_one_left_and_nothing_else(
    tmp_path: Path, faster: dict[Precision, float]
):
    path, data = models.conv_net(tmp_path / "net.onnx"), inputs(tmp_path, image=(3, 8, 8))
    out = tmp_path / "out"
    pipeline.export(path, target=TARGET, out=out, precisions=(FP32, INT8), calibrate=data)
    (out / "notes.txt").write_text("mine")
    pipeline.export(path, target=TARGET, out=out, calibrate=data)
    assert sorted(file.name for file in out.iterdir()) == ["manifest.json", "model.onnx", "notes.txt"]


def test_a_live_module_with_two_inputs_keeps_its_names_and_an_open_batch(tmp_path: Path):
    exported = pipeline.export(
        Two().train(),
        target=TARGET,
        out=tmp_path,
        inputs={"left": (1, 8), "right": (1, 4)},
        to=("onnx", "openvino"),
        dynamic_batch=True,
        opset=17,
    )
    assert exported.passed
    assert exported.calibration_sha256 == ""
    assert any("random" in problem for problem in exported.problems)
    assert [(spec.name, spec.shape) for spec in exported.signature.inputs] == [
        ("left", (None, 8)),
        ("right", (None, 4)),
    ]
    model = onnx.load(tmp_path / "model.onnx")
    assert next(entry.version for entry in model.opset_import if not entry.domain) == 17
    assert "test_exporting.py" not in str(model)  # no path of the user's is shipped


def test_an_fp32_file_that_departs_from_its_source_is_named_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "FP32_RELATIVE_ERROR", -1.0)
    exported = pipeline.export(models.conv_net(tmp_path / "net.onnx"), target=TARGET, out=tmp_path / "out")
    assert not exported.passed
    assert any("model.onnx does not compute" in problem for problem in exported.problems)


def test_an_onnx_file_may_have_several_inputs_and_change_its_opset(tmp_path: Path):
    exported = pipeline.export(
        models.recurrent_cell(tmp_path / "cell.onnx"),
        target=TARGET,
        out=tmp_path,
        to=("onnx", "openvino"),
        opset=18,
    )
    assert (exported.passed, exported.opset) == (True, 18)


def test_a_bundle_is_exported_with_its_own_images(made_bundle: Bundle, tmp_path: Path):
    exported = pipeline.export(made_bundle.folder, target=TARGET, out=tmp_path / "out", to=("openvino",))
    assert exported.passed
    assert exported.calibration_sha256
    assert exported.exports[0].samples == 12
    assert exported.exports[0].changed_labels == 0


def test_a_bundle_whose_model_changed_is_refused(made_bundle: Bundle, tmp_path: Path):
    with (made_bundle.folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(IntegrityError):
        pipeline.export(made_bundle.folder, target=TARGET, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"source": "absent.py:net"}, UsageError, "no absent.py"),
        ({"source": "model.pt"}, UsageError, "FILE.py:FUNCTION"),
        ({"inputs": {}}, UsageError, "--input images="),
        ({"weights": Path("absent.safetensors")}, UsageError, "do not exist"),
        ({"function": "smal"}, TeacherError, "did you mean 'small'"),
        ({"inputs": {"images": (1, 4, 8, 8)}}, ModelError, "expected input"),
        ({"to": ("tflite",)}, UsageError, "no format 'tflite'"),
        ({"to": ()}, UsageError, "nothing to export"),
        ({"precisions": (Precision.BF16,)}, UsageError, "--precision bf16"),
        ({"calibrate": Path("absent.npz")}, DataError, "no such file"),
    ],
)
def test_what_cannot_be_exported_says_why(
    changes: dict[str, Any], error: type[Exception], word: str, tmp_path: Path
):
    (tmp_path / "net.py").write_text(CODE)
    function = changes.pop("function", "small")
    asked = {"source": f"{tmp_path}/net.py:{function}", "inputs": {"images": (1, 3, 8, 8)}, **changes}
    with pytest.raises(error) as caught:
        pipeline.export(target=TARGET, out=tmp_path / "out", **asked)
    assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_fixes_its_batch_is_not_opened_by_force(tmp_path: Path):
    with pytest.raises(UsageError, match="fixes its batch"):
        pipeline.export(
            models.conv_net(tmp_path / "net.onnx"), target=TARGET, out=tmp_path / "out", dynamic_batch=True
        )


def test_an_open_batch_of_a_file_is_checked_with_several_rows(tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx", batch="n")
    exported = pipeline.export(
        path, target=TARGET, out=tmp_path / "out", to=("openvino",), dynamic_batch=True
    )
    assert exported.passed
    assert exported.signature.inputs[0].shape[0] is None
