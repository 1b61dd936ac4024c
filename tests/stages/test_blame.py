"""Segments are blamed by the names that runtimes make of a graph's own."""

from __future__ import annotations

import pytest

from edgekd.stages.blame import blame
from edgekd.values.layer import Layer
from edgekd.values.variant import Segment


def segment(name: str, *more: str, tensors: tuple[str, ...]) -> Segment:
    return Segment(name=name, kind="Conv", nodes=(name, *more), tensors=tensors)


SEGMENTS = (
    segment("Conv_4", "Relu_5", tensors=("t4", "t5")),
    segment("Conv_8", "Add_13", tensors=("t8", "t13")),
    segment("Conv_12", tensors=("t12",)),
)
# As ONNX Runtime 1.32 names them: in float by the tensor, in int8 by the node and a counter.
FLOAT = (
    Layer(name="t5_nchwc", kind="Conv", output="float", time_ms=0.10),
    Layer(name="t13_nchwc", kind="Conv", output="float", time_ms=0.10),
    Layer(name="t12_nchwc", kind="Conv", output="float", time_ms=0.10),
    Layer(name="ReorderOutput", kind="ReorderOutput", output="float", time_ms=0.5),
)


def test_each_layer_counts_for_the_segment_whose_name_it_bears():
    own = (
        Layer(name="Conv_4_token_1", kind="QLinearConv", output="uint8", time_ms=0.15),
        Layer(name="Conv_8_token_5", kind="QLinearConv", output="uint8", time_ms=0.04),
        Layer(name="t8_DequantizeLinear", kind="DequantizeLinear", output="float", time_ms=0.08),
        Layer(name="Conv_12", kind="FusedConv", output="float", time_ms=0.11),
        Layer(name="t12_QuantizeLinear", kind="QuantizeLinear", output="uint8", time_ms=0.01),
    )
    blamed, saved = blame(SEGMENTS, FLOAT, own)
    assert [one.segment for one in blamed] == ["Conv_4", "Conv_8", "Conv_12"]
    assert [one.why for one in blamed] == [
        "its int8 kernel is slower",
        "the conversions around it cost more than it saves",
        "it runs in float, between conversions",
    ]
    assert blamed[0].lost_ms == pytest.approx(0.05)
    assert saved["Conv_8"] == pytest.approx(-0.02)


def test_openvinos_names_are_understood_and_what_gained_is_not_blamed():
    parent = (
        Layer(name="Conv_4/WithoutBiases", kind="Convolution", tactic="brgconv_avx512_f32", time_ms=0.10),
        Layer(name="Conv_12/WithoutBiases", kind="Convolution", tactic="brgconv_avx512_f32", time_ms=0.02),
    )
    own = (
        Layer(name="Conv_4/WithoutBiases", kind="Convolution", tactic="brgconv_avx512_I8", time_ms=0.03),
        Layer(name="Conv_12/WithoutBiases", kind="Convolution", tactic="brgconv_avx512_I8", time_ms=0.02),
        Layer(name="Conv_12_abcd_acdb_Conv_8", kind="Reorder", tactic="reorder_I8", time_ms=0.01),
    )
    blamed, saved = blame(SEGMENTS, parent, own)
    assert [(one.segment, one.why) for one in blamed] == [
        ("Conv_12", "the conversions around it cost more than it saves")
    ]
    assert saved["Conv_4"] == pytest.approx(0.07)


def test_a_name_within_another_is_not_mistaken_for_it():
    own = (Layer(name="Conv_40", kind="QLinearConv", time_ms=9.0),)
    assert blame(SEGMENTS, FLOAT, own)[0] == ()


def test_layers_without_times_blame_nobody():
    untimed = tuple(Layer(name=one.name, kind=one.kind) for one in FLOAT)
    assert blame(SEGMENTS, untimed, untimed)[0] == ()
