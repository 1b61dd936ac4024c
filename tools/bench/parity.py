"""What does an export take and lose, and is every planted fault found, and in the right layer?

    python tools/bench/parity.py export [--students 12] [--inputs 10000] [--rounds 5]
    python tools/bench/parity.py faults [--models FILE.onnx ...] [--students 6] [--faults 4] [--runtime onnxruntime]

Prints JSON.

`export` draws students of every family, in memory as training leaves them, and has them written in turns by
edgekd (folded, written, computed once by ONNX's own definitions, checked by onnx.checker, synced to disk) and by
torch.onnx, dynamo and legacy. The error of edgekd's file in ONNX Runtime, against the unfolded student in float64, is
held against that of torch in float32, and its labels against torch's.

`faults` plants one fault a case into a copy of a model: a wrong mean (in the normalisation in front of it, or in a
layer's bias), swapped channels, a transposed weight, a broken scale. The copy then goes through one of several
transformations: none, all names changed, int8, fp16. `edgekd verify` must say that it is not the same, and name
the layer. The same transformations without a fault must pass.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
import torch  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: E402
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402
from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: E402
from stand import target_of  # noqa: E402
from torch import nn  # noqa: E402

from edgekd import pipeline, students  # noqa: E402
from edgekd.errors import EdgekdError  # noqa: E402
from edgekd.stages.emit import emit  # noqa: E402
from edgekd.stages.export import save  # noqa: E402
from edgekd.values.ladder import Ladder  # noqa: E402
from edgekd.values.student import StudentSpec  # noqa: E402

SIZES = {"residual": (32, 3, 10), "inverted": (32, 3, 10), "residual_maps": (64, 3, 8), "inverted_maps": (64, 3, 8),
         "mlp": (1, 20, 5), "gru": (32, 30, 30)}  # fmt: skip  # resolution, channels, outputs
WARM_UPS = 1
KINDS = ("mean", "channels", "transposed", "scale")
WAYS = ("as it is", "renamed", "int8", "fp16")


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student in memory, as training leaves it."""

    spec: StudentSpec
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    export = verbs.add_parser("export")
    export.add_argument("--students", type=int, default=12)
    export.add_argument(
        "--inputs", type=int, default=10_000, help="of the first student of each image family"
    )
    export.add_argument("--rounds", type=int, default=5)
    faults = verbs.add_parser("faults")
    faults.add_argument("--models", type=Path, nargs="*", default=[])
    faults.add_argument("--students", type=int, default=6)
    faults.add_argument("--faults", type=int, default=4, help="of each kind, a model")
    faults.add_argument("--runtime", default="onnxruntime")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        found = (exporting if asked.verb == "export" else planting)(asked, Path(scratch))
    print(json.dumps(found, indent=1))


def drawn(count: int) -> list[Student]:
    """Draw students, the families in turns."""
    rng = random.Random(0)  # noqa: S311 - cases, no secrets
    found: list[Student] = []
    for at in range(count):
        family = list(SIZES)[at % len(SIZES)]
        resolution, channels, outputs = SIZES[family]
        space = students.space_for(
            resolution=resolution, channels=channels, classes=outputs, families=(family,)
        )
        spec = students.sample(space, rng)
        module = students.build(spec, channels=channels, classes=outputs, seed=at)
        found.append(
            Student(
                spec=spec,
                module=_as_trained(module, students.inputs(spec, channels)),
                inputs=students.inputs(spec, channels),
                outputs=students.outputs(spec, channels),
            )
        )
    return found


def _as_trained(module: nn.Module, inputs: dict[str, tuple[int, ...]]) -> nn.Module:
    """Give batch norms what training gives them: the statistics of data, and weights that are not all 1."""
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(1)
    for one in norms:
        one.weight.data *= 1 + 0.2 * torch.randn(one.weight.shape, generator=generator)
        one.bias.data += 0.2 * torch.randn(one.bias.shape, generator=generator)
        one.momentum = None  # of all batches alike
    if norms:
        (shape,) = inputs.values()
        with torch.no_grad():
            for _ in range(4):
                module.train()(torch.rand((8, *shape[1:]), generator=generator))
    return module.eval()


# ------------------------------------------------------------------------------------------------ export


def exporting(asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Time the three exporters in turns, and judge what edgekd wrote."""
    own = drawn(asked.students)
    times: dict[str, list[float]] = {name: [] for name in EXPORTERS}
    failed: dict[str, list[str]] = {name: [] for name in EXPORTERS}
    first: dict[str, float] = {}
    turns = random.Random(0)  # noqa: S311 - turns, no secrets
    for at, one in enumerate(own):
        for round_ in range(-WARM_UPS, asked.rounds):
            for name in turns.sample(list(EXPORTERS), len(EXPORTERS)):
                start = time.perf_counter()
                try:
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        EXPORTERS[name](one, scratch / name / str(at))
                except Exception as error:  # noqa: BLE001 - a peer may fail in any way
                    failed[name].append(f"{one.spec.family}: {type(error).__name__}")
                    continue
                took = 1e3 * (time.perf_counter() - start)
                first.setdefault(name, took)
                if round_ >= 0:
                    times[name].append(took)
    judged = [fidelity(one, scratch / "edgekd" / str(at), 64) for at, one in enumerate(own)]
    labels = [
        fidelity(one, scratch / "edgekd" / str(at), asked.inputs)
        for at, one in enumerate(own[: len(SIZES)])
        if one.spec.family in students.IMAGES
    ]
    return {
        "students": [str(one.spec) for one in own],
        "export_ms": {
            name: {
                "median": statistics.median(found), "p95": float(np.percentile(found, 95)), "worst": max(found),
                "first": first[name], "exports": len(found),
            }
            for name, found in times.items() if found
        },
        "times_faster": {
            name: statistics.median(times[name]) / statistics.median(times["edgekd"])
            for name in EXPORTERS if name != "edgekd" and times[name]
        },
        "failed": {name: sorted(set(found)) for name, found in failed.items() if found},
        "error_ratio": {
            "worst": max(one["ratio"] for one in (*judged, *labels)),
            "median": statistics.median(one["ratio"] for one in judged),
        },
        "labels": {
            "compared": sum(int(one["inputs"]) for one in labels), "changed": sum(int(one["changed"]) for one in labels),
        },
        "removable_nodes": sum(removable(scratch / "edgekd" / str(at)) for at in range(len(own))),
    }  # fmt: skip


def _edgekd(one: Student, folder: Path) -> None:
    save(folder, emit(students.shipped(one.module, one.spec), one.inputs, one.outputs))


def _torch(one: Student, folder: Path, *, dynamo: bool) -> None:
    """Write the folded student by torch.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        students.shipped(one.module, one.spec), tuple(torch.zeros(shape) for shape in one.inputs.values()),
        str(folder / "model.onnx"), input_names=list(one.inputs), output_names=list(one.outputs),
        opset_version=18 if dynamo else 17, dynamo=dynamo, verbose=False,
    )  # fmt: skip


EXPORTERS: dict[str, Callable[[Student, Path], None]] = {
    "edgekd": _edgekd,
    "torch.onnx dynamo": lambda one, folder: _torch(one, folder, dynamo=True),
    "torch.onnx legacy": lambda one, folder: _torch(one, folder, dynamo=False),
}


def fidelity(one: Student, folder: Path, count: int) -> dict[str, float]:
    """Hold the file in ONNX Runtime, and torch in float32, against the student in float64."""
    session = _session((folder / "model.onnx").read_bytes())
    rng = np.random.default_rng(0)
    # The network that is trained, branches and norms unfolded; of a recurrent one its step, which is what ships.
    whole = students.shipped(one.module, one.spec) if one.spec.family == "gru" else one.module
    exact = _doubled(whole)
    worst, changed = [0.0, 0.0], 0
    for _ in range(count):
        feeds = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in one.inputs.items()}
        with torch.inference_mode():
            single = _first(whole(*map(torch.from_numpy, feeds.values())))
            double = _first(exact(*(torch.from_numpy(array).double() for array in feeds.values())))
        found = session.run(None, feeds)[0]
        worst = [max(worst[0], _off(found, double)), max(worst[1], _off(single, double))]
        changed += int(found.reshape(-1).argmax() != single.reshape(-1).argmax())
    return {
        "ratio": worst[0] / worst[1],
        "error": worst[0],
        "torch": worst[1],
        "changed": changed,
        "inputs": count,
    }


def _doubled(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _first(found: Any) -> np.ndarray:
    whole: np.ndarray = (found[0] if isinstance(found, tuple) else found).numpy()
    return whole


def _off(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(found.astype(np.float64) - exact).max())


def removable(folder: Path) -> int:
    """Return how many nodes an optimiser would still take out of a file that passes the checker."""
    from onnxscript import optimizer

    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    return len(model.graph.node) - len(optimizer.optimize(model).graph.node)


def _session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# ------------------------------------------------------------------------------------------------ faults


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a copy of it with one fault, or with none."""

    name: str
    kind: str  # empty: no fault
    way: str
    right: onnx.ModelProto
    wrong: onnx.ModelProto
    layer: str = ""  # where the fault is: the node's first output


def planting(asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Plant faults and look for them."""
    rows = []
    for case in cases(asked):
        rows.append(judged_case(case, asked.runtime, scratch))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    planted = [one for one in rows if one["kind"]]
    sound = [one for one in rows if not one["kind"]]
    by_kind = {
        kind: [sum(one[key] for one in planted if one["kind"] == kind) for key in ("found", "named")]
        + [sum(one["kind"] == kind for one in planted)]
        for kind in KINDS
    }
    return {
        "planted": len(planted), "found": sum(one["found"] for one in planted),
        "named": sum(one["named"] for one in planted), "by_kind_found_named_planted": by_kind,
        "sound": len(sound), "false_alarms": sum(one["found"] for one in sound),
        "missed": [one for one in planted if not one["named"]],
        "alarms": [one for one in sound if one["found"]],
        "seconds": {"median": statistics.median(one["seconds"] for one in rows), "worst": max(one["seconds"] for one in rows)},
    }  # fmt: skip


def cases(asked: argparse.Namespace) -> Iterator[Case]:
    """Give every case: models in turns through the ways, each kind of fault in random layers."""
    rng = random.Random(0)  # noqa: S311 - cases, no secrets
    for at, (name, right) in enumerate(_subjects(asked)):
        ways = [way for way in WAYS if way in {"as it is", "renamed"} or _quantisable(right)]
        for way in ways:
            yield Case(name=name, kind="", way=way, right=right, wrong=WAY[way](right))
        for number, kind in enumerate(KINDS * asked.faults):
            wrong, layer = _planted(right, kind, rng)
            if layer:
                way = ways[(at + number) % len(ways)]
                yield Case(name=name, kind=kind, way=way, right=right, wrong=WAY[way](wrong), layer=layer)


def _subjects(asked: argparse.Namespace) -> Iterator[tuple[str, onnx.ModelProto]]:
    for one in drawn(asked.students):
        model = emit(students.shipped(one.module, one.spec), one.inputs, one.outputs)
        image = one.spec.family not in {"mlp", "gru"}
        yield one.spec.family, _normalised(model) if image else model
    for path in asked.models:
        yield path.stem, _static(onnx.load(str(path)))


def judged_case(case: Case, runtime: str, scratch: Path) -> dict[str, Any]:
    """Run `edgekd verify` on the two files."""
    files = [scratch / "right.onnx", scratch / "wrong.onnx"]
    for path, model in zip(files, (case.right, case.wrong)):
        onnx.save(model, str(path))
    start = time.perf_counter()
    first, problem = None, ""
    try:
        found: Ladder | None = pipeline.ladder(*map(str, files), target=target_of(runtime))
        first = found.first_bad if found is not None else None
    except EdgekdError as error:
        found, problem = None, f"{error.what}: {error.cause}"[:300]
    named = first is not None and first.stands_out and _same_layer(case, first.layer, first.counterpart)
    return {
        "model": case.name, "kind": case.kind, "way": case.way, "layer": case.layer,
        "found": found is not None and not found.passed, "named": named,
        "said": "" if first is None else f"{first.layer} {first.own_error:.2g}", "problem": problem,
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip


def _same_layer(case: Case, said: str, counterpart: str) -> bool:
    """Whether the layer is the one: by its name in the copy, or by that of its counterpart in the original."""
    names = {node.output[0]: node.name or node.output[0] for node in case.right.graph.node}
    return names[case.layer] in {said, counterpart}


def _planted(right: onnx.ModelProto, kind: str, rng: random.Random) -> tuple[onnx.ModelProto, str]:
    """Return a copy with one fault and where it is; no layer where this kind cannot be planted."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    held = {tensor.name: tensor for tensor in wrong.graph.initializer}
    nodes = [node for node in wrong.graph.node if node.op_type in {"Conv", "Gemm", "MatMul", "Sub"}]
    for node in rng.sample(nodes, len(nodes)):
        places = [at for at in range(1, len(node.input)) if node.input[at] in held]
        if not places or (node.op_type == "Sub" and kind != "mean"):
            continue
        place = places[-1] if kind == "mean" else places[0]
        tensor = held[node.input[place]]
        if sum(tensor.name in one.input for one in wrong.graph.node) > 1:
            continue  # it would be in several layers
        before = numpy_helper.to_array(tensor)
        after = _spoilt(before, kind, node, rng)
        if after is not None and np.abs(after - before).max() > 0.2 * np.abs(before).max():
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), tensor.name))
            return wrong, node.output[0]
    return wrong, ""


def _spoilt(before: np.ndarray, kind: str, node: onnx.NodeProto, rng: random.Random) -> np.ndarray | None:  # noqa: PLR0911 - one a kind
    after = before.copy()
    if kind == "mean":
        if before.ndim != 1 and node.op_type != "Sub":
            return None
        at = rng.randrange(before.size)
        after.flat[at] += max(0.3, 0.5 * float(np.abs(before).max()))
    elif kind == "channels":
        if before.ndim < 2 or before.shape[1] < 2:
            return None
        one, two = rng.sample(range(before.shape[1]), 2)
        after[:, [one, two]] = before[:, [two, one]]
    elif kind == "transposed":
        if before.ndim == 4 and before.shape[2] == before.shape[3] > 1:
            return before.transpose(0, 1, 3, 2)
        if before.ndim >= 2 and before.shape[0] == before.shape[1] > 1:
            return before.swapaxes(0, 1)
        return None
    else:
        axis = 1 if node.op_type == "MatMul" else 0
        if before.ndim < 2:
            return None
        at = rng.randrange(before.shape[axis])
        index = (slice(None), at) if axis else (at,)
        after[index] = 3 * before[index]
    return after


def _normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a normalisation in front of a network, as many files carry it."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, name = made.graph, made.graph.input[0].name
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    for node in graph.node:
        for at, read in enumerate(node.input):
            if read == name:
                node.input[at] = "normalised"
    shape = (1, channels, 1, 1)
    for key, values in (("mean", [0.49, 0.48, 0.45]), ("spread", [4.0, 4.1, 3.8])):
        array = np.array(values[:channels], np.float32).reshape(shape)
        graph.initializer.append(numpy_helper.from_array(array, key))
    front = [
        helper.make_node("Sub", [name, "mean"], ["centred"], name="normalise.mean"),
        helper.make_node("Mul", ["centred", "spread"], ["normalised"], name="normalise.spread"),
    ]
    for node in reversed(front):
        graph.node.insert(0, node)
    return made


def _static(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    return model


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Change every name inside, and the order of the weights."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = {tensor.name: f"w{at}" for at, tensor in enumerate(graph.initializer) if tensor.name not in fixed}
    for at, node in enumerate(graph.node):
        node.name = f"n{at}"
        for number, name in enumerate(node.output):
            names.setdefault(name, name if name in fixed else f"t{at}.{number}")
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.value_info[:]
    return made


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(5)
        held = {tensor.name for tensor in model.graph.initializer}
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input if value.name not in held
        }  # fmt: skip
        self._rows = iter(
            [{n: rng.random(shape, np.float32) for n, shape in shapes.items()} for _ in range(16)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def _int8(model: onnx.ModelProto) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path, source = Path(folder) / "int8.onnx", Path(folder) / "float.onnx"
        onnx.save(model, str(source))  # of a model in memory it would take the weights out
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                str(source), str(path), _Rows(model), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return onnx.load(str(path))


def _fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    source = onnx.ModelProto()
    source.CopyFrom(model)
    made: onnx.ModelProto = convert_float_to_float16(source, keep_io_types=True)
    OnnxModel.graph_topological_sort(made.graph)  # its casts come last
    return made


def _quantisable(model: onnx.ModelProto) -> bool:
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    return bool(opset >= 13 and any(node.op_type == "Conv" for node in model.graph.node))


WAY: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "as it is": lambda model: model, "renamed": _renamed, "int8": _int8, "fp16": _fp16,
}  # fmt: skip


if __name__ == "__main__":
    main()
