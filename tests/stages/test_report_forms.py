"""Precision and width compete: the forms of all finished students, by latency, with what their accuracy was bought for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.stages.report_forms import exchanged, form_rows
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.student import StageSpec, StudentSpec
from edgekd.values.trial import Proposal, Trial, Verdict
from edgekd.values.variant import Exchange, Method, Quantization

EXCHANGE = Exchange(kept=("a",), before_ms=1.0, after_ms=1.02, before_points=0.5, after_points=0.1)
CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=()),
    software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
    load=Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0),
)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    (tmp_path / "m.onnx").write_bytes(b"a model")
    return Model(file=Artifact.of(tmp_path / "m.onnx"))


def trial(
    model: Model, width: int, precision: Precision, ms: float, accuracy: float, *, why: str = ""
) -> Trial:
    spec = StudentSpec(
        family="residual",
        resolution=8,
        stem=8,
        stages=(StageSpec(width=width, depth=1, kernel=3, expansion=1.0),),
    )
    latency = Latency(
        samples_ms=(ms,) * 50,
        cpu_ms=(ms,) * 50,
        protocol=Protocol(),
        conditions=CONDITIONS,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    int8 = precision is Precision.INT8
    return Trial(
        proposal=Proposal(spec=spec, runtime="openvino", precision=precision),
        verdict=Verdict.NO_GAIN if why else Verdict.FITS,
        why=why,
        latency=latency,
        accuracy=accuracy,
        engine=Engine(model=model, runtime="openvino", precision=precision),
        quantization=Quantization(method=Method.NNCF, symmetric=True) if int8 else None,
        exchange=EXCHANGE if int8 and not why else None,
    )


def test_a_wide_int8_student_beats_a_narrow_float_one_where_it_does(model: Model):
    rows = form_rows(
        [
            trial(model, 16, Precision.FP32, 1.1, 0.90),
            trial(model, 64, Precision.FP32, 2.0, 0.955),
            trial(model, 64, Precision.INT8, 1.0, 0.95),
        ]
    )
    assert [(row.p50, row.on_frontier) for row in rows] == [
        ("1.000", True),
        ("1.100", False),
        ("2.000", True),
    ]
    assert "64x1" in rows[0].student
    assert rows[0].form == "openvino/int8, nncf"
    assert "ms a point" in rows[0].note


def test_an_int8_file_without_gain_says_why_and_what_was_only_timed_is_left_out(model: Model):
    lost = trial(model, 16, Precision.INT8, 1.2, 0.9, why="not faster than its fp32 parent")
    untrained = Trial(proposal=lost.proposal, verdict=Verdict.MEASURED, latency=lost.latency)
    (row,) = form_rows([lost, untrained])
    assert row.note == "not faster than its fp32 parent"


def test_an_exchange_is_told_with_its_rate():
    assert exchanged(EXCHANGE) == (
        "1 segment in float: 0.50 to 0.10 points lost for +0.020 ms, 0.0500 ms a point"
    )
