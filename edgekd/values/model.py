"""A model file, what it takes and gives, and what a runtime made of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edgekd.values.artifact import Artifact


class Precision(Enum):
    """The arithmetic of the compiled file."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output; a `None` dimension is dynamic."""

    name: str
    dtype: str  # numpy's name: float32, int64, ...
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a model takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantized: bool = False  # an inspected file carries int8 inside: Q/DQ, integer operators or FakeQuantize
    floats: Precision = Precision.FP32  # most of an inspected file's weighted operators are of this type

    @property
    def precision(self) -> Precision:
        """What an inspected file was made for."""
        return Precision.INT8 if self.quantized else self.floats


@dataclass(frozen=True, kw_only=True)
class Model:
    """A portable model (.onnx with its external data, or .xml with its .bin) and the precision it was made for.

    An int8 model carries its quantisation inside: Q/DQ in ONNX, FakeQuantize in OpenVINO IR.
    """

    file: Artifact
    weights: Artifact | None = None  # the .bin beside an OpenVINO .xml
    precision: Precision = Precision.FP32
    external: tuple[Artifact, ...] = ()  # weights of an .onnx, below its folder, in the order of their names

    @property
    def files(self) -> tuple[Artifact, ...]:
        """All its files, the model itself first."""
        return (self.file, *(() if self.weights is None else (self.weights,)), *self.external)

    @property
    def size_bytes(self) -> int:
        """Size of all its files on disk."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model, the runtime that compiles it and the settings it runs with: what is measured and shipped."""

    model: Model
    runtime: str
    precision: Precision
    threads: int = 1
    shapes: dict[str, tuple[int, ...]] | None = None  # for inputs of dynamic shape; unknown dimensions are 1

    @property
    def name(self) -> str:
        """`openvino/int8`."""
        return f"{self.runtime}/{self.precision.value}"
