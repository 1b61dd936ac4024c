"""Build one model several times, time the builds against each other, and take the one that measured fastest.

A runtime that times its candidates while it builds (TensorRT does) draws lots: the same command makes engines of
different speed. What a single build is worth shows only beside the others, and beside how far one build's own
launches lie apart.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from edgekd.backends import draws
from edgekd.devices import Device
from edgekd.errors import BuildError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine

log = logging.getLogger(__name__)

_LEAST = 2  # builds and launches: fewer have no spread
_MOST = 20


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One build, and its times beside the others'."""

    engine: Engine
    build_ms: float  # with the first inference; less where the device had kept it
    latency: Latency

    @property
    def launch_ms(self) -> tuple[float, ...]:
        """The median of each launch."""
        launches = self.latency.protocol.launches
        ends = tuple(accumulate(self.latency.block_sizes))
        size = len(ends) // launches
        cuts = (0, *(ends[size * (at + 1) - 1] for at in range(launches)))
        samples_ms = self.latency.samples_ms
        return tuple(statistics.median(samples_ms[start:end]) for start, end in pairwise(cuts))


@dataclass(frozen=True, kw_only=True)
class Lottery:
    """What several builds of one model came to."""

    draws: tuple[Draw, ...]  # in the order they were built
    picked: int  # which of them measured fastest
    latency: Latency  # of that one, measured again: the first time it was chosen for being fast
    build_spread: float  # relative standard deviation between builds, launches' own scatter taken out
    launch_spread: float  # relative standard deviation between launches of one build
    failed: tuple[str, ...] = ()  # why a build gave nothing

    @property
    def engine(self) -> Engine:
        """The build that was picked."""
        return self.draws[self.picked].engine

    @property
    def range(self) -> float:
        """How much slower the slowest build is than the fastest: 0.1 is 10 %."""
        middles = [statistics.fmean(draw.launch_ms) for draw in self.draws]
        return max(middles) / min(middles) - 1

    @property
    def matters(self) -> bool:
        """Whether builds differ by more than launches of the same build do."""
        return self.build_spread > self.launch_spread


def lottery(folder: Path, device: Device, engine: Engine, protocol: Protocol, *, builds: int = 5) -> Lottery:
    """Build an engine several times and pick the fastest by measurement.

    Each build is a copy of the model with a number in its metadata (`backends.draws`), so that the device keeps the
    builds apart; the copies lie in `folder`, and the picked one is what is to be shipped to this device.

    Args:
        folder: for the copies.
        device: where they are built and timed.
        engine: of a self-contained .onnx.
        protocol: of the timing; at least two launches. Builds take turns within each.
        builds: how many, 2 to 20.

    Raises:
        UsageError: too few builds or launches, or the model is no .onnx.
        BuildError: fewer than two builds came to anything.

    """
    if not _LEAST <= builds <= _MOST or protocol.launches < _LEAST:
        mend = f"take {_LEAST} to {_MOST} builds, and at least {_LEAST} launches"
        raise UsageError(f"{builds} builds and {protocol.launches} launches show no spread", mend=mend)
    tried = [_built(device, copy) for copy in _copies(folder, engine, builds)]
    failed = tuple(str(one) for one in tried if isinstance(one, BuildError))
    built = [one for one in tried if not isinstance(one, BuildError)]
    if len(built) < _LEAST:
        raise BuildError(f"{len(failed)} of {builds} builds failed", cause=failed[-1])
    latencies = device.time([copy for copy, _ in built], protocol)
    found = tuple(
        Draw(engine=copy, build_ms=build_ms, latency=latency)
        for (copy, build_ms), latency in zip(built, latencies)
    )
    picked = min(range(len(found)), key=lambda at: statistics.fmean(found[at].launch_ms))
    again = replace(protocol, seed=protocol.seed + protocol.launches)  # launches take seeds in order
    (latency,) = device.time([found[picked].engine], again)
    between, within = spreads([draw.launch_ms for draw in found])
    return Lottery(
        draws=found, picked=picked, latency=latency, build_spread=between, launch_spread=within, failed=failed
    )


def spreads(launch_ms: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the relative standard deviations between builds and between one build's launches.

    One-way analysis of variance on the logarithms: the variance of builds' means less what launches contribute to
    it (Searle, Casella & McCulloch, Variance Components, 1992, section 3.5), not below zero.

    Args:
        launch_ms: for each build, the median of each launch; as many launches of each.

    """
    logs = [[math.log(ms) for ms in build] for build in launch_ms]
    within = statistics.fmean(statistics.variance(build) for build in logs)
    means = statistics.variance([statistics.fmean(build) for build in logs])
    between = max(0.0, means - within / len(logs[0]))
    return math.sqrt(between), math.sqrt(within)


def _copies(folder: Path, engine: Engine, builds: int) -> list[Engine]:
    source = engine.model.file.verified()
    if source.suffix != ".onnx":
        raise UsageError(f"{source.name} cannot be built several times", mend="give it an .onnx file")
    folder.mkdir(parents=True, exist_ok=True)
    content, copies = source.read_bytes(), []
    for draw in range(1, builds + 1):
        path = folder / f"draw-{draw}.onnx"
        path.write_bytes(draws.numbered(content, draw))
        copies.append(replace(engine, model=replace(engine.model, file=Artifact.of(path))))
    return copies


def _built(device: Device, engine: Engine) -> tuple[Engine, float] | BuildError:
    try:
        opened = device.build(engine)
    except BuildError as error:
        log.warning("a build failed: %s", error)
        return error
    log.info("built %s in %.0f ms", engine.model.file.path.name, opened.open_ms)
    return engine, opened.open_ms
