"""A planted fault is found in the layer it was planted in, and nothing is blamed where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd.stages import bisect
from edgekd.stages.bisect import Found, departure, first_bad
from edgekd.stages.looking import Form, Workshop
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

LIMIT = 2e-5
Spoil = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr("edgekd.stages.looking.Child", WorkerHere)
    return Workshop()


def deep(path: Path, blocks: int = 6) -> Path:
    """Convolutions, norms, ReLUs and sums; image (1, 3, 8, 8) to logits (1, 5)."""
    nodes = [helper.make_node("Conv", ["image", "stem"], ["x0"], pads=[1, 1, 1, 1])]
    constants = {"stem": models.weights(8, 3, 3, 3)}
    rng = np.random.default_rng(7)
    for at in range(blocks):
        norm = [f"{key}{at}" for key in ("scale", "shift", "mean", "var")]
        nodes += [
            helper.make_node(
                "Conv", [f"x{at}", f"w{at}"], [f"c{at}"], name=f"block{at}/conv", pads=[1, 1, 1, 1]
            ),
            helper.make_node("BatchNormalization", [f"c{at}", *norm], [f"n{at}"], name=f"block{at}/norm"),
            helper.make_node("Relu", [f"n{at}"], [f"r{at}"]),
            helper.make_node("Add", [f"r{at}", f"x{at}"], [f"x{at + 1}"]),
        ]
        constants[f"w{at}"] = models.weights(8, 8, 3, 3, seed=at + 1)
        constants |= {name: rng.uniform(0.5, 1.5, 8).astype(np.float32) for name in norm}
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{blocks}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "end", "bias"], ["logits"], transB=1),
    ]
    constants |= {"end": models.weights(8, 8, seed=90), "bias": models.weights(8, seed=91)}
    inputs = {"image": (models.FLOAT, (1, 3, 8, 8))}
    return models.save(path, nodes, inputs, {"logits": (1, 8)}, constants)


def spoilt(source: Path, target: Path, weight: str, spoil: Spoil) -> Path:
    model = onnx.load(str(source))
    (tensor,) = (one for one in model.graph.initializer if one.name == weight)
    array = np.ascontiguousarray(spoil(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(model, str(target))
    return target


def renamed(path: Path) -> Path:
    model = onnx.load(str(path))
    fixed = {"image", "logits"}
    names: dict[str, str] = {}
    for node in model.graph.node:
        node.name = ""
        for side in (node.input, node.output):
            for at, name in enumerate(side):
                side[at] = name if name in fixed else names.setdefault(name, f"t{len(names)}")
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    onnx.save(model, str(path))
    return path


def looked(workshop: Workshop, right: Path, wrong: Path, folder: Path, count: int = 2) -> Found:
    images = np.random.default_rng(1).random((count, 1, 3, 8, 8), np.float32)
    np.save(folder / "images.npy", images)
    rows = {"image": Artifact.of(folder / "images.npy")}
    forms = [
        Form(name=path.stem, model=Model(file=Artifact.of(path)), run=workshop.define, shapes={})
        for path in (right, wrong)
    ]
    return first_bad(workshop, *forms, {"reference": rows, "other": rows}, folder / "inside", limit=LIMIT)


def swapped(weight: np.ndarray) -> np.ndarray:
    return weight[:, [1, 0, *range(2, weight.shape[1])]]


FAULTS: dict[str, tuple[str, Spoil, str]] = {
    "swapped channels at the start": ("stem", swapped, "x0"),
    "swapped channels": ("w3", swapped, "block3/conv"),
    "transposed kernel": ("w2", lambda weight: weight.transpose(0, 1, 3, 2), "block2/conv"),
    "transposed matrix": ("end", lambda weight: weight.T, "logits"),
    "broken scale": ("scale4", lambda scale: scale * np.float32(2), "block4/norm"),
    "broken scale of one channel": ("scale1", lambda scale: scale * (1 + np.eye(8)[3]), "block1/norm"),
    "wrong mean": ("mean0", lambda mean: mean + np.float32(0.1), "block0/norm"),
    "wrong bias": ("bias", lambda bias: bias + np.float32(0.01), "logits"),
}


@pytest.mark.parametrize("names", ["kept", "changed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_alone(workshop: Workshop, tmp_path: Path, fault: str, names: str):
    weight, spoil, layer = FAULTS[fault]
    right = deep(tmp_path / "right.onnx")
    wrong = spoilt(right, tmp_path / "wrong.onnx", weight, lambda array: spoil(array).astype(np.float32))
    if names == "changed":
        renamed(wrong)
    found = looked(workshop, right, wrong, tmp_path)
    assert [(one.counterpart or one.layer) for one in found.blames] == [layer]
    assert found.blames[0].stands_out
    assert found.layers >= 27


def test_of_two_faults_the_first_comes_first(workshop: Workshop, tmp_path: Path):
    right = deep(tmp_path / "right.onnx")
    once = spoilt(right, tmp_path / "once.onnx", "w4", swapped)
    twice = spoilt(once, tmp_path / "twice.onnx", "w1", swapped)
    found = looked(workshop, right, twice, tmp_path)
    assert [one.layer for one in found.blames] == ["block1/conv", "block4/conv"]


def test_no_layer_stands_out_where_there_is_no_fault(workshop: Workshop, tmp_path: Path):
    right = deep(tmp_path / "right.onnx")
    other = renamed(
        spoilt(right, tmp_path / "other.onnx", "w0", lambda weight: weight * np.float32(1 + 1e-6))
    )
    found = looked(workshop, right, other, tmp_path)
    assert len(found.blames) == 1
    assert not found.blames[0].stands_out


def test_an_optimised_graph_finds_its_fault_across_folded_norms(workshop: Workshop, tmp_path: Path):
    import onnxruntime

    right = deep(tmp_path / "right.onnx")
    wrong = spoilt(right, tmp_path / "wrong.onnx", "w2", swapped)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(wrong), options, providers=["CPUExecutionProvider"])
    assert "BatchNormalization" not in {
        node.op_type for node in onnx.load(str(tmp_path / "folded.onnx")).graph.node
    }
    found = looked(workshop, right, tmp_path / "folded.onnx", tmp_path)
    assert found.blames[0].stands_out
    assert found.blames[0].operator == "Conv"
    assert {found.blames[0].layer, found.blames[0].counterpart} & {"block2/conv", "block2/norm"}


def test_where_memory_is_short_it_is_bisected(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    right = deep(tmp_path / "right.onnx", blocks=12)
    wrong = spoilt(right, tmp_path / "wrong.onnx", "mean7", lambda mean: mean + np.float32(0.3))
    monkeypatch.setattr(bisect, "_MOST_BYTES", 10 * 4 * 8 * 8 * 8)  # ten tensors
    found = looked(workshop, right, wrong, tmp_path, count=1)
    assert found.blames[0].layer == "block7/norm"
    assert (tmp_path / "inside" / "round1").is_dir()
    assert found.layers < 20


def test_models_that_have_nothing_in_common_blame_nobody(workshop: Workshop, tmp_path: Path):
    right = deep(tmp_path / "right.onnx")
    nodes = [helper.make_node("ReduceSum", ["image"], ["logits"], keepdims=0)]
    other = models.save(
        tmp_path / "other.onnx", nodes, {"image": (models.FLOAT, (1, 3, 8, 8))}, {"logits": ()}
    )
    found = looked(workshop, right, other, tmp_path)
    assert not found.blames
    assert "no layer" in found.problem


def test_a_file_that_cannot_be_looked_into_is_a_problem_and_no_error(workshop: Workshop, tmp_path: Path):
    right = deep(tmp_path / "right.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\xff" * 40)
    found = looked(workshop, right, tmp_path / "broken.onnx", tmp_path)
    assert not found.blames
    assert "not a valid .onnx" in found.problem


def test_a_departure_is_a_share_of_the_norm_or_of_the_largest_value():
    reference = np.array([3.0, 4.0, 0.0])
    assert departure(reference, reference) == 0.0
    assert departure(reference, np.array([3.0, 4.0, 1.0])) == pytest.approx(0.2)
    long = np.ones(1000)
    assert departure(long, np.where(np.arange(1000) == 7, 1.4, 1.0)) == pytest.approx(0.1)  # 0.4 of the peak
    assert departure(np.zeros(3), np.ones(3)) == np.inf
    assert departure(reference, np.array([3.0, np.nan, 0.0])) == np.inf
    infinite = np.array([np.inf, 1.0])
    assert departure(infinite, infinite) == 0.0
    assert departure(np.array([np.nan, 2.0]), np.array([np.nan, 3.0])) == 0.5


def test_one_channel_that_departs_is_seen_among_many():
    maps = np.random.default_rng(0).standard_normal((1, 1, 400, 8, 8))
    wrong = maps.copy()
    wrong[0, 0, 17] *= 1.3
    assert departure(maps, wrong) == pytest.approx(0.15, rel=0.2)
    quiet = maps.copy()
    quiet[0, 0, 17] *= 1e-3
    assert departure(quiet, np.where(quiet == maps, quiet, 0.0)) < 1e-3  # of what nobody hears
