from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekd.backends.ort_layers import layers_in, layers_of
from edgekd.errors import BuildError


def node(name: str, took_us: Any, operator: str = "Conv", index: str = "0") -> dict[str, Any]:
    told = {"op_name": operator, "node_index": index, "output_type_shape": [{"float": [1, 4]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": took_us, "args": told}


RUN = {"cat": "Session", "name": "model_run", "dur": 9, "args": {}}
LOADING = {"cat": "Session", "name": "session_initialization", "dur": 9, "args": {}}


def test_the_last_passes_count_and_a_layer_takes_their_median():
    warmup = [node("a", 9000), node("b", 9000), RUN]
    passes = [[node("a", us), node("b", 2 * us), RUN] for us in (10, 500, 20)]
    first, second = layers_of([LOADING, *warmup, *(event for one in passes for event in one)], 3)
    assert (first.name, first.kind, first.output, first.time_ms) == ("a", "Conv", "float", 0.020)
    assert (second.name, second.time_ms) == ("b", 0.040)


def test_what_a_loop_repeats_adds_up_within_its_pass():
    (layer,) = layers_of([node("a", 10), node("a", 15), RUN], 1)
    assert layer.time_ms == pytest.approx(0.025)


def test_nodes_of_one_name_in_two_places_are_two_layers():
    found = layers_of([node("a", 10, index="1"), node("a", 15, index="2"), RUN], 1)
    assert [layer.time_ms for layer in found] == [0.010, 0.015]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[3]",
        "[[]]",
        "[" * 100_000,
        json.dumps([node("a", 10)]),  # cut off before the pass was over
        json.dumps([node("a", "soon"), RUN]),
        json.dumps([node("a", -1), RUN]),
        json.dumps([{**node("a", 10), "args": 3}, RUN]),
        json.dumps([node("a", 10), RUN]).replace("10", "NaN"),
        json.dumps([{**node("a", 10), "args": {"op_name": "Conv", "output_type_shape": [3]}}, RUN]),
    ],
)
def test_a_broken_profile_is_an_error(tmp_path: Path, text: str):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(BuildError, match="cannot be read"):
        layers_in(path, 1)


def test_a_profile_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(BuildError, match="cannot be read"):
        layers_in(tmp_path / "profile.json", 1)


def test_hostile_names_are_cut():
    (layer,) = layers_of([node("x" * 10_000, 1, operator="y" * 10_000), RUN], 1)
    assert (len(layer.name), len(layer.kind)) == (500, 500)
