"""Warm a session up until it is stationary, then time single inferences with little of our own in between."""

from __future__ import annotations

import gc
import resource
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BuildError, ModelError
from edgekd.timing.session import Session, Tensors, all_finite
from edgekd.values.model import Signature, TensorSpec

RING = 8  # different inputs: a runtime that caches its last answer, or skips zeros, is not measured doing so
_AGREE = 0.02  # two windows whose medians differ by less are the same
_LEAST_WINDOW, _MOST_WINDOW = 3, 500  # inferences
_LEAD_IN, _LEAD_IN_MS = RING, 5.0  # inferences before a block that are not recorded, at most this long
_MOST_TRIES = 3  # inferences for each one wanted, where others take the core
_PATIENCE = 10  # a session that is not stationary after this many times `least_ms` never will be


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Times of single inferences, in run order."""

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    preempted: tuple[bool, ...]  # the scheduler gave the core to another process meanwhile


def varied_inputs(signature: Signature, seed: int, count: int = RING) -> tuple[Tensors, ...]:
    """Make inputs that differ from one another and are never constant.

    Floats lie in [0, 1), where logarithms and roots are defined; bytes use their whole range; wider integers
    are 0 or 1, which are valid indices nearly everywhere.

    Raises:
        ModelError: an input is of a type that numpy cannot make.

    """
    rng = np.random.default_rng(seed)
    return tuple({spec.name: _tensor(spec, rng) for spec in signature.inputs} for _ in range(count))


def warm_up(session: Session, ring: Sequence[Tensors], least_ms: float) -> int:
    """Run until `least_ms` have passed and two windows in a row have the same median; return the inferences.

    Raises:
        BuildError: an output is not a finite number.

    """
    start_ns = session.clock_ns()
    window, before, done = _LEAST_WINDOW, 0.0, 0
    while True:
        times_ns = _window(session, ring, done, window)
        done += window
        now, passed_ms = statistics.median(times_ns), (session.clock_ns() - start_ns) / 1e6
        stationary = passed_ms >= least_ms and abs(now - before) <= _AGREE * now
        if (before and stationary) or passed_ms >= _PATIENCE * least_ms:
            return done
        before = now
        window = round(min(max(least_ms * 1e6 / 3 / max(now, 1.0), _LEAST_WINDOW), _MOST_WINDOW))


def sample(session: Session, ring: Sequence[Tensors], count: int, first: int = 0) -> Samples:
    """Time inferences, starting at input `first` of the ring, until `count` had the core to themselves.

    An inference during which the scheduler gave the core to another process says what that process did. It is
    kept and marked, by its cause and never by its value, and another is taken, up to three times `count`.

    A turn begins with caches that the last engine's turn has filled: the first inference of a small network
    then takes three times as long. That is our doing, not the network's, so a few go unrecorded.
    """
    most = _MOST_TRIES * count
    wall_ns = np.zeros(most, dtype=np.int64)  # touched now, so that no page fault falls between two readings
    cpu_ns = np.zeros(most, dtype=np.int64)
    preempted = np.zeros(most, dtype=np.bool_)
    feeds = [ring[(first + at) % len(ring)] for at in range(most)]
    clock, cpu_clock, run = session.clock_ns, session.cpu_clock_ns, session.run
    switches = _involuntary_switches if session.real_time else _no_switches
    at = undisturbed = 0
    with _without_collector():
        _lead_in(session, ring)
        while undisturbed < count and at < most:
            before = switches()
            cpu_start = cpu_clock()
            start = clock()
            outputs = run(feeds[at])
            end = clock()
            cpu_end = cpu_clock()
            preempted[at] = switches() != before
            wall_ns[at] = end - start
            cpu_ns[at] = cpu_end - cpu_start
            undisturbed += not preempted[at]
            at += 1
            del outputs  # freed here, where it is not timed
    return Samples(
        wall_ns=tuple(wall_ns[:at].tolist()),
        cpu_ns=tuple(cpu_ns[:at].tolist()),
        preempted=tuple(preempted[:at].tolist()),
    )


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _no_switches() -> int:
    return 0


def _lead_in(session: Session, ring: Sequence[Tensors]) -> None:
    start_ns = session.clock_ns()
    for at in range(_LEAD_IN):
        session.run(ring[at % len(ring)])
        if (session.clock_ns() - start_ns) / 1e6 > _LEAD_IN_MS:
            return


def _window(session: Session, ring: Sequence[Tensors], done: int, count: int) -> list[int]:
    times_ns = []
    for at in range(count):
        start = session.clock_ns()
        outputs = session.run(ring[(done + at) % len(ring)])
        times_ns.append(session.clock_ns() - start)
        if not all_finite(outputs):
            mend = "check the weights and, for int8, the calibration inputs"
            raise BuildError("the model answers NaN or infinity", cause="seen while warming up", mend=mend)
    return times_ns


@contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _tensor(spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = tuple(1 if size is None else size for size in spec.shape)
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind == "f":
        return np.asarray(rng.random(shape), dtype=dtype)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), dtype=dtype)
    if dtype.kind in "iu":
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype.itemsize == 1 else (0, 2)
        return np.asarray(rng.integers(low, high, shape), dtype=dtype)
    mend = "export it with float, integer or boolean inputs"
    raise ModelError(f"input {spec.name!r} is of type {spec.dtype}, which edgekd cannot make", mend=mend)
