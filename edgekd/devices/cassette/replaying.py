"""A device that answers from a cassette: no process is started, and nothing is measured."""

from __future__ import annotations

import logging
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

from edgekd.devices.cassette import tape
from edgekd.devices.cassette.asked import Asked, counted, differences, nearest, places_of
from edgekd.devices.cassette.lines import altered
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
from edgekd.devices.cassette.recording import NS
from edgekd.devices.cassette.records import Compiled, Entry, Inferred, Kept, Result
from edgekd.devices.cassette.results import read_results, restore_files
from edgekd.devices.cassette.tape import Placed, Tape
from edgekd.devices.cassette.wording import harmless
from edgekd.devices.external import with_weights
from edgekd.errors import ConfigError, DeviceError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.codec import decode
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Signature
from edgekd.values.order import EnergyReply, LayersReply, OpenReply, ProbeReply
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Target

R = TypeVar("R")

log = logging.getLogger(__name__)

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_CAUSE_CHARS = 1000
_AGAIN = "record it again with --record FILE, or replay the very command that was recorded"


class CassetteDevice:
    """A device that is a file; what it is called is what the recorded one was called."""

    def __init__(self, file: Path, target: Target) -> None:
        """Read the file, every digest checked.

        Raises:
            DeviceError: there is no such file.
            IntegrityError: it is no cassette, was altered, or is of another schema.
            UsageError: the recorded device was tuned otherwise than the target says.

        """
        self._tape = tape.read(file)
        if (tuned := self._tape.sessions[0].tune) != target.tune:
            mend = (
                f"give tune = {tuned!r}, or record it again"
                if tuned
                else "leave tune out, or record it again"
            )
            raise UsageError(f"{file} was not recorded with tune = {target.tune!r}", mend=harmless(mend))
        self._target = target
        self._left = _to_answer(self._tape)
        self._taken_ns = 0
        self.name = self._tape.sessions[0].device

    @property
    def device_seconds(self) -> float:
        """Wall time that the orders answered so far took when they were recorded."""
        return self._taken_ns / NS

    def __enter__(self) -> CassetteDevice:
        log.info(
            "replaying %s: %d orders of %s, nothing is measured",
            self._tape.path,
            len(self._tape.entries),
            self.name,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to free: the file is open only while it is read."""

    def probe(self) -> ProbeReply:
        """Say what the recorded machine was, and which of the target's runtimes worked there.

        Raises:
            DeviceError: that was not recorded.

        """
        question = probing(self._target.runtimes)
        told = [
            queue[0] for queue in self._left.values() if queue and _tells(queue[0], question.asked.runtimes)
        ]
        held = min(told, key=lambda one: one.place.offset, default=None)
        reply = self._decoded(self._taken(question, held), question, ProbeReply)
        health = {one.name: one for one in reply.runtimes}
        shown = question.words.shown
        runtimes = tuple(
            replace(health[name], problem=shown(health[name].problem), mend=shown(health[name].mend))
            for name in question.asked.runtimes
        )
        return replace(reply, runtimes=runtimes)

    def inspect(self, model: Artifact) -> Signature:
        """Give the signature that was recorded of a model of these bytes.

        Raises:
            DeviceError: that was not recorded.
            ModelError: as recorded.

        """
        return self._answered(inspecting(model), Signature)

    def build(self, engine: Engine) -> OpenReply:
        """Give what building this engine was recorded to give.

        Raises:
            DeviceError: that was not recorded.
            BuildError: as recorded.

        """
        return self._answered(building(engine), OpenReply)

    def compile(self, engine: Engine, folder: Path) -> Model:
        """Write the files that compiling this engine was recorded to give.

        Raises:
            DeviceError: that was not recorded.
            BuildError: as recorded.

        """
        made = self._answered(compiling(engine, folder), Compiled)
        weights = None if made.weights is None else self._restored(made.weights, folder, "model")
        file = self._restored(made.file, folder, "model")
        still = [one for one in engine.model.external if one.sha256 in made.external]
        return with_weights(Model(file=file, weights=weights, precision=made.precision), engine.model, still)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        """Give what these engines were recorded to take, timed together by the same protocol and seed.

        Raises:
            DeviceError: that was not recorded.
            BuildError: as recorded.

        """
        question = timing(engines, protocol)
        entry = self._found(question)
        # The codec takes every type that a field may have; mypy's `type[T]` has no tuple[X, ...].
        latencies = cast(
            "tuple[Latency, ...]", self._decoded(entry, question, cast("Any", tuple[Latency, ...]))
        )
        if len(latencies) != len(engines):
            raise altered(self._tape.path, f"it holds {len(latencies)} latencies of {len(engines)} engines")
        return tuple(latencies[at] for at in places_of(question.asked.engines, entry.asked.engines))

    def ledger(self, engine: Engine, images: Artifact, recipe: Preprocess) -> Ledger:
        """Give what whole requests were recorded to take.

        Raises:
            DeviceError: that was not recorded.
            BuildError, DataError, ModelError: as recorded.

        """
        return self._answered(itemising(engine, images, recipe), Ledger)

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Energy | None:
        """Give the energy that was recorded over passes of so many seconds.

        Raises:
            DeviceError: that was not recorded.
            BuildError: as recorded.

        """
        return self._answered(metering(engine, seconds), EnergyReply).energy

    def layers(self, engine: Engine, *, passes: int = 50) -> tuple[Layer, ...]:
        """Give the layers that were recorded of this engine.

        Raises:
            DeviceError: that was not recorded.
            BuildError: as recorded.

        """
        return self._answered(listing(engine, passes), LayersReply).layers

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        """Write the outputs that were recorded for this engine and inputs of these bytes.

        Raises:
            DeviceError: that was not recorded.
            BuildError, DataError: as recorded.

        """
        made = self._answered(inferring(engine, inputs, folder), Inferred)
        return {
            name: self._restored(kept, folder, f"output_{at}")  # an output's own name may hold anything
            for at, (name, kept) in enumerate(made.outputs.items())
        }

    def kept(self) -> Iterator[Result]:
        """Give what the host made of its stages when this was recorded.

        Raises:
            IntegrityError: one names what no store would.

        """
        return read_results(self._tape)

    def restore(self, result: Result, folder: Path) -> None:
        """Write the files of such a result into a folder.

        Raises:
            IntegrityError: the cassette lacks one, or holds other bytes.

        """
        restore_files(self._tape, result.files, folder)

    def _answered(self, question: Question, kind: type[R]) -> R:
        return self._decoded(self._found(question), question, kind)

    def _found(self, question: Question) -> Entry:
        question.words.check_files()
        queue = self._left[question.asked.key]
        return self._taken(question, queue[0] if queue else None)

    def _taken(self, question: Question, held: Placed | None) -> Entry:
        """Take the next answer away, with the time it took; raise it where it is a failure."""
        if held is None:
            raise self._unanswered(question.asked)
        entry = self._tape.entry(held)
        self._left[held.asked.key].popleft()
        self._taken_ns += entry.device_ns
        if entry.failure is not None:
            raise question.words.error(entry.failure)
        return entry

    def _decoded(self, entry: Entry, question: Question, kind: type[R]) -> R:
        try:
            return decode(kind, entry.reply, question.asked.order)
        except (ConfigError, ValueError, RecursionError) as error:
            raise altered(self._tape.path, f"{question.asked}: {error}"[:500]) from error

    def _restored(self, kept: Kept, folder: Path, stem: str) -> Artifact:
        if not _SUFFIX.fullmatch(kept.suffix):
            raise altered(self._tape.path, f"{kept.suffix[:20]!r} is no suffix of a file")
        return self._tape.restore(kept, folder / f"{stem}{kept.suffix}")

    def _unanswered(self, asked: Asked) -> DeviceError:
        """Say what was asked, what the cassette holds nearest to it, and what to do."""
        path, held = self._tape.path, [one.asked for one in self._tape.entries]
        what = f"the cassette {path} has no answer to {asked}"
        near = nearest(asked, held)
        if near is None:
            cause = harmless(f"it holds {counted(held) or 'no orders'}")
            return DeviceError(what, cause=cause[:_CAUSE_CHARS], mend=_AGAIN)
        if times := sum(one.key == asked.key for one in held):
            again = f"it was recorded {times} time{'s' * (times > 1)}, and is asked once more"
            return DeviceError(
                f"the cassette {path} has no further answer to {asked}", cause=again, mend=_AGAIN
            )
        cause = harmless(f"nearest is {near}: {differences(asked, near)}")
        return DeviceError(what, cause=cause[:_CAUSE_CHARS], mend=_mend(asked, held))


def _to_answer(held: Tape) -> defaultdict[str, deque[Placed]]:
    """Queue the answers to each question as they were recorded.

    A failure that ended its session, such as a connection that was lost, is left out where the command was given
    again and the same question was answered.
    """
    queues: defaultdict[str, deque[Placed]] = defaultdict(deque)
    last = {one.asked.key: at for at, one in enumerate(held.entries)}
    for at, (one, following) in enumerate(zip_longest(held.entries, held.entries[1:])):
        ended = one.failed and following is not None and following.session > one.session
        if not (ended and last[one.asked.key] > at):
            queues[one.asked.key].append(one)
    return queues


def _tells(held: Placed, runtimes: tuple[str, ...]) -> bool:
    return held.asked.order == "probe" and (held.failed or set(runtimes) <= set(held.asked.runtimes))


def _mend(asked: Asked, held: Sequence[Asked]) -> str:
    if asked.digests <= {digest for one in held for digest in one.digests}:
        return _AGAIN
    return (
        "a file of these bytes was never seen: give the same files, or record it again; a run trains to the same bytes"
        " with the same seeds, tools and arithmetic only, or where the store of the recorded run is kept"
    )
