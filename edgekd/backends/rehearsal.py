"""A shipped fake: real outputs from the ONNX reference, and a clock of its own that only inference moves.

It lets a whole run be rehearsed anywhere, at once, with the same result each time. Its latency follows the
graph (multiply-accumulates, nodes, precision), so that what is smaller is faster, as on a real device. Its noise
follows from the file and from the inputs, so that launches differ, and the same launch is always the same.

What goes wrong on real devices can be rehearsed too, by an entry in the .onnx file's `metadata_props`:

    rehearsal.slowdown           how many times as long an inference takes
    rehearsal.noise              standard deviation of the logarithm of its time, instead of 0.01
    rehearsal.throttle           "every:factor[:share]": one stretch of 50 inferences in `every` takes `factor` times
                                 as long, and counts as one throttle event; in that share of the launches
    rehearsal.always_throttled   "1": every inference counts as a throttle event; the clock stays as it is
    rehearsal.nan_after          after so many inferences every floating-point answer is NaN
    rehearsal.crash_after        after so many inferences the process ends at once
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgekd.backends import check_precision, settled
from edgekd.errors import BuildError
from edgekd.timing.sampling import varied_inputs
from edgekd.timing.session import Parts, Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec

Array = NDArray[Any]

_MACS_PER_NS = {Precision.FP32: 20.0, Precision.BF16: 30.0, Precision.INT8: 60.0}
_CALL_NS, _NODE_NS = 4_000, 1_000
_NOISE = 0.01  # standard deviation of the logarithm
_STRETCH = 50  # inferences that throttling slows together
_KNOBS = "rehearsal."
_TAIL, _TAIL_FACTOR = 0.01, 1.08  # one inference in a hundred takes so much longer
_KEPT = 16  # answers remembered: the timing loop asks the same few questions again and again
_FREE = {"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"}  # what a runtime fuses away


def version() -> str:
    """Return the version of the reference evaluator."""
    return str(onnx.__version__)


def precisions() -> tuple[Precision, ...]:
    """Return what the fake pretends to compute in."""
    return tuple(_MACS_PER_NS)


@contextmanager
def open(engine: Engine) -> Iterator[RehearsalSession]:  # noqa: A001 - the name every backend offers
    """Read a .onnx into the reference evaluator.

    Raises:
        BuildError: it is no .onnx, or the evaluator refuses it.

    """
    check_precision(engine, precisions())
    path = engine.model.file.path
    if path.suffix != ".onnx":
        raise BuildError(f"rehearsal cannot read {path.name}", mend="give it an .onnx file")
    try:
        session = RehearsalSession(onnx.load(str(path)), engine)
    except BuildError:
        raise
    except Exception as error:  # protobuf's, the shape inference's and the evaluator's own
        raise BuildError(f"rehearsal cannot read {path.name}", cause=str(error)[:1000]) from error
    yield session


def compile(engine: Engine, folder: Path) -> Model:  # noqa: A001 - the name every backend offers
    """Copy the file: there is nothing to compile it to.

    Raises:
        BuildError: the evaluator refuses the model or the precision.

    """
    with open(engine):
        path = folder / "model.onnx"
        shutil.copyfile(engine.model.file.path, path)
    return replace(engine.model, file=Artifact.of(path))


def layers(engine: Engine, passes: int) -> tuple[Layer, ...]:
    """Return the nodes that take time, each by its part of what the fake clock says of so many passes.

    The sum of layer times is never a latency: here, a call costs something as well.

    Raises:
        BuildError: the evaluator refuses the model or the precision.

    """
    with open(engine) as session:
        feeds = varied_inputs(session.signature, seed=0, count=1)[0]
        times_ns = []
        for _ in range(passes):
            start_ns = session.clock_ns()
            session.run(feeds)
            times_ns.append(session.clock_ns() - start_ns)
        model = onnx.load(str(engine.model.file.path))
        whole_ns = _latency_ns(model, session.signature, engine)
        slow = statistics.median(times_ns) / whole_ns if times_ns else None
        return tuple(
            Layer(
                name=node.name or node.output[0],
                kind=node.op_type,
                time_ms=None if slow is None else slow * alone_ns / 1e6,
            )
            for node, alone_ns in _nodes_ns(model, session.signature, engine)
        )


def reference(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return the reference evaluator of a model, Q/DQ of every opset included."""
    return ReferenceEvaluator(model, new_ops=[QuantizeLinear, DequantizeLinear])


class QuantizeLinear(OpRun):  # type: ignore[misc]
    """ONNX's operator of that name, for the opsets before 19 which the reference leaves out."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **_: Any
    ) -> tuple[Array]:
        zero = np.zeros_like(scale, dtype=np.uint8) if zero is None else zero
        integers = np.rint(x / _along(scale, x, axis)) + _along(zero, x, axis)
        limits = np.iinfo(zero.dtype)
        return (np.clip(integers, limits.min, limits.max).astype(zero.dtype),)


class DequantizeLinear(OpRun):  # type: ignore[misc]
    """ONNX's operator of that name, for the opsets before 19 which the reference leaves out."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **_: Any
    ) -> tuple[Array]:
        shifted = x.astype(np.float32)
        if zero is not None:
            shifted -= _along(zero, x, axis).astype(np.float32)
        return (np.asarray(shifted * _along(scale, x, axis), dtype=scale.dtype),)


class RehearsalSession:
    """The reference evaluator with a clock that only `run` moves."""

    real_time = False

    def __init__(self, model: onnx.ModelProto, engine: Engine) -> None:
        if not model.graph.output:
            raise BuildError("the file holds no graph with outputs", mend="export the model again")
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [_spec(value) for value in model.graph.input if value.name not in constants]
        self.signature = Signature(
            inputs=settled(inputs, engine.shapes or {}),
            outputs=tuple(_spec(value) for value in model.graph.output),
        )
        self._evaluator = reference(model)
        self._latency_ns = _latency_ns(model, self.signature, engine)
        self._knobs = _knobs(model)
        self._sha256 = engine.model.file.sha256
        self._chance = random.Random(self._sha256)  # noqa: S311 - noise, not a secret
        self._kept: dict[bytes, list[Any]] = {}
        self._now_ns = self._done = self._throttles = 0
        self._hot = True  # whether this launch is one that throttles
        self._threads = engine.threads

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs and let the clock pass."""
        self._check(feeds)
        answers = self._answers(feeds)
        slow = _TAIL_FACTOR if self._chance.random() < _TAIL else 1.0
        slow *= math.exp(self._chance.gauss(0.0, self._knobs.noise)) * self._held_back()
        self._now_ns += round(self._latency_ns * self._knobs.slowdown * slow)
        self._done += 1
        if self._knobs.crash_after is not None and self._done > self._knobs.crash_after:
            os._exit(1)
        names = [spec.name for spec in self.signature.outputs]
        spoilt = self._knobs.nan_after is not None and self._done > self._knobs.nan_after
        return {name: _spoilt(answer) if spoilt else np.array(answer) for name, answer in zip(names, answers)}

    def run_in_parts(self, feeds: Tensors) -> Parts:
        """Run one inference; on this clock nothing but computing takes time."""
        start_ns = self._now_ns
        outputs = self.run(feeds)
        return Parts(copy_in_ns=0, compute_ns=self._now_ns - start_ns, copy_out_ns=0, outputs=outputs)

    def clock_ns(self) -> int:
        """Time passed in inference."""
        return self._now_ns

    def cpu_clock_ns(self) -> int:
        """CPU time of all its threads, which are never idle."""
        return self._now_ns * self._threads

    def throttle_count(self) -> int:
        """Count the throttle events that the file asked for."""
        return self._throttles

    def _answers(self, feeds: Tensors) -> list[Any]:
        key = _key(feeds)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._evaluator.run(None, dict(feeds))
            self._chance.seed(f"{self._sha256}/{key.hex()}")  # other inputs come with another launch
            share = self._knobs.throttle[2]
            self._hot = share == 1 or self._chance.random() < share
        return self._kept[key]

    def _held_back(self) -> float:
        """Return how many times slower this inference is for being throttled, and count the event."""
        every, factor, _ = self._knobs.throttle
        stretch, at = divmod(self._done, _STRETCH)
        throttled = self._hot and every > 0 and stretch % every == every - 1
        self._throttles += self._knobs.always_throttled or (throttled and at == 0)
        return factor if throttled else 1.0

    def _check(self, feeds: Tensors) -> None:
        """Refuse what a real runtime would refuse; the reference evaluator takes anything."""
        for spec in self.signature.inputs:
            given = feeds[spec.name]
            if given.shape != spec.shape or given.dtype != np.dtype(spec.dtype):
                raise ValueError(
                    f"{spec.name!r} is {spec.dtype} {spec.shape}, not {given.dtype} {given.shape}"
                )


@dataclass(frozen=True, kw_only=True)
class _Knobs:
    slowdown: float = 1.0
    noise: float = _NOISE
    throttle: tuple[int, float, float] = (
        0,
        1.0,
        1.0,
    )  # one stretch in so many, how much slower, in which launches
    always_throttled: bool = False
    nan_after: int | None = None  # inferences
    crash_after: int | None = None


def _knobs(model: onnx.ModelProto) -> _Knobs:
    given = {entry.key: entry.value for entry in model.metadata_props}
    given = {key.removeprefix(_KNOBS): value for key, value in given.items() if key.startswith(_KNOBS)}
    throttle = given.pop("throttle", "0:1").split(":")
    try:
        every, factor, share = [*throttle, "1"] if len(throttle) == 2 else throttle  # noqa: PLR2004 - without a share
        knobs = _Knobs(
            slowdown=float(given.pop("slowdown", 1.0)),
            noise=float(given.pop("noise", _NOISE)),
            throttle=(int(every), float(factor), float(share)),
            always_throttled=given.pop("always_throttled", "0") == "1",
            nan_after=_count(given.pop("nan_after", None)),
            crash_after=_count(given.pop("crash_after", None)),
        )
    except ValueError as error:
        raise BuildError("the file's entries for the rehearsal cannot be read", cause=str(error)) from error
    if given:
        raise BuildError(
            f"the rehearsal knows no entry {_KNOBS + min(given)!r}", mend="see its module's text"
        )
    return knobs


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)


def _spoilt(answer: Any) -> Array:
    array = np.array(answer)
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array


def _latency_ns(model: onnx.ModelProto, signature: Signature, engine: Engine) -> float:
    return _CALL_NS + math.fsum(time_ns for _, time_ns in _nodes_ns(model, signature, engine))


def _nodes_ns(
    model: onnx.ModelProto, signature: Signature, engine: Engine
) -> Iterator[tuple[onnx.NodeProto, float]]:
    """Say what each node takes that is not fused away."""
    parallel = 1 + 0.8 * (engine.threads - 1)  # threads help the arithmetic, not the calls
    for node, macs in zip(model.graph.node, _macs_by_node(model, signature), strict=True):
        if node.op_type not in _FREE:
            yield node, _NODE_NS + macs / _MACS_PER_NS[engine.precision] / parallel


def _macs_by_node(model: onnx.ModelProto, signature: Signature) -> Iterator[int]:
    """Count each node's multiply-accumulates, where it is a convolution or a matrix product."""
    shapes = _shapes(model, signature)
    for node in model.graph.node:
        operands = [shapes.get(name, ()) for name in node.input]
        out = shapes.get(node.output[0], ()) if node.output else ()
        if node.op_type == "Conv" and len(operands) > 1:
            yield math.prod(out) * math.prod(operands[1][1:])
        elif node.op_type in {"Gemm", "MatMul"} and operands and operands[0]:
            yield math.prod(out) * operands[0][-1]
        else:
            yield 0


def _shapes(model: onnx.ModelProto, signature: Signature) -> dict[str, tuple[int, ...]]:
    """Infer the shape of every tensor, with the inputs settled; unknown dimensions count as 1."""
    settled_model = onnx.ModelProto()
    settled_model.CopyFrom(model)
    known = {spec.name: spec.shape for spec in signature.inputs}
    del settled_model.graph.value_info[:]  # of the dynamic shapes; inferred anew below
    for value in (*settled_model.graph.input, *settled_model.graph.output):
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.Clear()
            if value.name in known:
                dim.dim_value = known[value.name][at] or 1
    graph = onnx.shape_inference.infer_shapes(settled_model).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found.setdefault(value.name, tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim))
    return found


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    if not kind.elem_type:
        raise BuildError(f"{value.name!r} is not a tensor", mend="export the model with tensors only")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _along(parameter: Array, x: Array, axis: int) -> Array:
    """Give a scale or zero point a channel the shape that broadcasts over `x`."""
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _key(feeds: Tensors) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in feeds.items():
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.digest()
