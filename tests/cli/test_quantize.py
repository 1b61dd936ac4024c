"""What `edgekd quantize` shows: every form that was tried, what ships, and why int8 does not where it does not."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from edgekd.cli.quantize import laid_out
from edgekd.values.bundle import LatencySummary, summarise
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.outcome import Quantized
from edgekd.values.variant import Blamed, Exchange, Loss, Method, Quantization, Variant

NNCF = Quantization(method=Method.NNCF, symmetric=True, kept=("Conv_1",))
LOSS = Loss(divergence=1e-4, changed=0.002, drop=0.0004, samples=500)


def summary(ms: float) -> LatencySummary:
    conditions = Conditions(
        hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=()),
        software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
        load=Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0),
    )
    latency = Latency(
        samples_ms=(ms,) * 400,
        cpu_ms=(ms,) * 400,
        protocol=Protocol(),
        conditions=conditions,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    return summarise(latency, 0.95)


@pytest.fixture
def int8() -> Quantized:
    return Quantized(
        files={"out/net.openvino.int8.xml": "a" * 64},
        runtime="openvino",
        size_bytes=100_000,
        parent_size_bytes=400_000,
        latency_ms=summary(0.5),
        parent_latency_ms=summary(1.0),
        speedup=2.0,
        max_error=0.01,
        scale=1.0,
        changed_labels=1,
        samples=500,
        calibration_sha256="b" * 64,
        problems=(),
        quantization=NNCF,
        float_files={"out/net.fp32.onnx": "c" * 64},
        variants=(
            Variant(runtime="openvino", precision=Precision.FP32, p50_ms=1.0, parent_ms=1.0),
            Variant(
                runtime="openvino",
                precision=Precision.INT8,
                quantization=NNCF,
                p50_ms=0.5,
                parent_ms=1.0,
                loss=LOSS,
            ),
        ),
        blamed=(
            Blamed(segment="Conv_1", kind="Conv", why="its int8 kernel is slower", float_ms=0.1, int8_ms=0.3),
        ),
        exchange=Exchange(
            kept=("Conv_1",), before_ms=0.45, after_ms=0.5, before_points=0.6, after_points=0.1
        ),
        loss=LOSS,
    )


def shown(found: Quantized) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(laid_out(found))
    return console.export_text()


def test_what_was_tried_blamed_and_repaired_is_laid_out(int8: Quantized):
    text = shown(int8)
    assert "openvino/int8, nncf, 1 node float" in text
    assert "+0.04 points, 0.2% of labels" in text
    assert "Conv_1: its int8 kernel is slower (0.100 to 0.300 ms in the profile)" in text
    assert "0.1000 ms a point (Conv_1)" in text
    assert "2.00x as fast now" in text
    assert "out/net.fp32.onnx" in text
    assert "why not int8" not in text


def test_why_int8_does_not_ship_is_said(int8: Quantized):
    text = shown(
        replace(
            int8,
            precision=Precision.FP32,
            quantization=None,
            exchange=None,
            loss=None,
            why="openvino: no int8 form is faster than fp32",
        )
    )
    assert "why not int8" in text
    assert "no int8 form is faster than fp32" in text
    assert "nothing: it is the float file" in text
