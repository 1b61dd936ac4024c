"""What a host may order of a board: the methods of a device, whole, each one a round trip.

Paths in an order are names under the folder where its files are laid out; paths in a reply do not exist. What an order
makes comes back by digest, and the host gives it a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.devices.local import LocalDevice
from edgekd.devices.tuning import kept_tuned
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Protocol
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Precision, Signature
from edgekd.values.order import EnergyReply, LayersReply, OpenReply, ProbeReply
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target
from edgekd.wire import Handler


@dataclass(frozen=True, kw_only=True)
class BoardProbe:
    """`Device.probe`."""

    target: Target


@dataclass(frozen=True, kw_only=True)
class BoardInspect:
    """`Device.inspect`."""

    target: Target
    model: Artifact
    weights: Artifact | None = None  # the .bin beside an OpenVINO .xml
    external: tuple[Artifact, ...] = ()  # the files of weights of an .onnx


@dataclass(frozen=True, kw_only=True)
class BoardBuild:
    """`Device.build`."""

    target: Target
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class BoardCompile:
    """`Device.compile`."""

    target: Target
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class BoardTime:
    """`Device.time`."""

    target: Target
    engines: tuple[Engine, ...]
    protocol: Protocol


@dataclass(frozen=True, kw_only=True)
class BoardLedger:
    """`Device.ledger`."""

    target: Target
    engine: Engine
    images: Artifact
    recipe: Preprocess


@dataclass(frozen=True, kw_only=True)
class BoardEnergy:
    """`Device.energy`."""

    target: Target
    engine: Engine
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BoardLayers:
    """`Device.layers`."""

    target: Target
    engine: Engine
    passes: int


@dataclass(frozen=True, kw_only=True)
class BoardInfer:
    """`Device.infer`."""

    target: Target
    engine: Engine
    inputs: dict[str, Artifact]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file that lies on the board, to be fetched by its digest."""

    sha256: str
    size_bytes: int
    suffix: str  # .onnx, .npy, ...


@dataclass(frozen=True, kw_only=True)
class BoardCompiled:
    """What `compile` made."""

    file: Made
    weights: Made | None
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class BoardTimes:
    """One an engine, in their order."""

    latencies: tuple[Latency, ...]


@dataclass(frozen=True, kw_only=True)
class BoardInferred:
    """One file an output."""

    outputs: dict[str, Made]


class Desk:
    """Carries out one order with what its folder holds."""

    def __init__(self, made: Path, place: Path) -> None:
        """Keep what orders make in the folder `made`, under their digests; `place` is where the board is tuned."""
        self._made, self._place = made, place

    def handlers(self) -> Mapping[str, Handler]:
        """Return every order by its name."""
        return {
            "probe": Handler(order=BoardProbe, carry_out=self.probe),
            "inspect": Handler(order=BoardInspect, carry_out=self.inspect),
            "build": Handler(order=BoardBuild, carry_out=self.build),
            "compile": Handler(order=BoardCompile, carry_out=self.compile),
            "time": Handler(order=BoardTime, carry_out=self.time),
            "ledger": Handler(order=BoardLedger, carry_out=self.ledger),
            "energy": Handler(order=BoardEnergy, carry_out=self.energy),
            "layers": Handler(order=BoardLayers, carry_out=self.layers),
            "infer": Handler(order=BoardInfer, carry_out=self.infer),
        }

    def probe(self, order: BoardProbe) -> ProbeReply:
        """Say what the machine is."""
        with self._device(order.target) as device:
            return device.probe()

    def inspect(self, order: BoardInspect) -> Signature:
        """Check a model and read its signature."""
        with self._device(order.target) as device:
            return device.inspect(order.model)  # its weights were laid out beside it

    def build(self, order: BoardBuild) -> OpenReply:
        """Compile an engine and run it once."""
        with self._device(order.target) as device:
            return device.build(order.engine)

    def compile(self, order: BoardCompile) -> BoardCompiled:
        """Write what the runtime makes of a model."""
        with self._device(order.target) as device:
            model = device.compile(order.engine, self._made)
        weights = None if model.weights is None else self._keep(model.weights)
        return BoardCompiled(file=self._keep(model.file), weights=weights, precision=model.precision)

    def time(self, order: BoardTime) -> BoardTimes:
        """Time engines against each other."""
        with self._device(order.target) as device:
            return BoardTimes(latencies=device.time(order.engines, order.protocol))

    def ledger(self, order: BoardLedger) -> Ledger:
        """Time whole requests."""
        with self._device(order.target) as device:
            return device.ledger(order.engine, order.images, order.recipe)

    def energy(self, order: BoardEnergy) -> EnergyReply:
        """Measure what an inference costs in energy."""
        with self._device(order.target) as device:
            return EnergyReply(energy=device.energy(order.engine, seconds=order.seconds))

    def layers(self, order: BoardLayers) -> LayersReply:
        """List the layers of an engine."""
        with self._device(order.target) as device:
            return LayersReply(layers=device.layers(order.engine, passes=order.passes))

    def infer(self, order: BoardInfer) -> BoardInferred:
        """Run rows of inputs."""
        with self._device(order.target) as device:
            outputs = device.infer(order.engine, order.inputs, self._made)
        return BoardInferred(outputs={name: self._keep(file) for name, file in outputs.items()})

    @contextmanager
    def _device(self, target: Target) -> Iterator[LocalDevice]:
        """Give this machine as a device; it was tuned by the session that orders, if by anybody."""
        tuned = kept_tuned(self._place) if target.tune else nullcontext()
        with tuned, LocalDevice(replace(target, tune="")) as device:
            yield device

    def _keep(self, file: Artifact) -> Made:
        path = self._made / file.sha256
        file.path.replace(path)
        return Made(sha256=file.sha256, size_bytes=path.stat().st_size, suffix=file.path.suffix)
