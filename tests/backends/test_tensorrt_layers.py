from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from edgekd.backends import trt_layers
from edgekd.backends.trt_layers import layers_of
from edgekd.errors import BuildError
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from tests.contracts import models

TRACE = models.SHARED.parent / "traces" / "trt_layer_latency.json"

# As TensorRT 10's inspector prints it, and 11's: the layers of a small network, written for this test.
TEN = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
            "LayerType": "Reformat",
            "Inputs": [
                {"Name": "image", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}
            ],
            "Outputs": [
                {"Name": "r", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Channel major FP16 format"}
            ],
            "TacticValue": "0x0",
            "Metadata": "",
        },
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "c", "Format/Datatype": "Channel major FP16 format"}],
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16",
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        },
    ],
    "Bindings": ["image", "logits"],
}
ELEVEN = {
    "Layers": [
        {"Name": "conv1", "LayerType": "gemm", "Outputs": [{"DataType": "Half", "Format": "kLINEAR"}]}
    ],
    "I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8]}],
}
# Layers one by one on a small GPU, in ms: they sum to 0.41 where the engine took 0.23.
TIMES_MS = {TEN["Layers"][0]["Name"]: [0.30, 0.17, 0.17], "conv1 + relu1": [0.24, 0.24, 0.31]}


def test_the_layers_of_tensorrt_10_are_read():
    first, second = layers_of(json.dumps(TEN))
    assert (first.kind, first.tactic, first.time_ms) == ("Reformat", "", None)
    assert second.output == "Channel major FP16 format"
    assert second.tactic.startswith("sm80_xmma")
    assert "relu1" in second.origin


def test_the_layers_of_tensorrt_11_are_read():
    (layer,) = layers_of(json.dumps(ELEVEN))
    assert (layer.name, layer.kind, layer.output) == ("conv1", "gemm", "Half, kLINEAR")


def test_an_engine_without_details_still_has_names():
    assert layers_of('{"Layers": ["a", "b"]}') == (Layer(name="a"), Layer(name="b"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": [{}]}', "nan"]
)
def test_nonsense_is_an_error(text: str):
    with pytest.raises(BuildError, match="nothing of layers"):
        layers_of(text)


def test_hostile_names_are_cut():
    (layer,) = layers_of(json.dumps({"Layers": [{"Name": "x" * 10_000, "LayerType": 7, "Outputs": ["?"]}]}))
    assert (len(layer.name), layer.kind, layer.output) == (500, "", "")


def test_a_layers_time_is_its_median_and_no_total_is_offered():
    found = layers_of(json.dumps(TEN), TIMES_MS)
    assert [layer.time_ms for layer in found] == [0.17, 0.24]
    assert sum(layer.time_ms or 0.0 for layer in found) == pytest.approx(0.41)
    offered = {
        name for name, _ in inspect.getmembers(trt_layers, inspect.isfunction) if not name.startswith("_")
    }
    assert offered == {"layers_of"}
    assert not any(
        word in field.name for field in dataclasses.fields(Layer) for word in ("total", "sum", "latency")
    )


def test_a_request_is_itemised_by_clocks_and_knows_no_layers():
    assert not any("layer" in field.name for field in dataclasses.fields(Ledger))
    for name in ("tensorrt", "trt_session", "trt_build"):  # layer times go into the table and nowhere else
        source = Path(inspect.getfile(trt_layers)).with_name(f"{name}.py").read_text(encoding="utf-8")
        assert "sum(" not in source


@pytest.mark.skipif(not TRACE.is_file(), reason="the trace comes with the workplace, not with edgekd")
def test_a_recorded_trace_gives_a_table_and_its_sum_moves_with_what_is_looked_at():
    trace = json.loads(TRACE.read_text(encoding="utf-8"))
    times_ms = {name: [ms for ms, _ in passes] for name, passes in trace.items()}
    found = layers_of(json.dumps({"Layers": list(times_ms)}), times_ms)
    assert len(found) == len(times_ms) == 167
    assert all(layer.time_ms is not None for layer in found)
    idle = [layer for layer in found if not layer.time_ms]
    assert len(idle) > 50  # casts that were fused away are listed, and take nothing
