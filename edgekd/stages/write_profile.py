"""Write the hardware profile of a new board, by building a small network there in every precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekd.devices import Device
from edgekd.devices.hostkeys import printable
from edgekd.errors import BuildError, DeviceError
from edgekd.stages.halve import cast_by_graph
from edgekd.store import write_text
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import ProbeReply
from edgekd.values.target import Profile
from edgekd.worker.health import MODEL, WEIGHTS

if TYPE_CHECKING:
    from onnx import NodeProto

log = logging.getLogger(__name__)

_SHARE = 0.5  # of the board's memory for a build: the rest is the system's, and on a Jetson the GPU's
_STEP_MIB = 64
_BUILD_TIMEOUT_S = 600.0
_OPSET = 17  # what TensorRT 10.3 reads
_LONGEST = 200  # characters of what a board says of its processor


def draft_profile(reply: ProbeReply, *, name: str) -> Profile:
    """Return a board's profile before anything was built there: the runtimes that work, and the limits for a build.

    Raises:
        DeviceError: no runtime works there.

    """
    working = [health.name for health in reply.runtimes if health.works]
    if not working:
        mends = " or ".join(health.mend for health in reply.runtimes if health.mend)
        raise DeviceError("no runtime works on the board", cause="a profile names those that do", mend=mends)
    held = reply.conditions.hardware
    words = f"{held.processor}, {held.machine}, {held.cores} cores, {held.memory_mib} MiB"
    return Profile(
        name=name,
        description=printable(words, _LONGEST),
        runtimes=dict.fromkeys(working, (Precision.FP32,)),
        memory_mib=max(_STEP_MIB, int(held.memory_mib * _SHARE) // _STEP_MIB * _STEP_MIB),
        build_timeout_s=_BUILD_TIMEOUT_S,
    )


def write_profile(folder: Path, device: Device, draft: Profile, reply: ProbeReply, *, today: str) -> Path:
    """Write `NAME.toml` in a folder: the runtimes that work there, and the precisions that they build.

    Args:
        folder: where it goes; the int8 network that was tried lies there meanwhile.
        device: the board, connected with the draft as its profile: what is listed was built within its limits.
        draft: of `draft_profile`.
        reply: of the board's probe.
        today: UTC, ISO 8601.

    Raises:
        DeviceError: no runtime there builds anything.

    """
    built = {name: tuple(_built(folder, device, name)) for name in draft.runtimes}
    runtimes = {name: precisions for name, precisions in built.items() if precisions}
    if not runtimes:
        raise DeviceError(
            f"no runtime builds a network on {device.name}",
            cause=f"{', '.join(built)} were tried with {draft.memory_mib} MiB and {draft.build_timeout_s:g} s",
            mend="see why with -v; free memory there, or write a profile by hand",
        )
    versions = {health.name: health.version.partition("-")[0] for health in reply.runtimes}
    told = ", ".join(f"{name} {versions[name]}" for name in runtimes)
    profile = replace(
        draft,
        runtimes=runtimes,
        traps=("The precisions were built, not weighed: whether one pays is measured with each network.",),
        sources=(printable(f"edgekd devices probe on {today}: {told}", _LONGEST),),
    )
    return write_text(folder / f"{draft.name}.toml", _text(profile, reply.conditions.hardware.cores))


def _built(folder: Path, device: Device, runtime: str) -> Iterator[Precision]:
    """Yield the precisions in which the runtime really compiles and runs a network there."""
    for precision in Precision:
        written = None  # for the attempt
        if precision is Precision.INT8 or cast_by_graph(runtime, precision):
            written = _quantised(folder) if precision is Precision.INT8 else _halved(folder)
        model = Model(file=written or Artifact.of(MODEL), precision=precision if written else Precision.FP32)
        engine = Engine(model=model, runtime=runtime, precision=precision)
        try:
            device.build(engine)
        except BuildError as error:
            log.info("%s is left out: %s", engine.name, error.cause or error.what)
            continue
        finally:
            if written:
                written.path.unlink(missing_ok=True)
        yield precision


def _quantised(folder: Path) -> Artifact:
    """Write the worker's own network with Q/DQ around its convolution; per-tensor scales, no zero points."""
    from onnx import helper

    scale = float(np.abs(WEIGHTS).max()) / 127
    values: Mapping[str, NDArray[Any]] = {
        "image_scale": np.array(1 / 64, np.float32),
        "weight_scale": np.array(scale, np.float32),
        "zero": np.array(0, np.int8),
        "weights": np.round(WEIGHTS / scale).astype(np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "image_scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "image_scale", "zero"], ["dq"]),
        helper.make_node("DequantizeLinear", ["weights", "weight_scale", "zero"], ["w"]),
        helper.make_node("Conv", ["dq", "w"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["answer"]),
    ]
    return _saved(folder / ".health-int8.onnx", nodes, values)


def _halved(folder: Path) -> Artifact:
    """Write the worker's own network as a graph that computes in fp16, with fp32 at its ends."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["x", "weights"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Cast", ["c"], ["answer"], to=TensorProto.FLOAT),
    ]
    return _saved(folder / ".health-fp16.onnx", nodes, {"weights": WEIGHTS.astype(np.float16)})


def _saved(path: Path, nodes: list[NodeProto], values: Mapping[str, NDArray[Any]]) -> Artifact:
    from onnx import TensorProto, helper, numpy_helper, save_model

    graph = helper.make_graph(
        nodes,
        path.stem.lstrip("."),
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 4, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8), str(path)
    )
    return Artifact.of(path)


def _text(profile: Profile, cores: int) -> str:
    return "\n".join(
        [
            f"name = {_quoted(profile.name)}",
            f"description = {_quoted(profile.description)}",
            f"threads = {profile.threads}  # of {cores} cores; `edgekd profile --threads N` says whether more pay",
            f"memory_mib = {profile.memory_mib}  # half of the board's memory",
            f"build_timeout_s = {profile.build_timeout_s}",
            f"traps = [{', '.join(map(_quoted, profile.traps))}]",
            f"sources = [{', '.join(map(_quoted, profile.sources))}]",
            "",
            "[runtimes]",
            *(
                f"{runtime} = {_quoted([p.value for p in held])}"
                for runtime, held in profile.runtimes.items()
            ),
            "",
        ]
    )


def _quoted(value: str | list[str]) -> str:
    """Write TOML's basic strings, which are JSON's but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
