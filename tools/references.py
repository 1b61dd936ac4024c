"""Make edgekd's reference models again: `tools/references.py [DIR]`, byte for byte with the same onnx.

Each is bound by something else, so that between them they feel whatever may happen to a machine. Weights come from
SHAKE-256, which is the same everywhere and for ever, where a random generator's stream may change.
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekd.stages import references

OPSET, IR_VERSION = 13, 8  # read by every runtime of the last years

Floats = NDArray[np.float32]

CHANNELS, SIDE, CONVOLUTIONS = 64, 16, 16  # compute
PLANES, EDGE = 16, 256  # memory: 4 MiB a tensor, more than a core's own caches hold
ROWS, WIDTH, LINKS = 32, 64, 100  # launch: of two nodes each


def main() -> None:
    """Write the models and say what they are."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else references.FOLDER
    for name, make in MODELS.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(make().SerializeToString(deterministic=True))
        print(f"{name:8} {path.stat().st_size:7} bytes  {hashlib.sha256(path.read_bytes()).hexdigest()}")


def compute() -> onnx.ModelProto:
    """Convolutions with one kernel between them: 151 million multiply-accumulates on 150 kB."""
    nodes = [_conv("image", "mix", "c0", pads=0)]
    for at in range(CONVOLUTIONS):
        nodes += [
            helper.make_node("Relu", [f"c{at}"], [f"r{at}"]),
            _conv(f"r{at}", "kernel", f"c{at + 1}", pads=1),
        ]
    nodes.append(helper.make_node("GlobalAveragePool", [f"c{CONVOLUTIONS}"], ["answer"]))
    constants = {
        "mix": weights("mix", CHANNELS, 3, 1, 1),
        "kernel": weights("kernel", CHANNELS, CHANNELS, 3, 3),
    }
    return _model("compute", nodes, {"image": (1, 3, SIDE, SIDE)}, {"answer": (1, CHANNELS, 1, 1)}, constants)


def memory() -> onnx.ModelProto:
    """Depthwise and elementwise passes over 4 MiB: a few operations a byte."""
    nodes = [
        helper.make_node("Mul", ["image", "planes"], ["wide"]),
        _conv("wide", "kernel", "d0", pads=1, group=PLANES),
        helper.make_node("Add", ["d0", "wide"], ["a0"]),
        _conv("a0", "kernel", "d1", pads=1, group=PLANES),
        helper.make_node("GlobalAveragePool", ["d1"], ["answer"]),
    ]
    constants = {
        "planes": weights("planes", 1, PLANES, 1, 1),
        "kernel": weights("depthwise", PLANES, 1, 3, 3),
    }
    return _model("memory", nodes, {"image": (1, 1, EDGE, EDGE)}, {"answer": (1, PLANES, 1, 1)}, constants)


def launch() -> onnx.ModelProto:
    """A chain of 200 nodes with hardly any work in each; a softmax cannot be fused with a product."""
    nodes = []
    for at in range(LINKS):
        before = "rows" if at == 0 else f"s{at - 1}"
        after = "answer" if at == LINKS - 1 else f"s{at}"
        nodes += [  # the input comes in at every link, or a hundred of them would forget it
            helper.make_node("Gemm", [before, "weights", "rows"], [f"g{at}"]),
            helper.make_node("Softmax", [f"g{at}"], [after], axis=-1),
        ]
    constants = {"weights": weights("weights", WIDTH, WIDTH)}
    return _model("launch", nodes, {"rows": (ROWS, WIDTH)}, {"answer": (ROWS, WIDTH)}, constants)


MODELS = {"compute": compute, "memory": memory, "launch": launch}


def weights(name: str, *shape: int) -> Floats:
    """Return 256 evenly spread values, as many as fit `shape`, of a variance that a ReLU network keeps."""
    stream = hashlib.shake_256(name.encode()).digest(math.prod(shape))
    even = (np.frombuffer(stream, dtype=np.uint8).astype(np.float32) - 127.5) / 127.5  # variance 1/3
    return (even * math.sqrt(6 / math.prod(shape[1:]))).astype(np.float32).reshape(shape)


def _conv(source: str, kernel: str, out: str, *, pads: int, group: int = 1) -> NodeProto:
    side = 2 * pads + 1
    return helper.make_node(
        "Conv", [source, kernel], [out], kernel_shape=[side, side], pads=[pads] * 4, group=group
    )


def _model(
    name: str,
    nodes: list[NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, Floats],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one, shape in inputs.items()],
        [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one, shape in outputs.items()],
        [numpy_helper.from_array(array, one) for one, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgekd",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    main()
