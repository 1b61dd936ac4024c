"""The search for an int8 form, on a device and with quantisers that do as they are told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.errors import BuildError, ModelError
from edgekd.pipeline.forms import Source
from edgekd.pipeline.int8 import find_int8
from edgekd.store import Store
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import QuantizeOrder, RankOrder, RankReply, SurveyOrder, SurveyReply
from edgekd.values.variant import Loss, Operators, Ranges, Segment, Tolerance

NAMES = ("a", "b", "c", "d")
FLOAT_MS = 0.25  # a segment
CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=()),
    software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
    load=Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0),
)


@dataclass(kw_only=True)
class World:
    """What int8 does to each of four segments, and what was asked."""

    int8_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.1))
    loss: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    ranges_help: float = 1.0  # times the loss with percentiles
    weighted_ms: float = 0.5  # more, where weighted operators alone are int8
    raced_ms: float = 0.0  # more in pairs than in a screening
    dies: bool = False  # any int8 file, when it is opened
    ranked: list[tuple[str, ...]] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    fingerprint: str = "scripted"

    # what quantises

    def survey(self, order: SurveyOrder) -> SurveyReply:
        path = order.folder / "prepared.onnx"
        path.write_bytes(b"prepared")
        segments = tuple(Segment(name=one, kind="Conv", nodes=(one,), tensors=(one,)) for one in NAMES)
        return SurveyReply(model=Model(file=Artifact.of(path)), segments=segments, beyond={})

    def order(self, order: QuantizeOrder) -> Model:
        assert order.how is not None
        path = order.folder / "model.onnx"
        path.write_text(
            json.dumps(
                {
                    "name": order.how.name,
                    "kept": order.how.kept,
                    "ranges": order.how.ranges.value,
                    "weighted": order.how.operators is Operators.WEIGHTED,
                }
            )
        )
        return Model(file=Artifact.of(path), precision=Precision.INT8)

    def rank(self, order: RankOrder) -> RankReply:
        names = tuple(one.name for one in order.segments)
        self.ranked.append(names)
        return RankReply(divergences=tuple(self.loss[name] for name in names))

    # what runs

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        if self.dies and len(engines) > 1:
            raise BuildError("it died")
        return tuple(self._latency(engine, protocol) for engine in engines)

    def layers(self, engine: Engine) -> tuple[Layer, ...]:
        told = _read(engine)
        return tuple(
            Layer(name=one, kind="Conv", time_ms=FLOAT_MS if _is_float(told, one) else self.int8_ms[one])
            for one in NAMES
        )

    def judge(self, engine: Engine) -> Loss:
        told = _read(engine)
        self.judged.append(told["name"])
        factor = self.ranges_help if told["ranges"] == Ranges.PERCENTILE.value else 1.0
        whole = math.fsum(factor * self.loss[one] for one in NAMES if one not in told["kept"])
        return Loss(divergence=whole, changed=0.0, drop=whole, samples=1000)

    def _latency(self, engine: Engine, protocol: Protocol) -> Latency:
        told = _read(engine)
        ms = math.fsum(FLOAT_MS if _is_float(told, one) else self.int8_ms[one] for one in NAMES)
        if told:
            ms += self.weighted_ms * told["weighted"] + self.raced_ms * protocol.one_core
        count = protocol.blocks * protocol.samples
        return Latency(
            samples_ms=(ms,) * count,
            cpu_ms=(ms,) * count,
            protocol=protocol,
            conditions=CONDITIONS,
            trust=Trust(verdict=TrustVerdict.GOOD),
            block_sizes=(protocol.samples,) * protocol.blocks,
        )


def _read(engine: Engine) -> Any:
    return json.loads(engine.model.file.path.read_text()) if engine.precision is Precision.INT8 else {}


def _is_float(told: Any, name: str) -> bool:
    return not told or name in told["kept"]


def source(world: World, folder: Path) -> Source:
    path = folder / "float.onnx"
    path.write_bytes(b"float")
    np.save(folder / "rows.npy", np.zeros(4))
    rows = {"x": Artifact.of(folder / "rows.npy")}
    return Source(
        parent=Engine(model=Model(file=Artifact.of(path)), runtime="rehearsal", precision=Precision.FP32),
        calibration=rows,
        held_out=rows,
        judge=world.judge,
        device=world,  # type: ignore[arg-type]
        quantizers=world,  # type: ignore[arg-type]
        store=Store(folder / "store"),
        tolerance=Tolerance(drop=0.01),
    )


def test_the_first_form_that_is_fast_and_loses_nothing_ends_the_search(tmp_path: Path):
    world = World()
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.name == "static"
    assert found.best.relative == pytest.approx(0.4)
    assert found.best.ratio is not None
    assert found.best.ratio.high == pytest.approx(0.4)
    assert found.why == ""
    assert world.judged == ["static"]  # no other ranges, and nothing that is slower
    assert world.ranked == []
    assert [one.name for one in found.variants] == [
        "rehearsal/int8, static",
        "rehearsal/int8, static, weighted",
    ]


def test_other_ranges_are_tried_before_layers_are_given_up(tmp_path: Path):
    world = World(loss={"a": 0.02, "b": 0.0, "c": 0.0, "d": 0.0}, ranges_help=0.1)
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.ranges is Ranges.PERCENTILE
    assert world.ranked == []


def test_the_segment_that_costs_the_accuracy_goes_back_to_float_at_a_printed_rate(tmp_path: Path):
    world = World(loss={"a": 0.004, "b": 0.05, "c": 0.0, "d": 0.001})
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.kept == ("b",)
    assert found.exchange is not None
    assert found.exchange.kept == ("b",)
    assert (found.exchange.before_ms, found.exchange.after_ms) == pytest.approx((0.4, 0.55))
    assert found.exchange.ms_per_point == pytest.approx(0.15 / 5.0)


def test_as_few_segments_as_pass_are_given_up(tmp_path: Path):
    losses = {"a": 0.03, "b": 0.02, "c": 0.015, "d": 0.001}
    world = World(int8_ms=dict.fromkeys(NAMES, 0.05), loss=losses)
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.kept == ("a", "b", "c")


def test_what_a_cheap_segment_regains_is_taken_before_what_a_dear_one_does(tmp_path: Path):
    # As much divergence from both; "a" saves a lot in int8, "b" nothing to speak of.
    world = World(
        int8_ms={"a": 0.01, "b": 0.24, "c": 0.1, "d": 0.1}, loss={"a": 0.008, "b": 0.008, "c": 0, "d": 0}
    )
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.kept == ("b",)


def test_an_int8_file_that_is_not_faster_is_never_the_best_and_its_layers_are_named(tmp_path: Path):
    world = World(int8_ms=dict.fromkeys(NAMES, 0.3))
    found = find_int8(replace(source(world, tmp_path), lossy=True))
    assert found.best is None
    assert found.fastest is None
    assert "no int8 form is faster" in found.why
    assert [one.segment for one in found.blamed] == list(NAMES)
    assert world.judged == []  # what is too slow is not worth an accuracy
    assert len(found.variants) == 2  # nothing to save by putting a layer back


def test_only_the_layers_that_are_slower_go_back_to_float(tmp_path: Path):
    world = World(int8_ms={"a": 0.6, "b": 0.15, "c": 0.15, "d": 0.15})
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.kept == ("a",)
    assert found.best.relative == pytest.approx(0.7)
    assert [one.segment for one in found.blamed] == ["a"]


def test_a_file_that_loses_its_race_does_not_ship_however_it_was_screened(tmp_path: Path):
    found = find_int8(replace(source(World(raced_ms=0.59), tmp_path), lossy=True))
    assert found.best is None
    assert found.fastest is None
    assert "not faster than fp32 beyond doubt" in found.why


def test_where_accuracy_cannot_be_had_the_fast_one_is_named_for_those_who_may_want_it(tmp_path: Path):
    world = World(int8_ms=dict.fromkeys(NAMES, 0.2), loss=dict.fromkeys(NAMES, 0.2))
    found = find_int8(replace(source(world, tmp_path), lossy=True))
    assert found.best is None
    assert found.fastest is not None
    assert found.fastest.loss is not None
    assert found.fastest.loss.drop == pytest.approx(0.8)
    assert "accuracy" in found.why
    assert find_int8(source(world, tmp_path)).fastest is None


def test_a_second_search_goes_on_from_the_rankings_of_the_first(tmp_path: Path):
    world = World(loss={"a": 0.004, "b": 0.05, "c": 0.0, "d": 0.001})
    first = find_int8(source(world, tmp_path))
    asked = len(world.ranked)
    again = find_int8(source(world, tmp_path))
    assert asked == 1
    assert len(world.ranked) == asked
    assert again.best is not None
    assert first.best is not None
    assert again.best.quantization == first.best.quantization


def test_without_time_nothing_is_begun_and_that_is_said(tmp_path: Path):
    found = find_int8(replace(source(World(), tmp_path), seconds=0.0))
    assert found.best is None
    assert found.why == "there was no time to make one"


def test_time_that_runs_out_ends_the_search_with_what_is_known(tmp_path: Path):
    ticks = iter(range(10_000))
    world = World(loss=dict.fromkeys(NAMES, 0.02))
    limited = replace(source(world, tmp_path), seconds=4.0, now=lambda: float(next(ticks)), lossy=True)
    found = find_int8(limited)
    assert found.best is None
    assert found.fastest is not None
    assert world.ranked == []


def test_a_file_that_kills_its_runtime_is_a_variant_with_its_reason(tmp_path: Path):
    found = find_int8(source(World(dies=True), tmp_path))
    assert found.best is None
    assert [one.why for one in found.variants] == ["it died", "it died"]
    assert found.why == "it died"


def test_a_quantiser_that_refuses_leaves_the_other_forms(tmp_path: Path):
    world = World()
    make = world.order

    def refuse(order: QuantizeOrder) -> Model:
        if order.how is not None and order.how.operators is Operators.ALL:
            raise ModelError("it cannot", cause="an operator")
        return make(order)

    world.weighted_ms = 0.0
    world.order = refuse  # type: ignore[method-assign]
    found = find_int8(source(world, tmp_path))
    assert found.best is not None
    assert found.best.quantization.operators is Operators.WEIGHTED
    assert found.variants[0].why == "it cannot: an operator"
