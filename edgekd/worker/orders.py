"""Carry out the host's orders one after the other, around one open engine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgekd import backends
from edgekd.backends import Session, Tensors
from edgekd.errors import BuildError, EdgekdError, ModelError, UsageError
from edgekd.timing import conditions, cores, sampling
from edgekd.timing.boards import read_board
from edgekd.values.conditions import Load
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
    LocateOrder,
    LocateReply,
    OpenOrder,
    OpenReply,
    ProbeOrder,
    ProbeReply,
    SampleOrder,
    SampleReply,
    WarmUpOrder,
)
from edgekd.wire import Handler
from edgekd.worker import guard
from edgekd.worker.health import health
from edgekd.worker.rows import answered, read_rows, write_rows

_UNLOADED = Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0)


class Worker:
    """At most one open engine, and what can be asked of it."""

    def __init__(self) -> None:
        self._taken = ExitStack()
        self._session: Session | None = None
        self._ring: tuple[Tensors, ...] = ()
        self._answers = sampling.Answers()
        self._sampled = 0

    def handlers(self) -> Mapping[str, Handler]:
        """Return what the wire serves."""
        return {
            "probe": Handler(order=ProbeOrder, carry_out=self.probe),
            "inspect": Handler(order=InspectOrder, carry_out=self.inspect),
            "locate": Handler(order=LocateOrder, carry_out=self.locate),
            "layers": Handler(order=LayersOrder, carry_out=self.layers),
            "compile": Handler(order=CompileOrder, carry_out=self.compile),
            "open": Handler(order=OpenOrder, carry_out=self.open),
            "warm_up": Handler(order=WarmUpOrder, carry_out=self.warm_up),
            "sample": Handler(order=SampleOrder, carry_out=self.sample),
            "ledger": Handler(order=LedgerOrder, carry_out=self.ledger),
            "energy": Handler(order=EnergyOrder, carry_out=self.energy),
            "infer": Handler(order=InferOrder, carry_out=self.infer),
        }

    def probe(self, order: ProbeOrder) -> ProbeReply:
        """Say what the machine is, and run a real inference on each runtime."""
        before = conditions.read_counters()
        runtimes = tuple(health(name) for name in order.runtimes)
        load = conditions.load_between(before, conditions.read_counters())
        # Asking nothing is how a launch waits for its workers: the slow tools are not for that.
        board = read_board(thorough=True) if order.runtimes else None
        words = board.words() if board else ()
        return ProbeReply(conditions=conditions.conditions(load), runtimes=runtimes, board=words)

    def inspect(self, order: InspectOrder) -> Signature:
        """Check a model and read its signature.

        Raises:
            ModelError: it is malformed, hostile, or not what its format allows.

        """
        path = order.model.verified()
        external = None if order.external is None else [file.verified() for file in order.external]
        guard.check(path, external)
        if path.suffix == ".xml":
            backends.load("openvino")  # says what to install where it is missing
            from edgekd.backends import openvino  # reads its own format, and is needed for no other

            return openvino.read_signature(path)
        _full_check(path)
        return guard.onnx_signature(path)

    def locate(self, order: LocateOrder) -> LocateReply:
        """Read where an .onnx has its weights; where it says so, nothing is opened there.

        Raises:
            IntegrityError: they would lie outside its folder.
            ModelError: it is no .onnx.

        """
        return LocateReply(names=guard.external_names(order.model.verified()))

    def layers(self, order: LayersOrder) -> LayersReply:
        """List what a runtime makes of a model, layer by layer.

        Raises:
            BuildError: the runtime refuses the model, or says nothing of layers.

        """
        _check(order.engine.model)
        backend = backends.load(order.engine.runtime)
        return LayersReply(layers=backend.layers(order.engine, order.passes))

    def compile(self, order: CompileOrder) -> Model:
        """Write what a runtime makes of a model.

        Raises:
            BuildError: the runtime refuses the model.

        """
        _check(order.engine.model)
        backend = backends.load(order.engine.runtime)
        order.folder.mkdir(parents=True, exist_ok=True)
        return backend.compile(order.engine, order.folder)

    def open(self, order: OpenOrder) -> OpenReply:
        """Compile an engine and run it once; it stays open until the next one.

        Raises:
            BuildError: the runtime refuses the model, or cannot run it.

        """
        self.close()
        _check(order.engine.model)
        backend = backends.load(order.engine.runtime)
        before_mib, start = conditions.memory_mib(), time.perf_counter()
        try:
            session = self._taken.enter_context(backend.open(order.engine))
            _run_once(session, order.engine)
        except MemoryError as error:
            mend = "raise memory_mib in the hardware profile, or use a smaller model"
            raise BuildError(f"{order.engine.name} needs more memory than it may use", mend=mend) from error
        self._session = session
        if session.real_time:
            open_ms = (time.perf_counter() - start) * 1e3
            grown_mib = max(0.0, conditions.memory_mib() - before_mib)
        else:  # a rehearsal gives the same figures each time
            open_ms, grown_mib = session.clock_ns() / 1e6, order.engine.model.size_bytes / (1 << 20)
        if (
            order.core is not None
        ):  # after opening: a runtime arranges threads and memory for the cores it sees
            conditions.take_stock()
            cores.stay_on(order.core)
        return OpenReply(signature=session.signature, open_ms=open_ms, memory_mib=grown_mib)

    def warm_up(self, order: WarmUpOrder) -> Done:
        """Run the open engine until it is stationary."""
        session = self._opened()
        self._ring, self._sampled = sampling.varied_inputs(session.signature, order.seed), 0
        self._answers = sampling.warm_up(session, self._ring, order.least_ms)
        return Done()

    def sample(self, order: SampleOrder) -> SampleReply:
        """Time inferences of the open engine, and look at what the last one answered.

        Raises:
            BuildError: that is not a finite number.

        """
        session = self._warm()
        sampling.soak(session, self._ring, order.soak_s)
        before, throttles = conditions.read_counters(), session.throttle_count()
        found = sampling.sample(
            session, self._ring, order.samples, first=self._sampled, period_ms=order.period_ms
        )
        throttles = session.throttle_count() - throttles
        after = conditions.read_counters()
        self._sampled += len(found.wall_ns)
        load = replace(_UNLOADED, throttled=throttles)
        return SampleReply(
            wall_ns=found.wall_ns,
            cpu_ns=found.cpu_ns,
            preempted=found.preempted,
            conditions=conditions.conditions(
                conditions.load_between(before, after, throttles) if session.real_time else load
            ),
            steady=self._answers.agree(found.asked, found.answer),
        )

    def ledger(self, order: LedgerOrder) -> Ledger:
        """Time whole requests of the open engine, in parts and as one.

        Raises:
            DataError: the images are not what the recipe takes.
            ModelError: the model does not take what the recipe makes.

        """
        session = self._warm()
        from edgekd.worker import (
            requests,
        )  # the runner's imports would cost every other worker memory and time

        images = requests.read_images(order.images, order.recipe)
        return requests.itemise(session, images, order.recipe, order.requests)

    def energy(self, order: EnergyOrder) -> EnergyReply:
        """Measure what an inference costs above the idle machine; the engine stays open in all passes.

        Raises:
            DeviceError: the meter gave too few readings, or stopped to answer.

        """
        session = self._warm()
        from edgekd.timing.boards import rails  # it may start tools, which is not for every worker

        found = rails.meters()
        feeds = itertools.cycle(self._ring)
        energy = (
            rails.measure_energy(lambda: session.run(next(feeds)), found[0], seconds=order.seconds)
            if found
            else None
        )
        return EnergyReply(energy=energy)

    def infer(self, order: InferOrder) -> InferReply:
        """Run the open engine over rows of inputs."""
        session = self._opened()
        given = read_rows(order.inputs, session.signature)
        return InferReply(outputs=write_rows(order.folder, given.count, answered(session.run, given)))

    def close(self) -> None:
        """Free the open engine, if there is one."""
        self._session, self._ring = None, ()
        self._taken.close()

    def _opened(self) -> Session:
        if self._session is None:
            raise UsageError("no engine is open", mend="order `open` first")
        return self._session

    def _warm(self) -> Session:
        session = self._opened()
        if not self._ring:
            raise UsageError("the engine is not warm", mend="order `warm_up` first")
        return session


def _check(model: Model) -> None:
    if model.weights is not None:
        weights = model.weights.verified()
        if weights != model.file.path.with_suffix(".bin"):  # the only one that OpenVINO reads
            raise ModelError(
                f"{weights} does not belong to {model.file.path}", mend="keep .xml and .bin together"
            )
    guard.check(model.file.verified(), [file.verified() for file in model.external])


def _run_once(session: Session, engine: Engine) -> None:
    feeds = sampling.varied_inputs(session.signature, seed=0, count=1)[0]
    try:
        session.run(feeds)
    except (EdgekdError, MemoryError):
        raise
    except Exception as error:
        raise BuildError(
            f"{engine.name} compiles the model but cannot run it", cause=str(error)[:1000]
        ) from error


def _full_check(path: Path) -> None:
    """Let onnx check operators, types and shapes, where onnx is installed."""
    try:
        import onnx
    except ImportError:  # a device has only its runtime, which checks again when it compiles
        return
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        cause = str(error).strip()[:1000]
        raise ModelError(
            f"{path.name} is not a valid ONNX model", cause=cause, mend="export it again"
        ) from error
