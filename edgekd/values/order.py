"""What the host asks of a worker and what it answers: the messages on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.values.artifact import Artifact
from edgekd.values.conditions import Conditions
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.variant import Quantization, Segment


@dataclass(frozen=True, kw_only=True)
class ProbeOrder:
    """Ask for the machine's conditions and for a real inference on each runtime named."""

    runtimes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RuntimeHealth:
    """What came of running a three-operator model and comparing it with numpy."""

    name: str
    version: str  # empty where it does not import
    works: bool
    max_error: float | None = None  # against numpy
    problem: str = ""
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class ProbeReply:
    """The machine as the worker sees it."""

    conditions: Conditions
    runtimes: tuple[RuntimeHealth, ...]
    board: tuple[str, ...] = ()  # what the board's own tools say: power mode, clocks, heat, rails
    may_tune: bool | None = None  # whether sudo allows what --tune runs; None: there is nothing to tune


@dataclass(frozen=True, kw_only=True)
class InspectOrder:
    """Check a model file against hostile content and read its signature, in the child."""

    model: Artifact
    external: tuple[Artifact, ...] | None = None  # its files of weights; None: those that lie there


@dataclass(frozen=True, kw_only=True)
class LocateOrder:
    """Read which files beside an .onnx hold its weights, in the child; nothing of them is opened."""

    model: Artifact


@dataclass(frozen=True, kw_only=True)
class LocateReply:
    """Names below the model's folder, sorted; none of them leads out of it."""

    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OpenOrder:
    """Load an engine and get it ready for inference; the worker keeps it open."""

    engine: Engine
    core: int | None = None  # stay on that one of the fastest cores, counted around; None: on any


@dataclass(frozen=True, kw_only=True)
class OpenReply:
    """The engine is open."""

    signature: Signature
    open_ms: float  # reading, compiling and the first inference
    memory_mib: float  # growth of the worker's resident memory while opening


@dataclass(frozen=True, kw_only=True)
class WarmUpOrder:
    """Run the open engine until it is stationary."""

    least_ms: float
    seed: int  # of the inputs


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Time inferences of the open engine."""

    samples: int
    period_ms: float = 0.0  # one inference each so often, asleep in between; 0: back to back
    soak_s: float = 0.0  # of untimed inferences, back to back, before the first that counts


@dataclass(frozen=True, kw_only=True)
class SampleReply:
    """Times in run order; inputs and outputs are copied as an application would."""

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    preempted: tuple[bool, ...]  # the scheduler gave the core to another process meanwhile
    conditions: Conditions
    steady: bool = True  # the last input gave what it had given while warming up


@dataclass(frozen=True, kw_only=True)
class LedgerOrder:
    """Time whole requests of the open engine, from an image to its label, in parts and as one."""

    images: Artifact  # .npy, (n, H, W, C), uint8
    recipe: Preprocess
    requests: int = 50  # of either kind


@dataclass(frozen=True, kw_only=True)
class EnergyOrder:
    """Measure what an inference of the open engine costs in energy, in passes of its own: idle, busy, idle."""

    seconds: float  # of each pass


@dataclass(frozen=True, kw_only=True)
class EnergyReply:
    """None where the machine has no meter that this user may read."""

    energy: Energy | None


@dataclass(frozen=True, kw_only=True)
class LayersOrder:
    """List what a runtime makes of an engine's model, each layer timed alone where the runtime can."""

    engine: Engine
    passes: int


@dataclass(frozen=True, kw_only=True)
class LayersReply:
    """In the order in which they run."""

    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class InferOrder:
    """Run the open engine over a folder of inputs.

    `inputs` maps input names to .npy files whose first axis counts the inferences; each row is one whole
    input tensor. Outputs are written as .npy files of the same length under `folder`. An input with fewer rows is a
    state, a row a sequence: the output `next_NAME` replaces it from inference to inference of that sequence.
    """

    inputs: dict[str, Artifact]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """One .npy file an output, rows in the order of the inputs."""

    outputs: dict[str, Artifact]


@dataclass(frozen=True, kw_only=True)
class QuantizeOrder:
    """Turn a float model into an int8 one for a runtime, calibrated on .npy inputs (rows are whole tensors)."""

    model: Artifact
    calibration: dict[str, Artifact]
    folder: Path
    runtime: str
    how: Quantization | None = None  # None: as suits the runtime


@dataclass(frozen=True, kw_only=True)
class SurveyOrder:
    """Prepare a float .onnx for quantisation, and hold inputs that are kept aside against the calibrated ranges."""

    model: Artifact
    calibration: dict[str, Artifact]
    held_out: dict[str, Artifact]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class SurveyReply:
    """The graph that quantisers start from, what there is to quantise, and where calibration falls short."""

    model: Model
    segments: tuple[Segment, ...]  # in order
    beyond: dict[
        str, float
    ]  # tensor -> how far held-out values leave its calibrated range, in ranges; 0.25 and more


@dataclass(frozen=True, kw_only=True)
class RankOrder:
    """Quantise segments of a prepared .onnx one at a time, and see how far each moves the outputs."""

    model: Artifact
    calibration: dict[str, Artifact]
    rows: dict[str, Artifact]  # inputs that are compared on
    how: Quantization
    segments: tuple[Segment, ...]
    most_rows: int = 64


@dataclass(frozen=True, kw_only=True)
class RankReply:
    """The divergence that each segment alone brings about, in the order asked."""

    divergences: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CompileOrder:
    """Write what a runtime makes of an engine's model, in a format that the runtime reads without that work."""

    engine: Engine  # without `shapes`, dynamic dimensions stay open
    folder: Path


@dataclass(frozen=True, kw_only=True)
class OptimizeOrder:
    """Simplify the graph of a float .onnx; its inputs, outputs and what it computes stay as they are."""

    model: Artifact
    folder: Path
    opset: int | None = None  # to convert it to


@dataclass(frozen=True, kw_only=True)
class OptimizeReply:
    """The simplified model and the opset it has."""

    model: Model
    opset: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """An order that gives nothing back."""
