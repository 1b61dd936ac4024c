"""The machine edgekd runs on, as a target: every order in a fresh child process of the worker."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekd import backends
from edgekd.devices import by_trtexec
from edgekd.devices.blocks import Run
from edgekd.devices.external import brought_along
from edgekd.devices.restoring import may_tune
from edgekd.devices.tuned_here import state_folder, tuned_here
from edgekd.errors import BuildError, DeviceError, ModelError, UsageError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Launch, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import (
    CompileOrder,
    Done,
    EnergyOrder,
    EnergyReply,
    InferOrder,
    InferReply,
    InspectOrder,
    LayersOrder,
    LayersReply,
    LedgerOrder,
    OpenOrder,
    OpenReply,
    ProbeOrder,
    ProbeReply,
    RuntimeHealth,
    SampleOrder,
    SampleReply,
    WarmUpOrder,
)
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target
from edgekd.wire import Child

_WORKER = "edgekd.worker"
_PROBE_TIMEOUT_S = 60.0
_ROW_TIMEOUT_S = 1.0
_MOST_TRIES = 3  # inferences for each sample, where others take the core
_LEAST_S, _MOST_S = 0.5, 600.0  # of a pass that measures energy: power is read 20 times a second
_MOST_PASSES = 10_000  # through the layers


class LocalDevice:
    """A device that is this machine."""

    name = "local"

    def __init__(self, target: Target) -> None:
        self._target = target
        self._seconds = 0.0
        self._tuned: AbstractContextManager[None] | None = None

    @property
    def device_seconds(self) -> float:
        """Wall time that orders have taken so far."""
        return self._seconds

    def __enter__(self) -> LocalDevice:
        """Tune this machine, where the target says so, and put back what an earlier session left.

        Raises:
            DeviceError: it has nothing that could be set, or what is pending cannot be put back.
            ConfigError: it has no such power mode.

        """
        tuned = tuned_here(self._target.tune, state_folder())
        tuned.__enter__()
        self._tuned = tuned
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put it back as it was; each order has ended its own processes.

        Raises:
            DeviceError: it was put back before, so that what was measured is worth nothing.

        """
        tuned, self._tuned = self._tuned, None
        if tuned is not None:
            tuned.__exit__(kind, error, trace)

    def probe(self) -> ProbeReply:
        """Say what the machine is and which runtimes work; one child each, so that one crash is one finding.

        Raises:
            DeviceError: not even a worker without a runtime starts.

        """
        with self._clocked():
            found = [self._probe(name) for name in self._target.runtimes]
            told = next((reply for reply in found if isinstance(reply, ProbeReply)), None)
            if told is None:
                with self._child() as child:
                    told = child.ask("probe", ProbeOrder(runtimes=()), ProbeReply, timeout_s=_PROBE_TIMEOUT_S)
        health = tuple(reply.runtimes[0] if isinstance(reply, ProbeReply) else reply for reply in found)
        return replace(told, runtimes=health, may_tune=may_tune() if self._target.runtimes else None)

    def inspect(self, model: Artifact) -> Signature:
        """Check a model for hostile content and read its signature, in a child.

        Raises:
            ModelError: the file is malformed, hostile or crashes its parser.

        """
        return self._asked_for_signature(InspectOrder(model=_absolute(model)))

    def build(self, engine: Engine) -> OpenReply:
        """Compile an engine and run it once, in a child.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed.

        """
        if engine.runtime == by_trtexec.RUNTIME:
            signature = self._inspect(engine.model)
            with self._clocked(), _naming(engine):
                return by_trtexec.opened(engine, signature, self._target.profile)
        with self._clocked(), self._child() as child:
            return self._open(child, engine)

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write what the runtime makes of an engine's model, in a child.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed.

        """
        by_trtexec.refuse(engine, "compiled file")
        order = CompileOrder(engine=_located(engine), folder=folder.resolve())
        with self._clocked(), self._child() as child, _naming(engine):
            made = child.ask("compile", order, Model, timeout_s=self._timeout_s)
        return brought_along(made, order.engine.model)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Time engines against each other: fresh processes each launch, turns in a seeded random order.

        Those of trtexec come one after the other, before the others: that program runs whole series.

        Raises:
            BuildError: an engine cannot be opened or dies while it runs; the message names it.

        """
        turns = random.Random(protocol.seed)  # noqa: S311 - an order of turns, not a secret
        series = [at for at, engine in enumerate(engines) if engine.runtime == by_trtexec.RUNTIME]
        alone = {at: self._time_alone(engines[at], protocol) for at in turns.sample(series, len(series))}
        rest = [engine for at, engine in enumerate(engines) if at not in alone]
        runs = [Run() for _ in rest]
        with self._clocked():
            for launch in range(protocol.launches if rest else 0):
                self._launch(rest, protocol, runs, turns, seed=protocol.seed + launch)
        together = iter([run.latency(engine, protocol) for run, engine in zip(runs, rest)])
        return tuple(alone[at] if at in alone else next(together) for at in range(len(engines)))

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Time whole requests, from an image to its label, in parts and as one, in a fresh process.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the images are not what the recipe takes.
            ModelError: the model does not take what the recipe makes.

        """
        by_trtexec.refuse(engine, "labels")
        order = LedgerOrder(images=_absolute(images), recipe=recipe)
        with self._clocked(), self._child(engine) as child:
            self._open(child, engine)
            with _naming(engine):
                self._warm_up(child)
                timeout_s = self._timeout_s + 2 * order.requests * _ROW_TIMEOUT_S
                return child.ask("ledger", order, Ledger, timeout_s=timeout_s)

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Energy | None:
        """Measure what an inference costs above this machine at rest, in three passes; None without a meter.

        The meter is read in the worker that runs the inferences, 20 times a second in all passes alike.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DeviceError: the meter gave too few readings, or stopped to answer.
            UsageError: so many seconds cannot be measured.

        """
        check_seconds(seconds)
        by_trtexec.refuse(engine, "energy")
        with self._clocked(), self._child(engine) as child:
            self._open(child, engine)
            with _naming(engine):
                self._warm_up(child)
                order, timeout_s = EnergyOrder(seconds=seconds), self._timeout_s + 4 * seconds
                return child.ask("energy", order, EnergyReply, timeout_s=timeout_s).energy

    def layers(self, engine: Engine, *, passes: int = 50) -> tuple[Layer, ...]:
        """List the layers that a runtime makes of a model, in a child.

        Raises:
            BuildError: the engine cannot be opened, dies while it runs, or says nothing of layers.
            BackendMissing: the runtime is not installed.
            UsageError: so many passes cannot be made, or the runtime knows no layers.

        """
        check_passes(passes)
        by_trtexec.refuse(engine, "layers")
        order = LayersOrder(engine=_located(engine), passes=passes)
        with self._clocked(), self._child(engine) as child, _naming(engine):
            timeout_s = self._timeout_s + passes * _ROW_TIMEOUT_S
            return child.ask("layers", order, LayersReply, timeout_s=timeout_s).layers

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Run rows of inputs through the compiled file; outputs are .npy files in `folder`.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the inputs are not what the model takes.
            UsageError: the runtime shows no outputs.

        """
        by_trtexec.refuse(engine, "labels")
        order = InferOrder(
            inputs={name: _absolute(file) for name, file in inputs.items()}, folder=folder.resolve()
        )
        with self._clocked(), self._child(engine) as child:
            self._open(child, engine)
            rows = max((_rows(file) for file in inputs.values()), default=0)
            with _naming(engine):
                timeout_s = self._timeout_s + rows * _ROW_TIMEOUT_S
                reply = child.ask("infer", order, InferReply, timeout_s=timeout_s)
        _check_rows(reply.outputs, rows)
        return reply.outputs

    @property
    def _timeout_s(self) -> float:
        return self._target.profile.build_timeout_s

    def _child(self, engine: Engine | None = None) -> Child:
        memory_mib, threads = self._target.profile.memory_mib, self._target.threads
        if engine is None:
            return Child(_WORKER, memory_mib=memory_mib, threads=threads)
        return Child(_WORKER, memory_mib=memory_mib, threads=engine.threads, runtime=engine.runtime)

    def _inspect(self, model: Model) -> Signature:
        """Check a model with its weights, and read its signature."""
        external = tuple(_absolute(file) for file in model.external)
        return self._asked_for_signature(InspectOrder(model=_absolute(model.file), external=external))

    def _asked_for_signature(self, order: InspectOrder) -> Signature:
        with self._clocked(), self._child() as child:
            try:
                return child.ask("inspect", order, Signature, timeout_s=self._timeout_s)
            except WorkerDied as error:
                raise ModelError(f"{order.model.path.name} cannot be read", cause=str(error)) from error

    def _time_alone(self, engine: Engine, protocol: Protocol) -> Latency:
        self._inspect(engine.model)
        with self._clocked(), _naming(engine):
            return by_trtexec.timed(engine, protocol, self._target.profile)

    def _warm_up(self, child: Child) -> None:
        order = WarmUpOrder(least_ms=Protocol().warmup_ms, seed=0)
        child.ask("warm_up", order, Done, timeout_s=self._timeout_s)

    def _probe(self, runtime: str) -> ProbeReply | RuntimeHealth:
        if runtime == by_trtexec.RUNTIME:
            return by_trtexec.health(self._target.profile)
        with self._child() as child:
            try:
                order = ProbeOrder(runtimes=(runtime,))
                return child.ask("probe", order, ProbeReply, timeout_s=_PROBE_TIMEOUT_S)
            except DeviceError as error:
                mend = f"run `pip install --force-reinstall {backends.PACKAGES.get(runtime, runtime)}`"
                return RuntimeHealth(name=runtime, version="", works=False, problem=str(error), mend=mend)

    def _open(self, child: Child, engine: Engine, core: int | None = None) -> OpenReply:
        with _naming(engine):
            order = OpenOrder(engine=_located(engine), core=core)
            return child.ask("open", order, OpenReply, timeout_s=self._timeout_s)

    def _launch(
        self,
        engines: Sequence[Engine],
        protocol: Protocol,
        runs: list[Run],
        turns: random.Random,
        *,
        seed: int,
    ) -> None:
        """One process an engine, all alive together; in each round every engine gets one turn."""
        order = SampleOrder(
            samples=protocol.samples, period_ms=protocol.period_ms, soak_s=protocol.soak_s / protocol.blocks
        )
        with ExitStack() as stack:
            children = [stack.enter_context(self._child(engine)) for engine in engines]
            self._await_start(children, engines)
            for child, engine, run in zip(children, engines, runs):
                shared = protocol.one_core and engine.threads == 1
                opened = self._open(child, engine, core=seed if shared else None)
                run.launches.append(Launch(open_ms=opened.open_ms, memory_mib=opened.memory_mib))
            for child, engine in zip(children, engines):
                warm = WarmUpOrder(least_ms=protocol.warmup_ms, seed=seed)
                with _naming(engine):
                    child.ask("warm_up", warm, Done, timeout_s=self._timeout_s)
            timeout_s = self._timeout_s + order.soak_s + _MOST_TRIES * order.samples * order.period_ms / 1e3
            for _ in range(protocol.blocks):
                for at in turns.sample(range(len(engines)), len(engines)):
                    with _naming(engines[at]):
                        reply = children[at].ask("sample", order, SampleReply, timeout_s=timeout_s)
                    runs[at].blocks.append(reply)

    def _await_start(self, children: Sequence[Child], engines: Sequence[Engine]) -> None:
        """Let every child finish importing, all at once, so that none of it falls into another's opening."""
        if len(children) > 1:
            for child, engine in zip(children, engines):
                with _naming(engine):
                    child.ask("probe", ProbeOrder(runtimes=()), ProbeReply, timeout_s=_PROBE_TIMEOUT_S)

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        if self._target.tune and self._tuned is None:
            raise UsageError("this machine is not tuned yet", mend="use it as a context: with device: ...")
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - start


def check_seconds(seconds: float) -> None:
    """Make sure that energy can be measured over passes of so many seconds.

    Raises:
        UsageError: it cannot.

    """
    if not _LEAST_S <= seconds <= _MOST_S:
        mend = f"give {_LEAST_S:g} to {_MOST_S:g} s"
        raise UsageError(f"energy cannot be measured over {seconds:g} s", mend=mend)


def check_passes(passes: int) -> None:
    """Make sure that layers can be timed so often.

    Raises:
        UsageError: they cannot.

    """
    if not 1 <= passes <= _MOST_PASSES:
        raise UsageError(f"layers cannot be timed {passes} times", mend=f"give 1 to {_MOST_PASSES} passes")


@contextmanager
def _naming(engine: Engine) -> Iterator[None]:
    """Make a worker's death, and an error that names no file, a build error that names the engine."""
    name = engine.model.file.path.name
    try:
        yield
    except (WorkerDied, BuildError) as error:
        if isinstance(error, BuildError) and (name in error.what or engine.name in error.what):
            raise
        cause = f"{error.what}: {error.cause}"[:1000]
        raise BuildError(f"{engine.name} cannot run {name}", cause=cause, mend=error.mend) from error


def _located(engine: Engine) -> Engine:
    model = engine.model
    weights = None if model.weights is None else _absolute(model.weights)
    external = tuple(_absolute(file) for file in model.external)
    return replace(
        engine, model=replace(model, file=_absolute(model.file), weights=weights, external=external)
    )


def _absolute(artifact: Artifact) -> Artifact:
    """Paths on the wire must not hang on where the child is started."""
    return replace(artifact, path=artifact.path.absolute())


def _rows(file: Artifact) -> int:
    """Count the rows of a .npy file; 0 where it is none, which the worker then explains."""
    try:
        return len(np.load(file.path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, TypeError):
        return 0


def _check_rows(outputs: Mapping[str, Artifact], rows: int) -> None:
    for name, file in outputs.items():
        if (found := _rows(file)) != rows:
            raise WorkerDied(f"output {name!r} has {found} rows for {rows} inputs")
