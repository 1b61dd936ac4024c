"""Another machine as a target: every order is one round trip to the board's own program, over the system's ssh.

The board decides nothing here. A path in a reply does not exist; each local name is chosen on this side, each file
checked by its digest, each line bounded and decoded strictly.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edgekd.devices.board import orders
from edgekd.devices.board.orders import Made
from edgekd.devices.external import brought_along, external_files
from edgekd.devices.link import Link
from edgekd.devices.link_files import Looks, Luggage, file_in, rows
from edgekd.devices.link_session import Ask, Session, owner
from edgekd.devices.local import check_passes, check_seconds
from edgekd.errors import ConfigError, UsageError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.board import Board, Lease, Survey
from edgekd.values.codec import decode, plain
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import EnergyReply, LayersReply, OpenReply, ProbeReply
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target

R = TypeVar("R")

_SUFFIXES = {".onnx", ".xml", ".bin", ".engine", ".plan", ".blob"}  # of what runtimes compile to
_MOST_FILE_BYTES = 2 << 30
_REPLY_BYTES = 1 << 20
_LAYERS_BYTES = 64 << 20
_SAMPLE_BYTES = 128  # of a reply: two times and whether the core was lost
_TRIES = 3  # `sampling.sample` takes up to so many inferences for each, where others take the core
_SLACK_S = 120.0  # to start, lay out files and write the reply
_STEP_S = 60.0  # that a device allows a child to start
_ROW_S = 1.0


class SshDevice:
    """A device behind ssh; entering it takes the board, leaving gives it back."""

    def __init__(self, board: Board, target: Target, *, wait_s: float = 0.0) -> None:
        """Connect to nothing yet; `wait_s` is how long to wait for a board that another has."""
        self.name = board.name
        self._board, self._target = board, target
        self._session = Session(
            board, f"measuring for {target.profile.name}", wait_s=wait_s, tune=target.tune
        )
        self._entered = False
        self._seconds = 0.0
        self._sound: dict[str, Looks] = {}

    @property
    def device_seconds(self) -> float:
        """Wall time that orders have taken so far."""
        return self._seconds

    @property
    def sent_bytes(self) -> int:
        """Bytes of files, and of the worker, that were copied to the board."""
        return self._session.sent_bytes

    def __enter__(self) -> SshDevice:
        """Take the board.

        Raises:
            DeviceError: it cannot be reached, another measures there, or it cannot be tuned as the target says.
            IntegrityError: its host key is another.

        """
        try:
            self._session.open()
        except BaseException:  # an interrupt among them: no context is left that would give the board back
            self._session.close()
            raise
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._session.close()

    def probe(self) -> ProbeReply:
        """Say what the machine is and which runtimes work.

        Raises:
            DeviceError: not even a worker without a runtime starts.

        """
        most_s = _STEP_S * (len(self._target.runtimes) + 1)
        found = self._order("probe", orders.BoardProbe(target=self._target), ProbeReply, most_s=most_s)
        if [one.name for one in found.runtimes] != list(self._target.runtimes):
            raise self._nonsense("it was asked for other runtimes")
        return found

    def inspect(self, model: Artifact) -> Signature:
        """Check a model for hostile content and read its signature, on the board.

        Raises:
            ModelError: the file is malformed, hostile or crashes its parser.

        """
        weights = model.path.with_suffix(".bin")
        both = model.path.suffix == ".xml" and weights.is_file()
        order = orders.BoardInspect(
            target=self._target,
            model=model,
            weights=Artifact.of(weights) if both else None,
            external=external_files(model.path),
        )
        return self._order("inspect", order, Signature, most_s=self._timeout_s)

    def build(self, engine: Engine) -> OpenReply:
        """Compile an engine and run it once.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed on the board.

        """
        order = orders.BoardBuild(target=self._target, engine=engine)
        return self._order("build", order, OpenReply, most_s=self._timeout_s)

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write what the runtime makes of an engine's model.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed on the board.

        """
        order = orders.BoardCompile(target=self._target, engine=engine)
        with self._ordered("compile", order, orders.BoardCompiled, most_s=self._timeout_s) as (id_, found):
            file = self._fetch(id_, found.file, file_in(folder, "model", self._suffix(found.file)))
            weights = None
            if found.weights is not None:
                weights = self._fetch(id_, found.weights, file_in(folder, "model", ".bin"))
        return brought_along(Model(file=file, weights=weights, precision=found.precision), engine.model)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Time engines against each other: fresh processes each launch, turns in a seeded random order.

        Raises:
            BuildError: an engine cannot be opened or dies while it runs; the message names it.

        """
        count = protocol.launches * protocol.blocks * protocol.samples * len(engines)
        turn_s = self._timeout_s + protocol.soak_s + 3 * protocol.samples * protocol.period_ms / 1e3
        launch_s = len(engines) * (_STEP_S + 2 * self._timeout_s + protocol.blocks * turn_s)
        found = self._order(
            "time",
            orders.BoardTime(target=self._target, engines=tuple(engines), protocol=protocol),
            orders.BoardTimes,
            most_s=protocol.launches * launch_s,
            most_bytes=_REPLY_BYTES * (1 + len(engines)) + _TRIES * count * _SAMPLE_BYTES,
        )
        if len(found.latencies) != len(engines):
            raise self._nonsense(f"{len(found.latencies)} latencies for {len(engines)} engines")
        for latency in found.latencies:
            self._check_latency(latency, protocol)
        return found.latencies

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Time whole requests, from an image to its label, in parts and as one.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the images are not what the recipe takes.
            ModelError: the model does not take what the recipe makes.

        """
        order = orders.BoardLedger(target=self._target, engine=engine, images=images, recipe=recipe)
        found = self._order("ledger", order, Ledger, most_s=3 * self._timeout_s + 1000 * _ROW_S)
        if min(*found.parts_ms.values(), found.whole_ms) < 0 or found.samples < 1:
            raise self._nonsense("a ledger of negative times")
        return found

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Energy | None:
        """Measure what an inference costs in energy above the idle board; None where it has no meter.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DeviceError: the meter gave too few readings, or stopped to answer.
            UsageError: so many seconds cannot be measured.

        """
        check_seconds(seconds)
        order = orders.BoardEnergy(target=self._target, engine=engine, seconds=seconds)
        found = self._order("energy", order, EnergyReply, most_s=3 * self._timeout_s + 4 * seconds).energy
        if found is not None and not (
            found.inferences > 0 and found.busy_s > 0 and found.uncertainty_mj >= 0
        ):
            raise self._nonsense("energy of no inference")
        return found

    def layers(self, engine: Engine, *, passes: int = 50) -> tuple[Layer, ...]:
        """List the layers that a runtime makes of a model.

        Raises:
            BuildError: the engine cannot be opened, dies while it runs, or says nothing of layers.
            BackendMissing: the runtime is not installed on the board.
            UsageError: so many passes cannot be made, or the runtime knows no layers.

        """
        check_passes(passes)
        order = orders.BoardLayers(target=self._target, engine=engine, passes=passes)
        most_s = self._timeout_s + passes * _ROW_S
        return self._order("layers", order, LayersReply, most_s=most_s, most_bytes=_LAYERS_BYTES).layers

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Run rows of inputs through the compiled file; outputs are .npy files in `folder`.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the inputs are not what the model takes.

        """
        count = max((rows(file.path) for file in inputs.values()), default=0)
        order = orders.BoardInfer(target=self._target, engine=engine, inputs=inputs)
        most_s = 3 * self._timeout_s + count * _ROW_S
        outputs: dict[str, Artifact] = {}
        with self._ordered("infer", order, orders.BoardInferred, most_s=most_s) as (id_, found):
            for at, (name, made) in enumerate(found.outputs.items()):
                path = file_in(folder, f"output_{at}", ".npy")
                outputs[name] = self._fetch(id_, made, path)
                if (found_rows := rows(path)) != count:
                    raise WorkerDied(f"output {name!r} has {found_rows} rows for {count} inputs")
        return outputs

    @property
    def _timeout_s(self) -> float:
        return self._target.profile.build_timeout_s

    def _order(
        self, name: str, body: object, kind: type[R], *, most_s: float, most_bytes: int = _REPLY_BYTES
    ) -> R:
        with self._ordered(name, body, kind, most_s=most_s, most_bytes=most_bytes) as (_, found):
            return found

    @contextmanager
    def _ordered(
        self, name: str, body: object, kind: type[R], *, most_s: float, most_bytes: int = _REPLY_BYTES
    ) -> Iterator[tuple[str, R]]:
        """Give an order's id and reply while what it made lies on the board."""
        if not self._entered:
            raise UsageError(f"{self.name} is not connected", mend="use it as a context: with device: ...")
        start = time.monotonic()
        try:
            luggage = Luggage(sound=self._sound)
            data = luggage.packed(plain(body))
            most_s += _SLACK_S
            ask = Ask(name=name, body=data, luggage=luggage, most_bytes=most_bytes, most_s=most_s)
            id_, reply = self._session.order(ask)
            yield id_, _decoded(self._board, kind, reply, name)
            self._session.forget(id_)
        finally:
            self._seconds += time.monotonic() - start

    def _fetch(self, id_: str, made: Made, path: Path) -> Artifact:
        if not re.fullmatch(r"[0-9a-f]{64}", made.sha256):
            raise self._nonsense("a file without a digest")
        self._session.fetch(id_, made, path, _MOST_FILE_BYTES)
        return Artifact(path=path, sha256=made.sha256)

    def _suffix(self, made: Made) -> str:
        if made.suffix not in _SUFFIXES:
            raise self._nonsense(f"no runtime compiles to {made.suffix[:20]!r}")
        return made.suffix

    def _check_latency(self, latency: Latency, protocol: Protocol) -> None:
        """Make sure that it is one whole measurement of the kind that was asked for."""
        turns = protocol.launches * protocol.blocks
        times = (*latency.samples_ms, *latency.cpu_ms)
        lengths = {
            len(latency.samples_ms),
            len(latency.cpu_ms),
            len(latency.preempted or latency.samples_ms),  # none where it is not known
            sum(latency.block_sizes),
        }
        whole = (
            len(lengths) == 1
            and len(latency.block_sizes) == turns
            and all(protocol.samples <= size <= _TRIES * protocol.samples for size in latency.block_sizes)
            and len(latency.launches) == protocol.launches
        )
        if latency.protocol != protocol or not whole or not all(0 <= ms < math.inf for ms in times):
            raise self._nonsense("a latency that was measured otherwise than asked")

    def _nonsense(self, cause: str) -> WorkerDied:
        return WorkerDied(f"{self.name} answered nonsense", cause=cause)


def survey(board: Board) -> Survey:
    """Say what a board is; nothing is written there, and nothing is needed but python3.

    Raises:
        DeviceError: it cannot be reached, lets nobody in or has no Python.
        IntegrityError: its host key is another.

    """
    with Link(board) as link:
        return _decoded(board, Survey, link.ask("survey").get("survey"), "survey")


def hold(board: Board, *, seconds: float, why: str) -> Lease:
    """Keep others from measuring on a board for so long; one's own sessions go on.

    Raises:
        DeviceError: another has it, or it cannot be reached.

    """
    if not 0 < seconds <= 7 * 24 * 3600:
        raise UsageError(f"a board cannot be held for {seconds} s", mend="give between a second and a week")
    with Link(board) as link:
        held = link.ask("hold", owner=owner(), why=why[:200], seconds=seconds).get("lease")
    return _decoded(board, Lease, held, "lease")


def release(board: Board) -> None:
    """Let others measure on a board that `hold` keeps.

    Raises:
        DeviceError: it is another who holds it, or it cannot be reached.

    """
    with Link(board) as link:
        link.ask("release", owner=owner())


def clean(board: Board) -> float:
    """Remove everything that edgekd put on a board; return the MiB freed.

    Raises:
        IntegrityError: the folder there does not carry edgekd's mark.
        DeviceError: another measures there, or it cannot be reached.

    """
    with Link(board) as link:
        freed_mib = link.ask("clean", owner=owner()).get("freed_mib")
    return _decoded(board, float, freed_mib, "freed_mib")


def _decoded(board: Board, kind: type[R], data: Any, name: str) -> R:
    try:
        return decode(kind, data, name)
    except (ConfigError, ValueError) as error:  # a value that refuses itself
        raise WorkerDied(f"{board.name} answered nonsense", cause=str(error)[:500]) from error
