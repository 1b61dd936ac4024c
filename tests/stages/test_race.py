"""Pairs until a bound says which side of the least gain a file is on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.stages.race import LEAST_GAIN, MOST_PAIRS, PAIRS, race, wins
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.gate import Ratio
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision

CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=()),
    software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
    load=Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0),
)


class Track:
    """Times two engines; the second takes `times` as long, both scattered, and both slowed by what the hour brings."""

    def __init__(self, times: float, scatter: float) -> None:
        self.times, self.scatter, self.chance = times, scatter, random.Random(7)  # noqa: S311
        self.protocols: list[Protocol] = []

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        self.protocols.append(protocol)
        hour = self.chance.uniform(1.0, 3.0)
        pair = self.chance.gauss(0, self.scatter)
        return tuple(
            self._latency(hour * ms, protocol) for ms in (1.0, self.times * (1 + pair))[: len(engines)]
        )

    def _latency(self, ms: float, protocol: Protocol) -> Latency:
        samples = tuple(ms for _ in range(protocol.blocks * protocol.samples))
        return Latency(
            samples_ms=samples,
            cpu_ms=samples,
            protocol=protocol,
            conditions=CONDITIONS,
            trust=Trust(verdict=TrustVerdict.GOOD),
            block_sizes=(protocol.samples,) * protocol.blocks,
        )


@pytest.fixture
def engines(tmp_path: Path) -> tuple[Engine, Engine]:
    (tmp_path / "m.onnx").write_bytes(b"a model")
    parent = Engine(model=Model(file=Artifact.of(tmp_path / "m.onnx")), runtime="r", precision=Precision.FP32)
    return parent, replace(parent, precision=Precision.INT8)


def raced(track: Track, engines: tuple[Engine, Engine], *, about_ms: float = 1.0) -> Ratio:
    return race(track, *engines, about_ms=about_ms)  # type: ignore[arg-type]


def test_a_clear_answer_takes_six_pairs_whatever_the_machine_does_to_both(engines: tuple[Engine, Engine]):
    track = Track(0.6, scatter=0.01)
    ratio = raced(track, engines)
    assert len(track.protocols) == PAIRS
    assert ratio.estimate == pytest.approx(0.6, abs=0.02)
    assert ratio.low < ratio.estimate < ratio.high < 0.7
    assert wins(ratio)
    assert len({protocol.seed for protocol in track.protocols}) == PAIRS


def test_what_is_as_fast_as_its_parent_does_not_win(engines: tuple[Engine, Engine]):
    assert not wins(raced(Track(1.0, scatter=0.01), engines))
    assert not wins(raced(Track(1.2, scatter=0.05), engines))


def test_a_close_race_is_run_longer_and_not_won_by_doubt(engines: tuple[Engine, Engine]):
    track = Track(1 - LEAST_GAIN, scatter=0.05)
    assert not wins(raced(track, engines))
    assert len(track.protocols) == MOST_PAIRS


def test_turns_of_slow_models_are_fewer_inferences(engines: tuple[Engine, Engine]):
    quick, slow = Track(0.5, scatter=0.01), Track(0.5, scatter=0.01)
    raced(quick, engines, about_ms=0.1)
    raced(slow, engines, about_ms=500.0)
    assert quick.protocols[0].samples > slow.protocols[0].samples >= 3
