"""What runs a model: the runtimes a bundle may name, and what opens its files in them."""

import importlib
import importlib.metadata
import io
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.runner.files import Refusal, one_line
from edgekd.runner.trt_engine import Infer, Shapes, Tensors, gpu_driver, load_tensorrt


def choose(deployments: list[Any], runtime: str | None, notes: list[str]) -> tuple[dict[str, Any], Any]:
    """Return the first deployment whose runtime works, and that runtime's module; notes say why not an earlier one.

    Raises:
        Refusal: the bundle has nothing for the runtime that was asked for, or none works here.

    """
    known = [str(deployment["runtime"]) for deployment in deployments]
    if runtime is not None and runtime not in known:
        raise Refusal(f"the bundle has nothing for {runtime}; it has: {', '.join(dict.fromkeys(known))}", 2)
    wanted = [one for one in deployments if runtime in (None, one["runtime"])]
    problems: dict[str, str] = {}
    for deployment in wanted:
        name = str(deployment["runtime"])
        found = problems.get(name) or _imported(name)
        if not isinstance(found, str):
            if problems:
                accepted, why = (
                    f"{wanted[0]['runtime']}/{wanted[0]['precision']}",
                    next(iter(problems.values())),
                )
                notes.append(f"{accepted} was accepted, but {why}: running {name}/{deployment['precision']}")
            return deployment, found
        problems[name] = found
    lacking = dict.fromkeys(_module_of(name) for name in problems if name in LOADERS)
    mend = f"; pip install one of {', '.join(lacking)}" if lacking else ""
    jetson = " (on a Jetson: sudo apt install python3-libnvinfer)" if "tensorrt" in lacking else ""
    raise Refusal(f"no runtime of this bundle works here: {'; '.join(problems.values())}{mend}{jetson}", 4)


def _imported(runtime: str) -> Any:
    """Return the runtime's module, or say why there is none."""
    if runtime not in LOADERS:  # the manifest chooses from this table and imports nothing else
        return f"{runtime} is none that this runner opens ({', '.join(LOADERS)})"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to its maker
    name = _module_of(runtime)
    try:
        if name == "tensorrt":
            gpu_driver()
        return importlib.import_module(name)
    except ImportError:
        return f"{name} is not installed"
    except OSError as error:  # a library that it needs
        return f"{name} does not load here ({one_line(error)})"


def _module_of(runtime: str) -> str:
    return runtime.partition("-")[0]  # tensorrt-graph and tensorrt-dla are ways to run tensorrt


def differences(deployment: Mapping[str, Any]) -> list[str]:
    """Say how this machine differs from the one the latency was measured on."""
    conditions = deployment["latency"]["conditions"]
    measured, runtime = conditions["hardware"], deployment["runtime"]
    found = []
    processor, features = _processor()
    if measured["machine"] != platform.machine():
        found.append(f"{measured['machine']}, not {platform.machine()}")
    elif processor and measured["processor"] != processor:
        found.append(f"{measured['processor']}, not {processor}")
    if features and (lacking := [name for name in measured["features"] if name not in features]):
        found.append(f"it had {', '.join(lacking)}")
    then, now = conditions["software"]["runtimes"].get(runtime), _version(runtime)
    if then is not None and then != now:
        found.append(f"{runtime} {then}, not {now}")
    return [f"its latency was measured on another machine ({'; '.join(found)})"] if found else []


def _processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor(), set()
    table: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    features = table.get("flags") or table.get("Features") or ""
    return table.get("model name") or table.get("Model") or "", set(features.split())


def _version(runtime: str) -> str:
    name = _module_of(runtime)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(name), "__version__", ""))


def opened(module: Any, deployment: Mapping[str, Any], content: list[bytes]) -> tuple[Infer, Shapes]:
    """Open a deployment's files in its runtime; return what runs them, and its inputs' whole shapes.

    Raises:
        Refusal: the runtime does not take them.

    """
    runtime = str(deployment["runtime"])
    try:
        return LOADERS[runtime](module, deployment, content)
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 - runtimes raise types of their own; the reader gets one line
        raise Refusal(f"{runtime} cannot load {deployment['files'][0]}: {one_line(error)}", 4) from None


def _load_onnxruntime(
    module: Any, deployment: Mapping[str, Any], content: list[bytes]
) -> tuple[Infer, Shapes]:
    options = module.SessionOptions()
    options.intra_op_num_threads = int(deployment["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as when it was measured
    session = module.InferenceSession(content[0], options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]

    def infer(tensors: Tensors) -> Tensors:
        return dict(zip(names, session.run(names, dict(tensors))))

    return infer, {one.name: tuple(one.shape) for one in session.get_inputs()}


def _load_openvino(module: Any, deployment: Mapping[str, Any], content: list[bytes]) -> tuple[Infer, Shapes]:
    core = module.Core()
    weights = {"weights": content[1]} if len(content) > 1 else {}
    model = core.read_model(model=io.BytesIO(content[0]) if not weights else content[0], **weights)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(deployment["threads"]),
        # int8 lies in the model's FakeQuantize; what is left of it runs in fp32, never in a silent bf16
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(str(deployment["precision"]), "f32"),
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    taken, given = ([_port_name(port) for port in ports] for ports in (model.inputs, model.outputs))

    def infer(tensors: Tensors) -> Tensors:
        request.infer({at: tensors[name] for at, name in enumerate(taken)})
        return {name: np.array(request.get_output_tensor(at).data) for at, name in enumerate(given)}

    return infer, {name: tuple(port.shape) for name, port in zip(taken, model.inputs)}


def _port_name(port: Any) -> str:
    """Return the author's name of a port, which has the names of all nodes that were fused into its own."""
    own = str(port.node.friendly_name).removesuffix("/sink_port_0")
    return own if own in port.names else str(port.any_name)


LOADERS: dict[str, Callable[[Any, Mapping[str, Any], list[bytes]], tuple[Infer, Shapes]]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
    "tensorrt": load_tensorrt,
    "tensorrt-graph": load_tensorrt,
    "tensorrt-dla": load_tensorrt,
}
