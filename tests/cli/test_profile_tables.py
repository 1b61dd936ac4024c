"""What `edgekd profile --layers` shows and gives: the longest layers, and a latency that is not their sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from edgekd import pipeline
from edgekd.cli.profile_tables import layer_table, profiled, profiled_json
from edgekd.pipeline import single
from edgekd.timing.conditions import conditions
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.layer import Layer, LayerTable
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

IDLE = Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0)


def table(*layers: Layer) -> LayerTable:
    latency = Latency(
        samples_ms=(0.2,) * 400,
        cpu_ms=(0.2,) * 400,
        protocol=Protocol(),
        conditions=conditions(IDLE),
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    return LayerTable(
        model_sha256="a" * 64,
        runtime="tensorrt",
        precision=Precision.FP16,
        threads=1,
        passes=50,
        layers=layers,
        latency=latency,
    )


def shown(found: LayerTable) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(layer_table(found))
    return captured.get()


def test_the_longest_layers_come_first_and_the_file_s_own_latency_stands_beside_their_sum() -> None:
    layers = [
        Layer(name=f"conv{at}", kind="Conv", output="Half", time_ms=0.01 * (at + 1)) for at in range(20)
    ]
    text = shown(table(*layers))
    assert "15 of 20 layers" in text
    assert text.index("conv19") < text.index("conv18") < text.index("conv5")
    assert "conv4 " not in text
    assert "9.5%" in text  # 0.20 of 2.10 ms
    assert "the whole file takes p50 0.200 ms" in text
    assert "add up to 2.100 ms, which is no latency" in text


def test_layers_that_no_clock_saw_are_listed_as_they_run_and_names_from_a_board_cannot_write_on_the_terminal() -> (
    None
):
    text = shown(table(Layer(name="first\x1b[2Jx" + "y" * 500), Layer(name="[bold]second[/bold]")))
    assert "\x1b[2J" not in text
    assert text.index("first") < text.index("[bold]second[/bold]")
    assert "y" * 70 not in text


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_profile_with_layers_gives_them_with_their_shares_and_a_summary(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))
    profile = Profile(name="test", description="", runtimes={runtime: (Precision.FP32,)})
    target = Target(profile=profile, device="local", runtimes=(runtime,), threads=1)
    path = models.conv_net(tmp_path / "net.onnx")
    found = pipeline.profile(path, target, layers=True)
    told = json.loads(json.dumps(profiled_json(found)))
    (one,) = told["layers"]
    assert one["runtime"] == told["runtime"] == runtime
    assert one["latency_ms"]["p50"] > 0
    assert "latency" not in one  # no thousand samples
    assert sum(layer["share"] or 0.0 for layer in one["layers"]) == pytest.approx(1.0)
    assert one["sum_of_layers_ms"] == pytest.approx(sum(layer["time_ms"] or 0.0 for layer in one["layers"]))
    assert {"Conv", "Convolution"} & {layer["kind"] for layer in one["layers"]}
    console = Console(width=120)
    with console.capture() as captured:
        console.print(profiled(found))
    assert "which is no latency" in captured.get()
    assert profiled_json(pipeline.profile(path, target))["layers"] == []
