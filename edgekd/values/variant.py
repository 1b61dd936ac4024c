"""How an int8 file is made of a float one, what that costs and what is to blame."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from edgekd.values.model import Precision


class Method(Enum):
    """Who writes the int8 file."""

    STATIC = "static"  # ONNX Runtime's quantiser: Q/DQ, activations u8
    NNCF = "nncf"  # OpenVINO's: FakeQuantize, biases corrected
    EXPLICIT = "explicit"  # Q/DQ where TensorRT wants them, symmetric throughout
    DISTILLED = "distilled"  # edgekd: Q/DQ from grids that the student was distilled on


class Ranges(Enum):
    """How the range of an activation is found: what lies outside it is cut off."""

    MINMAX = "minmax"  # the quantiser's own default
    PERCENTILE = "percentile"
    ENTROPY = "entropy"  # the range that loses least of the histogram


class Operators(Enum):
    """Which operators are quantised."""

    ALL = "all"  # whatever the quantiser can
    WEIGHTED = "weighted"  # convolutions and matrix products alone


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The choices behind an int8 file."""

    method: Method
    ranges: Ranges = Ranges.MINMAX
    per_channel: bool = True  # a scale a channel for weights
    symmetric: bool = False  # activations' zero points lie in the middle, where the method leaves a choice
    operators: Operators = Operators.ALL
    kept: tuple[str, ...] = ()  # nodes that stay float

    @property
    def name(self) -> str:
        """`static, percentile, weighted, 3 nodes float`."""
        words = [self.method.value]
        words += [self.ranges.value] if self.ranges is not Ranges.MINMAX else []
        words += [] if self.per_channel else ["a scale a tensor"]
        words += ["symmetric"] if self.symmetric and self.method is Method.STATIC else []
        words += ["asymmetric"] if not self.symmetric and self.method is Method.NNCF else []
        words += [self.operators.value] if self.operators is not Operators.ALL else []
        nodes = "node" if len(self.kept) == 1 else "nodes"
        words += [f"{len(self.kept)} {nodes} float"] if self.kept else []
        return ", ".join(words)

    @property
    def structure(self) -> Quantization:
        """What its latency hangs on: ranges change numbers in the file, and no layer."""
        return replace(self, ranges=Ranges.MINMAX)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A weighted node of a float graph and what follows it up to the next: quantised, or kept float, as one."""

    name: str  # of the weighted node
    kind: str  # ONNX's word for it
    nodes: tuple[str, ...]  # it and those that follow
    tensors: tuple[str, ...]  # what they give


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How far a file's answers lie from its float parent's, on inputs that it was not calibrated on."""

    divergence: float  # KL to the parent in nats where an output looks like logits, else its error's share of the variance
    changed: float | None  # share of the labels that are others; None where no output looks like logits
    drop: float | None  # of the task's metric, as a share; below 0: it gained; None without labels
    samples: int

    @property
    def points(self) -> float:
        """What is lost in points: of the metric where it is known, else in 100 labels, else in % of the signal."""
        if self.drop is not None:
            return 100 * self.drop
        return 100 * (self.changed if self.changed is not None else self.divergence)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What an int8 file may lose and still pass for its parent."""

    drop: float = 0.0005  # of the metric
    changed: float = (
        0.01  # share of the labels: 100 of 10,000, some right and some wrong, move a metric by 0.1 points
    )
    divergence: float = 0.003  # where nothing looks like logits: share of an output's variance, 25 dB

    def allows(self, loss: Loss) -> bool:
        """Say whether a loss passes: by the metric and the labels where they are known, else by the outputs."""
        if not math.isfinite(loss.divergence):
            return False
        if loss.changed is None and loss.drop is None:
            return loss.divergence <= self.divergence
        # One label in few would already be more than the share allowed: it passes.
        fewest = max(self.changed, 1 / max(loss.samples, 1))
        same = loss.changed is None or loss.changed <= fewest
        return same and (loss.drop is None or loss.drop <= self.drop)


@dataclass(frozen=True, kw_only=True)
class Blamed:
    """A segment that takes longer in int8 than it does in float, by the runtime's own profiler."""

    segment: str
    kind: str
    why: str  # "its kernel", "conversions around it", "it runs in float"
    float_ms: float
    int8_ms: float  # conversions around it included

    @property
    def lost_ms(self) -> float:
        """What int8 costs here."""
        return self.int8_ms - self.float_ms


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled form of a model that was tried: its latency beside its parent's, and what it lost."""

    runtime: str
    precision: Precision
    quantization: Quantization | None = None  # None: a float form
    p50_ms: float | None = None  # None: not timed, it could not win or could not be built
    parent_ms: float | None = None  # of the fp32 form, in turns with it
    loss: Loss | None = None
    why: str = ""  # what came of it

    @property
    def name(self) -> str:
        """`openvino/int8, nncf`."""
        how = f", {self.quantization.name}" if self.quantization else ""
        return f"{self.runtime}/{self.precision.value}{how}"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What accuracy costs here: layers that went back to float."""

    kept: tuple[str, ...]
    before_ms: float  # p50 of the int8 file
    after_ms: float  # of the repaired one, in turns with it
    before_points: float  # lost against float
    after_points: float

    @property
    def ms_per_point(self) -> float | None:
        """Milliseconds a point; None where no point was regained."""
        regained = self.before_points - self.after_points
        return (self.after_ms - self.before_ms) / regained if regained > 0 else None
