"""Networks that end in maps."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgekd import students
from edgekd.errors import ConfigError
from edgekd.stages.export import export
from edgekd.students.blocks import ConvNorm
from edgekd.students.space import contains, sample, smallest
from edgekd.values.student import StageSpec, StudentSpec

FAMILIES = ("residual_maps", "inverted_maps")
OUTPUTS = 11


def spec_of(family: str, resolution: int = 64) -> StudentSpec:
    stages = tuple(
        StageSpec(width=width, depth=depth, kernel=3, expansion=1.0)
        for width, depth in ((8, 1), (16, 2), (24, 1), (32, 1))
    )
    return StudentSpec(family=family, resolution=resolution, stem=8, stages=stages)


def lived(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_(0.0, 0.5, generator=generator)
                one.running_var.uniform_(0.3, 2.0, generator=generator)
    return module.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("resolution", [32, 64, 96])
def test_maps_have_a_fourth_of_the_side_and_a_folded_network_gives_the_same(family: str, resolution: int):
    module = lived(students.build(spec_of(family, resolution), channels=3, classes=OUTPUTS))
    folded = students.fold(module)
    x = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = module(x), folded(x)
    assert wanted.shape == (2, OUTPUTS, resolution // 4, resolution // 4)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not any(isinstance(one, (nn.BatchNorm2d, ConvNorm)) for one in folded.modules())


def sides_of(folded: nn.Module, convolutions: dict[str, nn.Conv2d], resolution: int) -> dict[str, int]:
    sides: dict[str, int] = {}
    for name, one in convolutions.items():
        one.register_forward_pre_hook(lambda _, given, name=name: sides.update({name: given[0].shape[2]}))
    folded(torch.zeros(1, 1, resolution, resolution))
    return sides


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_the_folded_module(family: str):
    for spec in (spec_of(family), spec_of(family, 32)):
        folded = students.fold(students.build(spec, channels=1, classes=OUTPUTS))
        convolutions = {name: one for name, one in folded.named_modules() if isinstance(one, nn.Conv2d)}
        layers = {one.name: one for one in students.layers(spec, channels=1, classes=OUTPUTS)}
        assert layers.keys() == convolutions.keys()
        sides = sides_of(folded, convolutions, spec.resolution)
        for name, layer in layers.items():
            one = convolutions[name]
            found = (
                one.in_channels,
                one.out_channels,
                one.kernel_size[0],
                one.stride[0],
                one.groups,
                sides[name],
            )
            assert found == (
                layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.groups, layer.side,
            ), name  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_onnx_file_gives_the_same_maps(family: str, tmp_path: Path):
    spec = spec_of(family)
    model = export(tmp_path, spec, 1, OUTPUTS, None, 0)
    session = onnxruntime.InferenceSession(model.file.path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    (maps,) = session.run(None, {"images": images})
    with torch.no_grad():
        wanted = students.build(spec, channels=1, classes=OUTPUTS, seed=0).eval()(torch.from_numpy(images))
    assert maps.shape == (1, OUTPUTS, 16, 16)
    np.testing.assert_allclose(maps, wanted.numpy(), atol=1e-4)


def test_all_sides_are_the_teachers_and_both_families_are_searched_together():
    space = students.space_for(resolution=64, channels=1, classes=OUTPUTS, families=FAMILIES)
    assert space.resolutions == (64,)
    assert len(space) > 1e6
    rng = random.Random(0)  # noqa: S311 - no secret depends on it
    for spec in (sample(space, rng), smallest(space, "inverted_maps")):
        assert contains(space, spec)
        features = students.features(spec, channels=1, classes=OUTPUTS)
        assert len(features) == len(students.feature_names(spec.family))
        assert np.isfinite(features).all()


def test_maps_and_classifiers_are_not_searched_together():
    with pytest.raises(ConfigError, match="cannot be searched together"):
        students.space_for(resolution=64, channels=1, classes=OUTPUTS, families=("residual", "residual_maps"))


def test_sides_that_do_not_divide_and_other_stages_are_refused():
    with pytest.raises(ConfigError, match="multiple of 32"):
        students.space_for(resolution=80, channels=1, classes=OUTPUTS, families=FAMILIES)
    with pytest.raises(ConfigError, match="multiple of 32"):
        students.build(spec_of("residual_maps", 80), channels=1, classes=OUTPUTS)
    three = StudentSpec(
        family="residual_maps", resolution=64, stem=8, stages=spec_of("residual_maps").stages[:3]
    )
    with pytest.raises(ConfigError, match="no network"):
        students.build(three, channels=1, classes=OUTPUTS)
