"""Of a bundle that fails it is said where: the layer of a file, or what its inputs are made into."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.devices.local import LocalDevice
from edgekd.stages.explain import explain
from edgekd.stages.looking import Workshop
from edgekd.stages.verify import verify_bundle
from edgekd.values.artifact import sha256_of
from edgekd.values.bundle import Bundle, Check
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target
from tests.pipeline.rehearsed import WorkerHere

RUNTIMES = {"onnxruntime": (Precision.FP32,), "openvino": (Precision.FP32,)}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("stages.looking", "devices.local"):
        monkeypatch.setattr(f"edgekd.{module}.Child", WorkerHere)


def rewritten(made: Bundle, name: str, change: Callable[[Path], object]) -> Bundle:
    """Change a file and its digest, as a build that went wrong would."""
    change(made.folder / name)
    path = made.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = sha256_of(made.folder / name)
    path.write_text(json.dumps(manifest))
    return made


def preprocessing(**values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def explained(made: Bundle, tmp_path: Path) -> list[Check]:
    profile = Profile(name="here", description="", runtimes=RUNTIMES)
    device = LocalDevice(Target(profile=profile, device="local", runtimes=tuple(RUNTIMES), threads=1))
    report = verify_bundle(made.folder, device, tmp_path / "scratch")
    told = explain(report, device, Workshop(), tmp_path / "explained")
    assert told.checks[: len(report.checks)] == report.checks
    assert told.passed is report.passed
    return [check for check in told.checks if check.name == "where it departs"]


def test_of_a_bundle_that_holds_nothing_is_said(made_bundle: Bundle, tmp_path: Path):
    assert explained(made_bundle, tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"mean": [0.47]}, "mean 0.4000 and std 0.3000"), ({"std": [0.24]}, "mean 0.4000 and std 0.3000")],
)
def test_a_wrong_mean_or_std_is_found_with_the_right_one(
    made_bundle: Bundle, tmp_path: Path, wrong: dict[str, Any], said: str
):
    made = rewritten(made_bundle, "preprocess.json", preprocessing(**wrong))
    (check,) = explained(made, tmp_path)
    assert "mean or std in preprocess.json is wrong" in check.detail
    assert said in check.detail


def test_the_layer_of_a_file_that_departs_from_the_other_is_named(made_bundle: Bundle, tmp_path: Path):
    def swap(path: Path) -> None:
        model = onnx.load(str(path))
        (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "kernel")
        weights = numpy_helper.to_array(kernel)[::-1]
        kernel.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights), "kernel"))
        onnx.save(model, str(path))

    (check,) = explained(rewritten(made_bundle, "model.onnx", swap), tmp_path)
    assert check.passed is None
    assert "onnxruntime/fp32: the first bad layer against openvino/fp32" in check.detail
    assert "(Conv)" in check.detail


def test_what_no_preprocessing_mends_is_said_too(made_bundle: Bundle, tmp_path: Path):
    def others(path: Path) -> None:
        with np.load(path) as held:
            arrays = dict(held)
        arrays["logits"] = np.random.default_rng(0).standard_normal(arrays["logits"].shape).astype(np.float32)
        np.savez(path, **arrays)

    (check,) = explained(rewritten(made_bundle, "samples.npz", others), tmp_path)
    assert "no other mean" in check.detail
