"""Where a target is: this machine through a child process, a board through SSH, or a recorded session."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol as Interface

from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import OpenReply, ProbeReply
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target

CASSETTE = "cassette:"  # and the file of a recorded session


class Device(AbstractContextManager["Device"], Interface):
    """What every device offers; each call runs in processes of its own, on the device."""

    name: str

    @property
    def device_seconds(self) -> float:
        """Wall time that orders have taken so far."""

    def probe(self) -> ProbeReply:
        """Say what the machine is, and which runtimes really work there."""

    def inspect(self, model: Artifact) -> Signature:
        """Check a model for hostile content and read its signature.

        Raises:
            ModelError: the file is malformed, hostile or crashes its parser.

        """

    def build(self, engine: Engine) -> OpenReply:
        """Compile an engine once, in a child, and run it once.

        Raises:
            BuildError: the runtime refuses the model or dies of it.
            BackendMissing: the runtime is not installed on the device.

        """

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write what the runtime makes of an engine's model, in a format that it reads without that work.

        Raises:
            BuildError: the runtime refuses the model or dies of it.
            BackendMissing: the runtime is not installed on the device.

        """

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Time engines against each other: fresh processes each launch, turns in random order."""

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Time whole requests, from an image to its label, in parts and as one, in a fresh process.

        Args:
            engine: takes what the recipe makes, one image an inference; its first output is logits.
            images: .npy, (n, H, W, C), uint8.
            recipe: the pre-processing.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the images are not what the recipe takes.
            ModelError: the model does not take what the recipe makes.

        """

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Energy | None:
        """Measure what an inference costs in energy above an idle board, in passes of its own; nothing is timed.

        Args:
            engine: opened and warmed in a fresh process.
            seconds: of each of the three passes: idle, busy, idle.

        Returns:
            None where the device has no meter that can be read.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DeviceError: the meter gave too few readings, or stopped to answer.
            UsageError: so many seconds cannot be measured.

        """

    def layers(self, engine: Engine, *, passes: int = 50) -> tuple[Layer, ...]:
        """List the layers that a runtime makes of a model, each timed alone where the runtime can.

        Their times rank layers, and do not add up to the latency.

        Raises:
            BuildError: the engine cannot be opened, dies while it runs, or says nothing of layers.
            BackendMissing: the runtime is not installed on the device.
            UsageError: so many passes cannot be made, or the runtime knows no layers.

        """

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Run inputs (one .npy a tensor, a row an inference) through the compiled file; outputs likewise."""


def connect(target: Target) -> Device:
    """Reach the device of a target: this machine, a recorded one, or a board that was added.

    Args:
        target: its `device` is "local", "cassette:FILE", or a name from `edgekd devices`; with `record`, what is
            asked and answered is written into that file; with `tune`, its power mode is set and its clocks are held
            for as long as the device is entered, and then put back.

    Raises:
        DeviceError: no device of that name is known.
        ConfigError: the file of devices is broken.

    """
    device = _reach(target)
    if not target.record:
        return device
    from edgekd.devices.cassette import record

    return record(device, Path(target.record), tune=target.tune, profile=target.profile)


def _reach(target: Target) -> Device:
    if target.device == "local":
        from edgekd.devices.local import LocalDevice

        return LocalDevice(target)
    if target.device.startswith(CASSETTE):
        from edgekd.devices.cassette import CassetteDevice

        return CassetteDevice(Path(target.device.removeprefix(CASSETTE)), target)
    from edgekd.devices import registry
    from edgekd.devices.ssh import SshDevice

    board = registry.known_board(registry.config_folder(), target.device)
    return SshDevice(board, target, wait_s=target.wait_s)
