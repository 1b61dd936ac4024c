"""Run a model so that the tensors inside it can be seen: a child rewrites the file, and any runtime runs the copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekd.devices import Device
from edgekd.errors import ModelError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model
from edgekd.values.watch import (
    Cut,
    DefineOrder,
    DefineReply,
    GraphLayer,
    GraphOrder,
    GraphReply,
    WatchOrder,
    WatchReply,
)
from edgekd.wire import Child

DEFINITION = "numpy"  # in place of a runtime: ONNX's own reference implementation
_TIMEOUT_S = 120.0

Arrays = dict[str, NDArray[Any]]
Rows = Mapping[str, Artifact]  # a .npy an input, a row an inference
Run = Callable[[Model, Rows, Path], Arrays]
Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A layer, and what it gave: (rows, ...)."""

    layer: GraphLayer
    values: NDArray[Any]
    module: str = ""  # the torch module
    source: str = ""  # FILE:LINE


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """One model as one runtime runs it."""

    name: str
    model: Model
    run: Run
    shapes: dict[str, tuple[int, ...]]


class Workshop:
    """The child that takes models apart, and computes them in numpy; a crash of it is a fact about the model."""

    def __init__(self, memory_mib: int = 8192) -> None:
        self._memory_mib = memory_mib
        self._child: Child | None = None

    def graph(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> GraphReply:
        """List a model's layers.

        Raises:
            ModelError: it is malformed, or crashes its parser.

        """
        return self._ask("graph", GraphOrder(model=model, shapes=dict(shapes)), GraphReply, model)

    def watch(self, order: WatchOrder) -> WatchReply:
        """Copy a model so that tensors inside can be seen, and replaced.

        Raises:
            ModelError: it is malformed, or has no such tensor.

        """
        return self._ask("watch", order, WatchReply, order.model)

    def define(self, model: Model, rows: Rows, folder: Path) -> Arrays:
        """Compute a model by ONNX's own definitions.

        Raises:
            ModelError: it is malformed, takes too long, or holds what ONNX does not define.

        """
        order = DefineOrder(model=model, inputs=dict(rows), folder=folder.resolve())
        found = self._ask("define", order, DefineReply, model).outputs
        return {name: np.load(file.verified(), allow_pickle=False) for name, file in found.items()}

    def _ask(self, name: str, order: object, reply: type[Reply], model: Model) -> Reply:
        if self._child is None:
            self._child = Child("edgekd.quantizers", memory_mib=self._memory_mib)
        try:
            return self._child.ask(name, order, reply, timeout_s=_TIMEOUT_S)
        except WorkerDied as error:
            self.close()
            what = f"{model.file.path.name} cannot be looked into"
            raise ModelError(what, cause=f"{error.what}: {error.cause}".rstrip(": ")) from error

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def on_device(device: Device, engine: Engine) -> Run:
    """Return what runs a model on a runtime of a device, with an engine's settings."""

    def run(model: Model, rows: Rows, folder: Path) -> Arrays:
        found = device.infer(replace(engine, model=model), dict(rows), folder)
        return {name: np.load(file.verified(), allow_pickle=False) for name, file in found.items()}

    return run


def see(
    workshop: Workshop,
    form: Form,
    layers: Sequence[GraphLayer],
    rows: Rows,
    *,
    folder: Path,
    given: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Seen, ...]:
    """Run a form of a model and return what its layers gave.

    Args:
        workshop: rewrites the file.
        form: the model as a runtime runs it.
        layers: of this model.
        rows: its inputs.
        folder: for the copy, and what goes into it and comes out.
        given: values for tensors inside, (rows, ...): whoever reads such a tensor gets these in its place.

    Raises:
        ModelError: the copy cannot be made or run.

    """
    replaced = given or {}
    cuts = tuple(Cut(tensor=name, shape=tuple(array.shape[1:])) for name, array in replaced.items())
    order = WatchOrder(
        model=form.model, folder=folder.resolve(), tensors=tuple(one.tensor for one in layers), cuts=cuts
    )
    reply = workshop.watch(order)
    fed = {reply.inputs[name]: _kept(folder, at, array) for at, (name, array) in enumerate(replaced.items())}
    found = form.run(reply.model, {**rows, **fed}, folder / "outputs")
    return tuple(Seen(layer=one, values=found[reply.outputs[one.tensor]]) for one in layers)


def _kept(folder: Path, at: int, array: NDArray[Any]) -> Artifact:
    path = folder / f"given_{at}.npy"
    np.save(path, np.ascontiguousarray(array, dtype=np.float32))
    return Artifact.of(path)
