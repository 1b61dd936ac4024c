"""Warm a session up until it is stationary, then time single inferences with little of our own in between.

Three ways to time: back to back (burst), after a soak of untimed inferences (sustained), and one inference a
period with sleep in between, so that caches and clocks cool down (duty cycle).
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
_SOAKED = 200  # inferences are a soak where the clock is the session's own: nothing gets warm there
_KEPT_BYTES = 1 << 20  # of answers remembered
_CHANGED = 1e-3  # of the largest value: threads may add in another order, and no more
_PATIENCE = 10  # a session that is not stationary after this many times `least_ms` never will be


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Times of single inferences, in run order."""

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...]
    preempted: tuple[bool, ...]  # the scheduler gave the core to another process meanwhile
    asked: int  # input of the ring that came last
    answer: Tensors = field(repr=False)  # what it gave


class Answers:
    """What inputs of the ring gave while warming up, as many as fit 1 MiB."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensors] = {}
        self._room = _KEPT_BYTES

    def keep(self, asked: int, answer: Tensors) -> None:
        """Remember what an input gave, the first time."""
        size = sum(array.nbytes for array in answer.values())
        if asked not in self._kept and size <= self._room:
            self._kept[asked] = answer
            self._room -= size

    def agree(self, asked: int, answer: Tensors) -> bool:
        """Say whether an input gave what it had given before; true where that is not known."""
        before = self._kept.get(asked, answer)
        return all(_same(before[name], array) for name, array in answer.items())


def varied_inputs(signature: Signature, seed: int, count: int = RING) -> tuple[Tensors, ...]:
    """Make inputs that differ from one another and are never constant.

    Floats lie in [0, 1), where logarithms and roots are defined; bytes use their whole range; wider integers
    are 0 or 1, which are valid indices nearly everywhere.

    Raises:
        ModelError: an input is of a type that numpy cannot make.

    """
    rng = np.random.default_rng(seed)
    return tuple({spec.name: _tensor(spec, rng) for spec in signature.inputs} for _ in range(count))


def warm_up(session: Session, ring: Sequence[Tensors], least_ms: float) -> Answers:
    """Run until `least_ms` have passed and two windows in a row have the same median; return what was answered.

    Raises:
        BuildError: an output is not a finite number.

    """
    start_ns = session.clock_ns()
    window, before, done, answers = _LEAST_WINDOW, 0.0, 0, Answers()
    while True:
        times_ns = _window(session, ring, done, window, answers)
        done += window
        now, passed_ms = statistics.median(times_ns), (session.clock_ns() - start_ns) / 1e6
        stationary = passed_ms >= least_ms and abs(now - before) <= _AGREE * now
        if (before and stationary) or passed_ms >= _PATIENCE * least_ms:
            return answers
        before = now
        window = round(min(max(least_ms * 1e6 / 3 / max(now, 1.0), _LEAST_WINDOW), _MOST_WINDOW))


def soak(session: Session, ring: Sequence[Tensors], seconds: float) -> None:
    """Run inferences back to back, untimed, for so long."""
    start_ns, done = session.clock_ns(), 0
    while (session.clock_ns() - start_ns) / 1e9 < seconds and (session.real_time or done < _SOAKED):
        session.run(ring[done % len(ring)])
        done += 1


def sample(
    session: Session, ring: Sequence[Tensors], count: int, first: int = 0, *, period_ms: float = 0.0
) -> Samples:
    """Time inferences, starting at input `first` of the ring, until `count` had the core to themselves.

    An inference during which the scheduler gave the core to another process says what that process did. It is
    kept and marked, by its cause and never by its value, and another is taken, up to three times `count`.

    A turn begins with caches that the last engine's turn has filled: the first inference of a small network
    then takes three times as long. That is our doing, not the network's, so a few go unrecorded. With a
    period, cold caches are what is asked about: then each inference, the first too, comes after a pause.

    Raises:
        BuildError: the last output is not a finite number.

    """
    most = _MOST_TRIES * count
    wall_ns = np.zeros(most, dtype=np.int64)  # touched now, so that no page fault falls between two readings
    cpu_ns = np.zeros(most, dtype=np.int64)
    preempted = np.zeros(most, dtype=np.bool_)
    feeds = [ring[(first + at) % len(ring)] for at in range(most)]
    clock, cpu_clock, run = session.clock_ns, session.cpu_clock_ns, session.run
    switches = _involuntary_switches if session.real_time else _no_switches
    pause = _pacer(period_ms) if period_ms and session.real_time else None
    at = undisturbed = 0
    with _without_collector():
        if not period_ms:
            _lead_in(session, ring)
        while True:
            if pause:
                pause()
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
            if undisturbed >= count or at >= most:
                break
            del outputs  # freed here, where it is not timed
    _require_finite(outputs, "while it was timed")
    return Samples(
        wall_ns=tuple(wall_ns[:at].tolist()),
        cpu_ns=tuple(cpu_ns[:at].tolist()),
        preempted=tuple(preempted[:at].tolist()),
        asked=(first + at - 1) % len(ring),
        answer=outputs,
    )


def _pacer(period_ms: float) -> Callable[[], None]:
    """Return a pause until the next tick; a tick that was missed is not made up for."""
    tick_s = [time.monotonic()]

    def pause() -> None:
        tick_s[0] = max(tick_s[0] + period_ms / 1e3, time.monotonic())
        time.sleep(max(0.0, tick_s[0] - time.monotonic()))

    return pause


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


def _window(session: Session, ring: Sequence[Tensors], done: int, count: int, answers: Answers) -> list[int]:
    times_ns = []
    for at in range(count):
        asked = (done + at) % len(ring)
        start = session.clock_ns()
        outputs = session.run(ring[asked])
        times_ns.append(session.clock_ns() - start)
        _require_finite(outputs, "while warming up")
        answers.keep(asked, outputs)
    return times_ns


def _require_finite(outputs: Tensors, when: str) -> None:
    if not all_finite(outputs):
        mend = "check the weights and, for int8, the calibration inputs"
        raise BuildError("the model answers NaN or infinity", cause=f"seen {when}", mend=mend)


def _same(before: NDArray[Any], now: NDArray[Any]) -> bool:
    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    if np.array_equal(before, now):
        return True
    if before.dtype.kind != "f":
        return False
    scale = float(np.abs(before).max())
    return float(np.abs(now.astype(np.float64) - before).max()) <= _CHANGED * scale


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
