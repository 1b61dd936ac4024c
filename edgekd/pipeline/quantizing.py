"""Make a float model int8 where that gains, say why where it does not, and deliver the float file in any case."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgekd.devices import Device, connect
from edgekd.errors import BackendMissing, BuildError, DataError, ModelError, UsageError
from edgekd.pipeline.forms import Form, Judge, Source
from edgekd.pipeline.int8 import Found, find_int8
from edgekd.pipeline.single import (
    CONFIDENCE,
    RANDOM_INPUTS,
    Shapes,
    check_shapes,
    digest_of,
    inspected,
    made_bytes,
    outputs_of,
    place,
    row_count,
    timed,
)
from edgekd.stages.gather import gather
from edgekd.stages.halve import cast_by_graph, halve
from edgekd.stages.lost import lost, lost_on_task, top_one
from edgekd.stages.match import match
from edgekd.stages.quantize import Quantizers
from edgekd.stages.score import Labelled, answers, labelled
from edgekd.stages.subject import Subject
from edgekd.stages.survey import LEAST_ROWS, divided, shortcomings
from edgekd.store import Store
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import LatencySummary, summarise
from edgekd.values.model import Engine, Model, Precision, Signature
from edgekd.values.outcome import Quantized
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Target
from edgekd.values.variant import Loss, Tolerance, Variant

log = logging.getLogger(__name__)

SECONDS = 300.0
_MOST_LABELLED = 2000  # images that an accuracy is taken on
_ANY = Tolerance(drop=math.inf, changed=1.0, divergence=math.inf)  # of random inputs, which tell no accuracy


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What `edgekd quantize` is asked."""

    path: Path
    calibrate: Path | None = None  # real inputs; None: random ones, which show the speed alone
    data: str = ""  # labelled images to judge by, never those of a test split
    shapes: Shapes = field(default_factory=dict)
    normalisation: Normalisation | None = None
    seconds: float = SECONDS  # after which nothing new is begun
    anyway: bool = False  # ship the fastest int8 file whatever it loses


@dataclass(frozen=True, kw_only=True)
class _Here:
    """Where it happens."""

    device: Device
    quantizers: Quantizers
    store: Store
    scratch: Path
    signature: Signature
    rows: dict[str, Artifact]
    data: Labelled | None


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What came of one runtime."""

    parent: Engine
    floats: tuple[tuple[Engine, Loss], ...]  # other float forms
    found: Found | None
    why: str = ""  # int8 was not tried

    @property
    def why_not(self) -> str:
        """Why no int8 file of this runtime is worth shipping; empty where one is."""
        return self.found.why if self.found else self.why


def quantize_model(wish: Wish, target: Target, out: Path) -> Quantized:
    """Try what each runtime can be given, and ship the fastest file that loses nothing.

    The float file is delivered beside it. Int8 files, rankings and the prepared graph stay in `out/store`: the same
    command goes on from them.

    Raises:
        ModelError: the file is malformed, hostile, int8 already, or no runtime can run it.
        DataError: the data cannot be read, or do not fit the model.
        BackendMissing: none of the runtimes works on the device.

    """
    began = time.monotonic()
    with connect(target) as device, Quantizers() as quantizers, TemporaryDirectory(prefix="edgekd-") as name:
        model, signature = inspected(device, wish.path)
        parents = _parents(device, model, target, wish)
        static = check_shapes(signature, wish.shapes)
        here = _Here(
            device=device,
            quantizers=quantizers,
            store=Store(out / "store"),
            scratch=Path(name),
            signature=static,
            rows=gather(Path(name) / "inputs", static, wish.calibrate, wish.normalisation),
            data=_labelled(wish, Path(name) / "labelled"),
        )
        told = [
            _tried(
                here, parent, target, wish, (wish.seconds - (time.monotonic() - began)) / (len(parents) - at)
            )
            for at, parent in enumerate(parents)
        ]
        return replace(_delivered(here, told, wish, out), seconds=time.monotonic() - began)


def _parents(device: Device, model: Model, target: Target, wish: Wish) -> list[Engine]:
    """Return the float form on every runtime that can run it."""
    path = model.file.path
    if model.precision is Precision.INT8:
        raise ModelError(f"{path.name} is int8 already", mend="give the float model that it was made from")
    readable = [name for name in target.runtimes if path.suffix == ".onnx" or name == "openvino"]
    if not readable:
        raise UsageError(
            f"{path.name} cannot be quantised for {', '.join(target.runtimes)}",
            cause="it is OpenVINO's format",
            mend="give the .onnx that it was made from",
        )
    health = {one.name: one for one in device.probe().runtimes}
    working = [name for name in readable if health[name].works]
    if not working:
        problems = "; ".join(f"{name}: {health[name].problem}" for name in readable)
        mends = " or ".join(health[name].mend for name in readable)
        raise BackendMissing(f"no runtime here can run {path.name}", cause=problems, mend=mends)
    found, problems_of = [], []
    for name in working:
        engine = Engine(
            model=model,
            runtime=name,
            precision=Precision.FP32,
            threads=target.threads,
            shapes=dict(wish.shapes),
        )
        try:
            device.build(engine)
            found.append(engine)
        except BuildError as error:
            log.info("%s cannot run it: %s", name, error)
            problems_of.append(error)
    if not found:
        raise problems_of[0]
    return found


def _labelled(wish: Wish, cache: Path) -> Labelled | None:
    if not wish.data:
        return None
    data = labelled(wish.data, cache, test=False)
    at = np.linspace(0, len(data.labels) - 1, min(len(data.labels), _MOST_LABELLED)).round().astype(int)
    return Labelled(images=data.images[at], labels=data.labels[at])


def _tried(here: _Here, parent: Engine, target: Target, wish: Wish, seconds: float) -> _Told:
    """Look for what is faster than fp32 on one runtime and loses nothing."""
    log.info("%s: quantising", parent.runtime)
    judge = _judge(here, parent, wish)
    floats = tuple(_floats(here, parent, target, judge))
    count = row_count(here.rows)
    if wish.calibrate is not None and count < LEAST_ROWS:
        why = f"{count} calibration {'input tells' if count == 1 else 'inputs tell'} no range: give at least {LEAST_ROWS}"
        return _Told(parent=parent, floats=floats, found=None, why=why)
    try:
        calibration, held_out = divided(here.scratch / "divided", here.rows)
        found = find_int8(
            Source(
                parent=parent,
                calibration=calibration,
                held_out=held_out,
                judge=judge,
                device=here.device,
                quantizers=here.quantizers,
                store=here.store,
                tolerance=Tolerance() if wish.calibrate else _ANY,
                lossy=wish.anyway,
                seconds=seconds,
            )
        )
    except (DataError, ModelError) as error:
        return _Told(
            parent=parent, floats=floats, found=None, why=f"{error.what}: {error.cause}".rstrip(": ")
        )
    return _Told(parent=parent, floats=floats, found=found)


def _judge(here: _Here, parent: Engine, wish: Wish) -> Judge:
    """Return what says how far a file's answers lie from its parent's, on the inputs and on labelled images."""
    numbers = itertools.count()
    expected = outputs_of(here.device, parent, here.rows, here.scratch / parent.runtime / "parent")
    side = Subject(path=wish.path, engine=parent, signature=here.signature)
    folder = here.scratch / parent.runtime
    right = (
        None
        if here.data is None
        else answers(folder / "labelled", here.device, side, here.data, wish.normalisation)
    )

    def judge(engine: Engine) -> Loss:
        own = folder / str(next(numbers))
        if right is None or here.data is None:
            return lost(expected, outputs_of(here.device, engine, here.rows, own))
        found = answers(own, here.device, replace(side, engine=engine), here.data, wish.normalisation)
        return lost_on_task(right, found, here.data.labels, top_one)

    return judge


def _floats(here: _Here, parent: Engine, target: Target, judge: Judge) -> list[tuple[Engine, Loss]]:
    """Make and judge the other float forms that the profile lists."""
    found = []
    for precision in target.profile.runtimes[parent.runtime]:
        if precision in {Precision.FP32, Precision.INT8}:
            continue
        engine = replace(parent, precision=precision)
        try:
            if cast_by_graph(parent.runtime, precision):
                folder = here.scratch / parent.runtime / precision.value
                engine = replace(engine, model=halve(folder, parent.model, here.rows, here.quantizers).model)
            here.device.build(engine)
            found.append((engine, judge(engine)))
        except ModelError as error:
            log.info("  %s: %s", engine.name, error)
    return found


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A file that may ship, and its fp32 parent."""

    engine: Engine
    parent: Engine
    loss: Loss | None = None
    form: Form | None = None  # int8


def _delivered(here: _Here, told: Sequence[_Told], wish: Wish, out: Path) -> Quantized:
    """Time what may ship in turns, pick the fastest, and write it with the float file."""
    choices = _choices(told, wish)
    latencies = dict(
        zip((one.engine.name for one in choices), timed(here.device, [one.engine for one in choices]))
    )
    wanted = [one for one in choices if one.form] if wish.anyway else []
    best = min(wanted or choices, key=lambda one: latencies[one.engine.name].percentile(50))
    summaries = {name: summarise(latency, CONFIDENCE) for name, latency in latencies.items()}
    log.info("%s is the one to ship", best.engine.name)
    stem = wish.path.stem
    parent_files = place(out, best.parent.model, f"{stem}.fp32")
    files = parent_files
    if best.engine.model != best.parent.model:
        files = place(out, best.engine.model, f"{stem}.{best.engine.runtime}.{best.engine.precision.value}")
    return _quantized(here, told, wish, best, summaries, files, parent_files)


def _choices(told: Sequence[_Told], wish: Wish) -> list[_Choice]:
    found = []
    for one in told:
        found.append(_Choice(engine=one.parent, parent=one.parent))
        found += [
            _Choice(engine=engine, parent=one.parent, loss=loss)
            for engine, loss in one.floats
            if Tolerance().allows(loss)
        ]
        if one.found is None:
            continue
        form = one.found.best if wish.calibrate else None
        if wish.anyway:
            form = form or one.found.fastest or one.found.quickest
        if form:
            found.append(_Choice(engine=form.engine, parent=one.parent, loss=form.loss, form=form))
    return found


def _quantized(  # noqa: PLR0917 - a list of fields
    here: _Here,
    told: Sequence[_Told],
    wish: Wish,
    best: _Choice,
    summaries: dict[str, LatencySummary],
    files: dict[str, str],
    parent_files: dict[str, str],
) -> Quantized:
    expected, found = (
        outputs_of(here.device, engine, here.rows, here.scratch / "last" / str(at))
        for at, engine in enumerate((best.parent, best.engine))
    )
    closeness = match(expected, found)
    own, parent = summaries[best.engine.name], summaries[best.parent.name]
    mine = next(one for one in told if one.parent == best.parent)
    form = best.form
    return Quantized(
        files=files,
        runtime=best.engine.runtime,
        precision=best.engine.precision,
        quantization=form.quantization if form else None,
        size_bytes=made_bytes(files),
        parent_size_bytes=best.parent.model.size_bytes,
        float_files=parent_files,
        latency_ms=own,
        parent_latency_ms=parent,
        speedup=parent.p50 / own.p50,
        max_error=closeness.max_error,
        scale=closeness.scale,
        changed_labels=closeness.changed_labels,
        samples=closeness.samples,
        calibration_sha256=digest_of(here.rows) if wish.calibrate else "",
        problems=tuple(_problems(here, told, wish, best)),
        variants=tuple(_variants(told, summaries)),
        blamed=mine.found.blamed if mine.found else (),
        exchange=mine.found.exchange if mine.found and form == mine.found.best else None,
        loss=best.loss,
        why="" if form else "; ".join(f"{one.parent.runtime}: {_why(one, wish)}" for one in told),
    )


def _why(one: _Told, wish: Wish) -> str:
    if one.why_not:
        return one.why_not
    if not wish.calibrate:
        return "random inputs say nothing of its accuracy"
    return "another file is faster"


def _problems(here: _Here, told: Sequence[_Told], wish: Wish, best: _Choice) -> list[str]:
    found = [] if wish.calibrate else [RANDOM_INPUTS]
    beyond = next((one.found.beyond for one in told if one.found and one.found.beyond), {})
    if wish.calibrate and any(one.found for one in told):
        found += shortcomings(row_count(here.rows), beyond)
    mine = next(one for one in told if one.parent == best.parent)
    if best.form and mine.why_not:
        found.append(f"shipped because it was asked for: {mine.why_not}")
    return found


def _variants(told: Sequence[_Told], summaries: dict[str, LatencySummary]) -> list[Variant]:
    """List everything that was tried; float forms with the final measurement."""
    found = []
    for one in told:
        parent_ms = summaries[one.parent.name].p50
        found.append(
            Variant(
                runtime=one.parent.runtime, precision=Precision.FP32, p50_ms=parent_ms, parent_ms=parent_ms
            )
        )
        for engine, loss in one.floats:
            timed_ms = summaries[engine.name].p50 if engine.name in summaries else None
            why = "" if timed_ms else "not timed: it lost too much"
            found.append(
                Variant(
                    runtime=engine.runtime,
                    precision=engine.precision,
                    p50_ms=timed_ms,
                    parent_ms=parent_ms,
                    loss=loss,
                    why=why,
                )
            )
        found += one.found.variants if one.found else ()
    return found
