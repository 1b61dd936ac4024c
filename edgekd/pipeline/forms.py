"""Int8 forms of one float file: made, screened beside it, judged, and blamed layer by layer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edgekd.devices import Device
from edgekd.errors import EdgekdError, ModelError
from edgekd.stages.blame import blame
from edgekd.stages.quantize import Quantizers, quantize
from edgekd.stages.race import LEAST_GAIN
from edgekd.stages.survey import survey
from edgekd.store import Store
from edgekd.timing.duet import pair_log_ratio
from edgekd.values.artifact import Artifact
from edgekd.values.gate import Clock, Ratio
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import SurveyReply
from edgekd.values.variant import Blamed, Loss, Quantization, Segment, Tolerance, Variant

log = logging.getLogger(__name__)

SCREEN = Protocol(launches=1, blocks=6, samples=60, warmup_ms=40.0)
_TURN_MS, _LEAST_SAMPLES = 12.0, 3
_EQUAL = 0.02  # screened latencies that are nearer than this are alike
_MOST_WASTED = 0.05  # of the int8 file's profile: what slow segments may waste before they are worth a repair

Judge = Callable[[Engine], Loss]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A float file, and what its int8 forms are made of and judged by."""

    parent: Engine  # fp32
    calibration: dict[str, Artifact]
    held_out: dict[str, Artifact]  # rows nobody calibrates on; empty: the calibration's own are compared on
    judge: Judge  # what a compiled file lost against the parent; never on test data
    device: Device
    quantizers: Quantizers
    store: Store
    tolerance: Tolerance = field(default_factory=Tolerance)
    lossy: bool = False  # a file that is fast and loses too much may be wanted as well
    tries: int = 24  # int8 files that are made at most
    seconds: float = math.inf  # after which nothing new is begun
    seed: int = 0
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True, kw_only=True)
class Form:
    """An int8 file that was made, screened and perhaps judged."""

    quantization: Quantization
    engine: Engine
    p50_ms: float
    parent_ms: float  # in turns with it
    relative: float  # latency in units of its parent's, turn by turn: what forms are ordered by
    loss: Loss | None = None
    ratio: Ratio | None = None  # to its parent, where it was raced


class Attempts:
    """What was made so far, and whether another file may be begun."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._end = source.now() + source.seconds
        self.variants: dict[Quantization, Variant] = {}

    @property
    def more(self) -> bool:
        """Whether there are tries and time left."""
        return len(self.variants) < self.source.tries and self.source.now() < self._end

    def note(self, form: Form, why: str = "") -> None:
        """Keep what is known of a form, in place of what was."""
        parent = self.source.parent
        self.variants[form.quantization] = Variant(
            runtime=parent.runtime,
            precision=Precision.INT8,
            quantization=form.quantization,
            p50_ms=form.p50_ms,
            parent_ms=form.parent_ms,
            loss=form.loss,
            why=why,
        )

    def fail(self, how: Quantization, why: str) -> None:
        """Keep why a form could not be had."""
        self.variants[how] = Variant(
            runtime=self.source.parent.runtime, precision=Precision.INT8, quantization=how, why=why
        )


def surveyed_of(source: Source) -> SurveyReply:
    """Return the graph that quantisers start from; an .xml is its own, and nothing is known of its segments."""
    if suffix(source) != ".onnx":
        return SurveyReply(model=source.parent.model, segments=(), beyond={})
    store, model = source.store, source.parent.model
    return store.run(survey, model, source.calibration, source.held_out, source.quantizers)


def made(source: Source, surveyed: SurveyReply, how: Quantization) -> Engine:
    """Quantise as `how` says; kept where it was done before.

    Raises:
        ModelError: it cannot be.

    """
    runtime = source.parent.runtime
    model: Model = source.store.run(
        quantize, surveyed.model, runtime, source.calibration, source.quantizers, how
    )
    return replace(source.parent, model=model, precision=Precision.INT8)


def screened(
    source: Source, surveyed: SurveyReply, ways: Sequence[Quantization], attempts: Attempts
) -> list[Form]:
    """Make forms and time them in turns with the parent, the fastest first; equals stay in the order given."""
    engines: list[tuple[Quantization, Engine]] = []
    for how in ways:
        if not attempts.more:
            break
        log.info("  int8 by %s", how.name)
        try:
            engines.append((how, made(source, surveyed, how)))
        except ModelError as error:
            attempts.fail(how, f"{error.what}: {error.cause}".rstrip(": "))
    forms = _timed(source, engines, attempts)
    for form in forms:
        attempts.note(form)
    return by_latency(forms)


def by_latency(forms: Sequence[Form]) -> list[Form]:
    """Order forms, the fastest first; those that a screening cannot tell apart stay in the order given."""
    return sorted(forms, key=lambda form: round(math.log(form.relative) / _EQUAL))


def judged(source: Source, form: Form, attempts: Attempts) -> Form:
    """Say what a form lost."""
    form = replace(form, loss=source.judge(form.engine))
    attempts.note(form)
    return form


def blamed_of(
    source: Source, surveyed: SurveyReply, form: Form
) -> tuple[tuple[Blamed, ...], dict[str, float]]:
    """Return the segments that int8 made slower, and what each segment saves; nothing where no profiler tells."""
    if not surveyed.segments:
        return (), {}
    try:
        parent, own = (source.device.layers(engine) for engine in (source.parent, form.engine))
    except EdgekdError as error:  # TensorRT on DLA, trtexec without names, a recorded session
        log.info("  no layer can be blamed: %s", error.what)
        return (), {}
    blamed, saved = blame(surveyed.segments, parent, own)
    whole_ms = math.fsum(layer.time_ms or 0.0 for layer in own)
    wasted_ms = math.fsum(one.lost_ms for one in blamed)
    worth = form.relative > 1 - LEAST_GAIN or wasted_ms >= _MOST_WASTED * whole_ms
    return (blamed if worth else ()), saved


def kept_nodes(segments: Sequence[Segment], names: Sequence[str]) -> tuple[str, ...]:
    """Return the nodes of segments, in the graph's order."""
    return tuple(node for one in segments if one.name in set(names) for node in one.nodes)


def words(loss: Loss) -> str:
    """Say a loss in words."""
    parts = [] if loss.drop is None else [f"{100 * loss.drop:+.2f} points lost"]
    parts += [] if loss.changed is None else [f"{loss.changed:.2%} of the labels changed"]
    return ", ".join([*parts, f"divergence {loss.divergence:.1e}"])


def in_turns(source: Source, engines: Sequence[Engine]) -> tuple[Latency, ...]:
    """Time the parent and other engines in turns, with fewer samples of slow ones.

    Raises:
        BuildError: one cannot be opened, or dies.

    """
    (rough,) = source.device.time(
        [source.parent], replace(SCREEN, blocks=1, samples=_LEAST_SAMPLES, warmup_ms=1.0)
    )
    samples = math.ceil(_TURN_MS / max(rough.percentile(50), 1e-3))
    samples = min(max(samples, _LEAST_SAMPLES), SCREEN.samples)
    return source.device.time([source.parent, *engines], replace(SCREEN, samples=samples, seed=source.seed))


def _timed(source: Source, engines: Sequence[tuple[Quantization, Engine]], attempts: Attempts) -> list[Form]:
    """Time int8 files in turns with the parent; when one breaks the round, each alone."""
    if not engines:
        return []
    try:
        parent, *own = in_turns(source, [engine for _, engine in engines])
    except ModelError as error:
        if len(engines) == 1:
            attempts.fail(engines[0][0], f"{error.what}: {error.cause}".rstrip(": "))
            return []
        return [form for one in engines for form in _timed(source, [one], attempts)]
    return [form_of(how, engine, parent, one) for (how, engine), one in zip(engines, own)]


def form_of(how: Quantization, engine: Engine, parent: Latency, own: Latency) -> Form:
    """Put together what a screening says of a form; the ratio is taken turn by turn, as the gate does."""
    return Form(
        quantization=how,
        engine=engine,
        p50_ms=own.percentile(50),
        parent_ms=parent.percentile(50),
        relative=math.exp(pair_log_ratio(parent, own, Clock.WALL)),
    )


def suffix(source: Source) -> str:
    """Return how the float file's name ends."""
    return source.parent.model.file.path.suffix
