"""The machine edgekd runs on, as a target: every order in a fresh child process of the worker."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgekd import backends
from edgekd.errors import BuildError, DeviceError, ModelError, WorkerDied
from edgekd.timing import trust
from edgekd.timing.conditions import over_blocks
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Launch, Protocol
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import (
    CompileOrder,
    Done,
    InferOrder,
    InferReply,
    InspectOrder,
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
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target
from edgekd.wire import Child

_WORKER = "edgekd.worker"
_PROBE_TIMEOUT_S = 60.0
_ROW_TIMEOUT_S = 1.0
_MOST_TRIES = 3  # inferences for each sample, where others take the core


class LocalDevice:
    """A device that is this machine."""

    name = "local"

    def __init__(self, target: Target) -> None:
        self._target = target
        self._seconds = 0.0

    @property
    def device_seconds(self) -> float:
        """Wall time that orders have taken so far."""
        return self._seconds

    def __enter__(self) -> LocalDevice:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to free: each order ends its own processes."""

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
        return replace(told, runtimes=health)

    def inspect(self, model: Artifact) -> Signature:
        """Check a model for hostile content and read its signature, in a child.

        Raises:
            ModelError: the file is malformed, hostile or crashes its parser.

        """
        with self._clocked(), self._child() as child:
            try:
                order = InspectOrder(model=_absolute(model))
                return child.ask("inspect", order, Signature, timeout_s=self._timeout_s)
            except WorkerDied as error:
                raise ModelError(f"{model.path.name} cannot be read", cause=str(error)) from error

    def build(self, engine: Engine) -> OpenReply:
        """Compile an engine and run it once, in a child.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed.

        """
        with self._clocked(), self._child() as child:
            return self._open(child, engine)

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write what the runtime makes of an engine's model, in a child.

        Raises:
            BuildError: the runtime refuses the model, dies of it or takes too long.
            BackendMissing: the runtime is not installed.

        """
        order = CompileOrder(engine=_located(engine), folder=folder.resolve())
        with self._clocked(), self._child() as child, _naming(engine):
            return child.ask("compile", order, Model, timeout_s=self._timeout_s)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Time engines against each other: fresh processes each launch, turns in a seeded random order.

        Raises:
            BuildError: an engine cannot be opened or dies while it runs; the message names it.

        """
        turns = random.Random(protocol.seed)  # noqa: S311 - an order of turns, not a secret
        runs = [_Run() for _ in engines]
        with self._clocked():
            for launch in range(protocol.launches):
                self._launch(engines, protocol, runs, turns, seed=protocol.seed + launch)
        return tuple(run.latency(engine, protocol) for run, engine in zip(runs, engines))

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Time whole requests, from an image to its label, in parts and as one, in a fresh process.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the images are not what the recipe takes.
            ModelError: the model does not take what the recipe makes.

        """
        warm = WarmUpOrder(least_ms=Protocol().warmup_ms, seed=0)
        order = LedgerOrder(images=_absolute(images), recipe=recipe)
        with self._clocked(), self._child(engine) as child:
            self._open(child, engine)
            with _naming(engine):
                child.ask("warm_up", warm, Done, timeout_s=self._timeout_s)
                timeout_s = self._timeout_s + 2 * order.requests * _ROW_TIMEOUT_S
                return child.ask("ledger", order, Ledger, timeout_s=timeout_s)

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Run rows of inputs through the compiled file; outputs are .npy files in `folder`.

        Raises:
            BuildError: the engine cannot be opened or dies while it runs.
            DataError: the inputs are not what the model takes.

        """
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

    def _probe(self, runtime: str) -> ProbeReply | RuntimeHealth:
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
        runs: list[_Run],
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
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - start


@dataclass(kw_only=True)
class _Run:
    """The blocks of one engine, in run order over all launches."""

    blocks: list[SampleReply] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    def latency(self, engine: Engine, protocol: Protocol) -> Latency:
        wall_ms = tuple(ns / 1e6 for block in self.blocks for ns in block.wall_ns)
        cpu_ms = tuple(ns / 1e6 for block in self.blocks for ns in block.cpu_ns)
        preempted = tuple(one for block in self.blocks for one in block.preempted)
        sizes = tuple(len(block.wall_ns) for block in self.blocks)
        loads = [block.conditions.load for block in self.blocks]
        load = over_blocks(loads, [sum(block.wall_ns) for block in self.blocks])
        conditions = replace(self.blocks[-1].conditions, load=load)
        verdict = trust.judge(
            wall_ms,
            cpu_ms,
            preempted,
            block_sizes=sizes,
            launches=len(self.launches),
            load=load,
            cores=conditions.hardware.cores,
            threads=engine.threads,
            steady=all(block.steady for block in self.blocks),
        )
        return Latency(
            samples_ms=wall_ms,
            cpu_ms=cpu_ms,
            preempted=preempted,
            block_sizes=sizes,
            launches=tuple(self.launches),
            protocol=protocol,
            conditions=conditions,
            trust=verdict,
        )


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
    return replace(engine, model=replace(model, file=_absolute(model.file), weights=weights))


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
