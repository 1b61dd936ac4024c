"""A device that passes everything through, and has it on file before the caller has it."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edgekd.devices import Device
from edgekd.devices.cassette import tape
from edgekd.devices.cassette.asked import Asked
from edgekd.devices.cassette.questions import (
    Question,
    building,
    compiling,
    inferring,
    inspecting,
    itemising,
    listing,
    metering,
    probing,
    timing,
)
from edgekd.devices.cassette.records import (
    SCHEMA_VERSION,
    Compiled,
    Entry,
    Inferred,
    Part,
    Session,
    kept,
    parts_of,
)
from edgekd.devices.cassette.results import write_result
from edgekd.errors import EdgekdError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import EnergyReply, LayersReply, OpenReply, ProbeReply
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Profile

R = TypeVar("R")

log = logging.getLogger(__name__)

NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What is written of a reply."""

    reply: object
    files: tuple[Artifact, ...] = ()
    fingerprint: str = ""  # of the conditions in it
    asked: Asked | None = None  # where the reply alone says it


def record(device: Device, file: Path, *, tune: str = "", profile: Profile | None = None) -> Device:
    """Return a device that writes down what is asked of it and what it answers; `tune` and profile are its target's.

    A file that is there already goes on behind what it holds, as a run does whose command is given again.

    Raises:
        IntegrityError: the file is no cassette, was altered, or is of another schema.
        UsageError: it was recorded on another device, or one tuned otherwise, or cannot be written.
        ResourcesExhausted: the disk is full.

    """
    return RecordedDevice(device, file, tune, profile)


class RecordedDevice:
    """A device of which every order, reply and error is on disk before the caller has it."""

    def __init__(self, device: Device, file: Path, tune: str = "", profile: Profile | None = None) -> None:
        session = Session(
            schema_version=SCHEMA_VERSION,
            device=device.name,
            edgekd=importlib.metadata.version("edgekd"),
            tune=tune,
            profile=profile,
        )
        self.name = device.name
        self._device = device
        self._tape = tape.begin(file, session)
        self._expected = self._tape.fingerprint  # of an earlier session; empty once it was compared
        self._taken_ns = 0

    @property
    def device_seconds(self) -> float:
        """Wall time that orders have taken so far, to the ns that is replayed."""
        return self._taken_ns / NS

    def __enter__(self) -> RecordedDevice:
        self._device = self._device.__enter__()
        log.info("recording what is asked of %s into %s", self.name, self._tape.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.__exit__(kind, error, trace)

    def probe(self) -> ProbeReply:
        """Probe, and write down what it gives; see `Device`."""
        question = probing()

        def told(reply: ProbeReply) -> _Told:
            hidden = question.words.hidden
            clean = tuple(
                replace(one, problem=hidden(one.problem), mend=hidden(one.mend)) for one in reply.runtimes
            )
            return _Told(
                reply=replace(reply, runtimes=clean),
                fingerprint=reply.conditions.fingerprint,
                asked=replace(question.asked, runtimes=tuple(one.name for one in clean)),
            )

        return self._carried(question, lambda: self._device.probe(), told)  # noqa: PLW0108 - it changes on entering

    def inspect(self, model: Artifact) -> Signature:
        """Inspect, and write down what it gives; see `Device`."""
        return self._carried(inspecting(model), lambda: self._device.inspect(model), _as_it_is)

    def build(self, engine: Engine) -> OpenReply:
        """Build, and write down what it gives; see `Device`."""
        return self._carried(building(engine), lambda: self._device.build(engine), _as_it_is)

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Compile, and write down what it gives, files included; see `Device`."""
        question = compiling(engine, folder)
        return self._carried(question, lambda: self._device.compile(engine, folder), _compiled)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Time, and write down what it gives, every sample included; see `Device`."""
        question = timing(engines, protocol)
        return self._carried(question, lambda: self._device.time(engines, protocol), _timed)

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Time whole requests, and write down what it gives; see `Device`."""
        question = itemising(engine, images, recipe)
        return self._carried(question, lambda: self._device.ledger(engine, images, recipe), _as_it_is)

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Energy | None:
        """Measure energy, and write down what it gives, which may be nothing; see `Device`."""
        question = metering(engine, seconds)
        return self._carried(question, lambda: self._device.energy(engine, seconds=seconds), _metered)

    def layers(self, engine: Engine, *, passes: int = 50) -> tuple[Layer, ...]:
        """List layers, and write down what it gives; see `Device`."""
        question = listing(engine, passes)
        return self._carried(question, lambda: self._device.layers(engine, passes=passes), _listed)

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Infer, and write down what it gives, files included; see `Device`."""
        question = inferring(engine, inputs, folder)
        return self._carried(question, lambda: self._device.infer(engine, inputs, folder), _inferred)

    def keep(self, stage: str, key: str, text: str, files: Mapping[str, Artifact]) -> None:
        """Write down what the host made of a stage, so that a replay need not make it again."""
        if not write_result(self._tape, stage, key, text, files):
            log.warning("%s is too large for %s: a replay makes it anew", stage, self._tape.path)

    def _carried(self, question: Question, live: Callable[[], R], told: Callable[[R], _Told]) -> R:
        question.words.check_files()  # what is wrong with a file here is no answer of the device's
        before_s = self._device.device_seconds
        try:
            reply = live()
        except EdgekdError as error:
            failure = question.words.failure(error)
            self._tape.append([Entry(asked=question.asked, device_ns=self._taken(before_s), failure=failure)])
            raise
        seen = told(reply)
        self._compare(seen.fingerprint)
        entry = Entry(
            asked=seen.asked or question.asked,
            device_ns=self._taken(before_s),
            reply=seen.reply,
            fingerprint=seen.fingerprint,
        )
        self._tape.append([*self._missing(seen.files), entry])
        return reply

    def _taken(self, before_s: float) -> int:
        taken_ns = round((self._device.device_seconds - before_s) * NS)
        self._taken_ns += taken_ns
        return taken_ns

    def _missing(self, files: Sequence[Artifact]) -> Iterator[Part]:
        """Cut the files that the cassette lacks, each once."""
        for sha256, file in {file.sha256: file for file in files}.items():
            if not self._tape.holds(sha256):
                yield from parts_of(file)

    def _compare(self, fingerprint: str) -> None:
        """Refuse to put two machines on one cassette: the first conditions of a session tell."""
        if fingerprint and self._expected and fingerprint != self._expected:
            raise UsageError(
                f"{self._tape.path} was recorded on another machine, or before this one's software changed",
                cause=f"its conditions were {self._expected[:12]}, now they are {fingerprint[:12]}",
                mend="give another file",
            )
        if fingerprint:
            self._expected = ""


def _as_it_is(reply: object) -> _Told:
    return _Told(reply=reply)


def _metered(energy: Energy | None) -> _Told:
    return _Told(reply=EnergyReply(energy=energy))


def _listed(layers: tuple[Layer, ...]) -> _Told:
    return _Told(reply=LayersReply(layers=layers))


def _timed(latencies: tuple[Latency, ...]) -> _Told:
    fingerprint = latencies[-1].conditions.fingerprint if latencies else ""
    return _Told(reply=latencies, fingerprint=fingerprint)


def _compiled(model: Model) -> _Told:
    files = (model.file,) if model.weights is None else (model.file, model.weights)
    weights = None if model.weights is None else kept(model.weights)
    external = tuple(file.sha256 for file in model.external)
    reply = Compiled(file=kept(model.file), weights=weights, precision=model.precision, external=external)
    return _Told(reply=reply, files=files)


def _inferred(outputs: dict[str, Artifact]) -> _Told:
    reply = Inferred(outputs={name: kept(file) for name, file in outputs.items()})
    return _Told(reply=reply, files=tuple(outputs.values()))
