"""What is asked of the program that casts a graph to fp16, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.values.artifact import Artifact
from edgekd.values.model import Model


@dataclass(frozen=True, kw_only=True)
class HalveOrder:
    """Cast the graph of a float .onnx to fp16; its inputs and outputs stay float32."""

    model: Artifact
    samples: dict[str, Artifact]  # a .npy for each input, a row an inference
    folder: Path
    most_rows: int = 32


@dataclass(frozen=True, kw_only=True)
class HalveReply:
    """The model in fp16, and what it computes beside the one in fp32."""

    model: Model
    kept: tuple[str, ...]  # nodes that stay in fp32: what they take or give does not fit into fp16
    expected: dict[str, Artifact]  # a .npy an output: of the fp32 model, rows in the order of the samples
    found: dict[str, Artifact]  # of the fp16 model, in which a CPU rounds less than a GPU
    rounded: dict[str, Artifact]  # of the fp32 model with every value that is fp16 now rounded to it
