"""Perceptrons: rows and lists, their layers, their space, and the graph they ship as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgekd import students
from edgekd.stages.export import export
from edgekd.values.student import StageSpec, StudentSpec


def spec(rows: int = 1) -> StudentSpec:
    stages = (
        StageSpec(width=16, depth=2, kernel=1, expansion=1.0),
        StageSpec(width=8, depth=1, kernel=1, expansion=1.0),
    )
    return StudentSpec(family="mlp", resolution=rows, stem=24, stages=stages)


@pytest.mark.parametrize("rows", [1, 5])
def test_layers_are_those_of_the_module(rows: int):
    module = students.build(spec(rows), channels=3, classes=1)
    given: dict[str, int] = {}
    linear = {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear)}
    for name, one in linear.items():
        one.register_forward_hook(lambda _m, _i, out, name=name: given.__setitem__(name, out.numel()))
    module(torch.zeros(students.inputs(spec(rows), 3)["features"]))
    layers = students.layers(spec(rows), channels=3, classes=1)
    assert [layer.name for layer in layers] == list(linear) == list(given)
    for layer in layers:
        assert layer.activations == given[layer.name]
        assert layer.params == sum(one.numel() for one in linear[layer.name].parameters())
        assert layer.macs == linear[layer.name].weight.numel() * rows


def test_a_list_costs_its_length_in_products_and_its_weights_once():
    row, ten = (students.costs(spec(rows), channels=3, classes=1) for rows in (1, 10))
    assert ten[2] == pytest.approx(10 * row[2])
    assert ten[4] < 10 * row[4]


def test_items_of_a_list_are_scored_each_by_itself():
    module = students.build(spec(4), channels=3, classes=1).eval()
    lists = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    scores = module(lists)
    assert scores.shape == (2, 4)
    torch.testing.assert_close(module(lists[:, [2, 0, 3, 1]]), scores[:, [2, 0, 3, 1]])
    changed = lists.clone()
    changed[:, 1] += 1
    others = [0, 2, 3]
    torch.testing.assert_close(module(changed)[:, others], scores[:, others])
    assert (module(changed)[:, 1] != scores[:, 1]).all()


@pytest.mark.parametrize(("rows", "outputs"), [(1, 1), (1, 3), (4, 1)])
def test_it_ships_as_a_graph_that_computes_the_same(tmp_path: Path, rows: int, outputs: int):
    module = students.build(spec(rows), channels=3, classes=outputs, seed=5).eval()
    shape = students.inputs(spec(rows), 3)["features"]
    found = export(tmp_path, spec(rows), 3, outputs, None, 5)
    session = onnxruntime.InferenceSession(str(found.file.path), providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (given,) = session.run(None, {"features": inputs})
    with torch.no_grad():
        np.testing.assert_allclose(given, module(torch.from_numpy(inputs)).numpy(), rtol=1e-5, atol=1e-6)


def test_its_space_holds_thousands_and_is_not_searched_with_images():
    space = students.space_for(resolution=1, channels=10, classes=1, families=("mlp",))
    assert len(space) > 4000
    assert students.contains(space, students.smallest(space, "mlp"))
    assert space.resolutions == (1,)
    names = students.feature_names("mlp")
    assert len(students.features(spec(), channels=10, classes=1)) == len(names)
    assert "family_mlp" in names


def test_the_pool_can_be_tapped_for_rows_and_for_lists():
    for rows in (1, 4):
        module = students.build(spec(rows), channels=3, classes=1)
        seen: list[torch.Tensor] = []
        module.pool.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        module(torch.zeros(students.inputs(spec(rows), 3)["features"]))
        assert seen[0].shape == ((1, 8) if rows == 1 else (1, 4, 8))
