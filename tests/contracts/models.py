"""Small .onnx models for tests, made with onnx.helper: what each exercises is in its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision

Make = Callable[[Path], Path]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str | None]]],
    outputs: dict[str, Sequence[int | str | None] | None],
    constants: dict[str, np.ndarray] | None = None,
    *,
    checked: bool = True,
) -> Path:
    """Write a model of float outputs."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if checked:
        onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(
        np.float32
    )


def conv_net(path: Path, *, batch: int | str = 1, width: int = 8, side: int = 8) -> Path:
    """Conv, Relu, Conv, Relu, GlobalAveragePool, Flatten, Gemm: image (batch, 3, side, side) to logits (batch, 5)."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    constants = {
        "w1": weights(width, 3, 3, 3),
        "w2": weights(width, width, 3, 3, seed=1),
        "w3": weights(5, width, seed=2),
        "b3": weights(5, seed=3),
    }
    return save(path, nodes, {"image": (FLOAT, (batch, 3, side, side))}, {"logits": (batch, 5)}, constants)


SPREAD = ("more/w.bin", "w e.data")


def spread_net(path: Path, *, names: Sequence[str] = SPREAD) -> Path:
    """A `conv_net` whose weights lie in files beside it, tensor by tensor in turns."""
    model = onnx.load(str(conv_net(path)))
    blobs = dict.fromkeys(names, b"")
    for at, tensor in enumerate(model.graph.initializer):
        name, data = names[at % len(names)], tensor.raw_data
        set_external_data(tensor, name, offset=len(blobs[name]), length=len(data))
        tensor.ClearField("raw_data")
        blobs[name] += data
    for name, data in blobs.items():
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(data)
    path.write_bytes(model.SerializeToString())
    return path


def spread_engine(path: Path, runtime: str = "rehearsal") -> Engine:
    """Name an engine made of a `spread_net` and the files that hold its weights."""
    made = engine(path, runtime)
    external = tuple(Artifact.of(path.parent / name) for name in SPREAD)
    return replace(made, model=replace(made.model, external=external))


def recurrent_cell(path: Path) -> Path:
    """Two inputs, two outputs: frame (1, 4) and state (1, 6) to state_next (1, 6) and score (1, 1)."""
    nodes = [
        helper.make_node("MatMul", ["frame", "w"], ["a"]),
        helper.make_node("MatMul", ["state", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Tanh", ["s"], ["state_next"]),
        helper.make_node("ReduceMean", ["state_next"], ["score"], axes=[1]),
    ]
    inputs = {"frame": (FLOAT, (1, 4)), "state": (FLOAT, (1, 6))}
    constants = {"w": weights(4, 6), "u": weights(6, 6, seed=1)}
    return save(path, nodes, inputs, {"state_next": (1, 6), "score": (1, 1)}, constants)


def embedding(path: Path) -> Path:
    """Integers in: tokens (1, 7) int64 to their mean embedding (1, 3)."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
    ]
    return save(path, nodes, {"tokens": (INT64, (1, 7))}, {"mean": (1, 3)}, {"table": weights(5, 3)})


def fused_outputs(path: Path) -> Path:
    """Outputs whose producers a runtime fuses with their neighbours, listed out of alphabetical order."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["1"], kernel_shape=[1, 1]),
        helper.make_node("Transpose", ["1"], ["2"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["2", "flat"], ["3"]),
        helper.make_node("Sigmoid", ["3"], ["score"]),
        helper.make_node("Identity", ["score"], ["copy"]),
        helper.make_node("Reshape", ["2", "flat"], ["box"]),
    ]
    constants = {"w": weights(2, 3, 1, 1), "flat": np.array([1, -1, 2], dtype=np.int64)}
    inputs = {"image": (FLOAT, (1, 3, 4, 4))}
    return save(path, nodes, inputs, {"score": (1, 16, 2), "copy": (1, 16, 2), "box": (1, 16, 2)}, constants)


def quantized_net(path: Path) -> Path:
    """A Conv between explicit Q/DQ, activations u8 and weights s8 a channel; image (1, 3, 8, 8) to maps."""
    kernel = weights(4, 3, 3, 3)
    scales = (np.abs(kernel).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    integers = np.round(kernel / scales[:, None, None, None]).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["qi"]),
        helper.make_node("DequantizeLinear", ["qi", "s", "z"], ["di"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        helper.make_node("Conv", ["di", "dw"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["maps"]),
    ]
    constants = {
        "s": np.float32(1 / 255), "z": np.uint8(0), "w": integers, "ws": scales, "wz": np.zeros(4, dtype=np.int8),
    }  # fmt: skip
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return save(path, nodes, {"image": (FLOAT, (1, 3, 8, 8))}, {"maps": (1, 4, 8, 8)}, arrays)


def rehearsing(path: Path, **knobs: object) -> Path:
    """Write into a model file what shall go wrong with it on the rehearsal backend."""
    model = onnx.load(str(path))
    helper.set_model_props(model, {f"rehearsal.{name}": str(value) for name, value in knobs.items()})
    onnx.save(model, str(path))
    return path


def conv_without_weights(path: Path) -> Path:
    """Kills OpenVINO 2026.4.1 with SIGSEGV while it reads."""
    nodes = [helper.make_node("Conv", ["image"], ["maps"], kernel_shape=[3, 3])]
    return save(path, nodes, {"image": (FLOAT, (1, 3, 8, 8))}, {"maps": None}, checked=False)


def pool_with_huge_stride(path: Path) -> Path:
    """Passes onnx.checker, and kills OpenVINO 2026.4.1 with SIGFPE while it compiles."""
    nodes = [
        helper.make_node("MaxPool", ["image"], ["maps"], kernel_shape=[2, 2], strides=[1 << 40, 1 << 40])
    ]
    return save(path, nodes, {"image": (FLOAT, (1, 3, 8, 8))}, {"maps": (1, 3, 1, 1)})


def engine(
    path: Path,
    runtime: str = "rehearsal",
    precision: Precision = Precision.FP32,
    *,
    threads: int = 1,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> Engine:
    """Name an engine made of a model file."""
    made_for = Precision.INT8 if precision is Precision.INT8 else Precision.FP32
    model = Model(file=Artifact.of(path), precision=made_for)
    return Engine(model=model, runtime=runtime, precision=precision, threads=threads, shapes=shapes)
