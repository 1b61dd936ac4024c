"""What is asked of the child that takes a model's graph apart, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.values.artifact import Artifact
from edgekd.values.model import Model


@dataclass(frozen=True, kw_only=True)
class GraphOrder:
    """List the layers of an .onnx or .xml, in the order in which they run."""

    model: Model
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of inputs with dynamic dimensions


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """One operator, and the tensor of numbers that it gives; weights and what is reckoned from them are no layers."""

    name: str  # its own; where it has none, its tensor's
    operator: str
    tensor: str
    elements: int | None  # of the tensor; None where that depends on the inputs
    inputs: tuple[str, ...] = ()  # tensors of other layers and inputs of the model
    cuttable: bool = True  # whether its readers can be given another tensor
    origin: str = ""  # the torch module that an exporter noted for it


@dataclass(frozen=True, kw_only=True)
class GraphReply:
    """The layers that can be looked at, and what stands in the way of more."""

    layers: tuple[GraphLayer, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A tensor whose readers get an input of their own in its place."""

    tensor: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WatchOrder:
    """Copy a model so that tensors inside become outputs, and readers of others read new inputs; all in float32."""

    model: Model
    folder: Path
    tensors: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WatchReply:
    """The copy; it still has the model's own inputs and outputs."""

    model: Model
    outputs: dict[str, str]  # name of the new output, by tensor
    inputs: dict[str, str]  # name of the new input, by tensor that was cut


@dataclass(frozen=True, kw_only=True)
class DefineOrder:
    """Compute an .onnx by ONNX's own definitions, in numpy."""

    model: Model
    inputs: dict[str, Artifact]  # a .npy an input, a row an inference
    folder: Path


@dataclass(frozen=True, kw_only=True)
class DefineReply:
    """A .npy an output, in the model's order."""

    outputs: dict[str, Artifact]
