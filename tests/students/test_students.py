"""Families: every spec builds, folds and counts right."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd import students
from edgekd.errors import ConfigError
from edgekd.students.blocks import ConvNorm
from edgekd.values.student import StageSpec, StudentSpec

CLASSES = 10
FEW = settings(max_examples=12, deadline=None)

small_stages = st.builds(
    StageSpec,
    width=st.sampled_from([8, 16]),
    depth=st.integers(1, 2),
    kernel=st.sampled_from([3, 5]),
    expansion=st.sampled_from([0.5, 1.0, 2.0]),
)
small_specs = st.builds(
    StudentSpec,
    family=st.sampled_from(students.IMAGES),
    resolution=st.sampled_from([8, 12, 17]),
    stem=st.sampled_from([8, 16]),
    stages=st.lists(small_stages, min_size=1, max_size=4).map(tuple),
)


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret depends on it


def lived(module: nn.Module) -> nn.Module:
    """Give a fresh module the weights and statistics of one that was trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_(0.0, 0.5, generator=generator)
                one.running_var.uniform_(0.3, 2.0, generator=generator)
                one.weight.uniform_(0.5, 1.5, generator=generator)
                one.bias.normal_(0.0, 0.3, generator=generator)
        for name, parameter in module.named_parameters():
            if name.endswith("_scale"):
                parameter.uniform_(-1.5, 1.5, generator=generator)
    return module.eval()


def images(spec: StudentSpec, channels: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, channels, spec.resolution, spec.resolution, generator=generator)


@FEW
@given(spec=small_specs, channels=st.sampled_from([1, 3]))
def test_a_folded_student_answers_what_the_trained_one_does(spec: StudentSpec, channels: int):
    student = lived(students.build(spec, channels=channels, classes=CLASSES))
    folded = students.fold(student)
    x = images(spec, channels)
    with torch.no_grad():
        wanted, got = student(x), folded(x)
    assert wanted.shape == (2, CLASSES)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not any(isinstance(one, (nn.BatchNorm2d, ConvNorm)) for one in folded.modules())


@FEW
@given(spec=small_specs, channels=st.sampled_from([1, 3]))
def test_layers_are_those_of_the_folded_module(spec: StudentSpec, channels: int):
    folded = students.fold(students.build(spec, channels=channels, classes=CLASSES))
    calls: dict[str, int] = {}  # elements that each layer gave

    def watch(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            calls[name] = output.numel()

        return note

    modules = {n: m for n, m in folded.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    for name, module in modules.items():
        module.register_forward_hook(watch(name))
    folded(images(spec, channels, count=1))

    layers = students.layers(spec, channels=channels, classes=CLASSES)
    assert [layer.name for layer in layers] == list(calls)
    assert {layer.name: layer.activations for layer in layers} == calls
    for layer in layers:
        module = modules[layer.name]
        assert layer.params == sum(parameter.numel() for parameter in module.parameters())
        assert layer.macs == layer.activations * module.weight[0].numel()


def test_features_are_named_and_start_with_macs_and_params():
    spec = StudentSpec(
        family="residual",
        resolution=8,
        stem=8,
        stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),),
    )
    found = dict(zip(students.feature_names("residual"), students.features(spec, channels=1, classes=10)))
    macs = 64 * (9 * 8 + 2 * 9 * 8 * 8) + 80
    params = (9 * 8 + 8) + 2 * (9 * 64 + 8) + 90
    assert list(found)[:2] == ["log10_macs", "log10_params"]
    assert 10 ** found["log10_macs"] == pytest.approx(macs)
    assert 10 ** found["log10_params"] == pytest.approx(params)
    assert (found["family_residual"], found["family_inverted"]) == (1, 0)
    assert students.costs(spec, channels=1, classes=10)[:3] == (1.0, 4.0, macs / 1e6)


def test_features_are_as_many_as_their_names_in_every_family():
    for resolution in (8, 32, 224):
        space = students.space_for(resolution=resolution, channels=3, classes=5)
        for seed in range(10):
            spec = students.sample(space, chance(seed))
            row = students.features(spec, channels=3, classes=5)
            assert len(row) == len(students.feature_names("residual"))
            depthwise = dict(zip(students.feature_names("residual"), row))["macs_share_depthwise"]
            assert (depthwise > 0) == (spec.family == "inverted")


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone():
    spec = students.sample(students.space_for(resolution=8, channels=1, classes=10), chance(0))
    before = torch.random.get_rng_state()
    one, same, other = (students.build(spec, channels=1, classes=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [torch.cat([p.flatten() for p in module.parameters()]) for module in (one, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("family", students.IMAGES)
def test_every_weight_of_a_student_learns_and_the_pool_can_be_tapped(family: str):
    stage = StageSpec(width=16, depth=2, kernel=3, expansion=2.0)
    spec = StudentSpec(family=family, resolution=8, stem=8, stages=(stage, stage))
    student = students.build(spec, channels=1, classes=CLASSES).train()
    pooled: list[torch.Tensor] = []
    student.get_submodule("pool").register_forward_hook(lambda _m, _i, output: pooled.append(output))
    student(images(spec, 1, count=4)).square().sum().backward()
    (features,) = pooled
    assert features.shape == (4, student.get_submodule("classifier").in_features)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("resolution", [8, 9, 28, 32, 64, 65, 96, 224])
def test_no_feature_map_is_strided_below_two_by_two(resolution: int):
    space = students.space_for(resolution=resolution, channels=3, classes=2)
    for seed in range(20):
        spec = students.sample(space, chance(seed))
        *convolutions, _ = students.layers(spec, channels=3, classes=2)
        assert all(layer.activations >= 4 * layer.outputs for layer in convolutions)
        assert convolutions[-1].activations < spec.resolution**2 * convolutions[-1].outputs


@pytest.mark.parametrize(
    "change",
    [
        {"family": "residal"},
        {"stages": ()},
        {"resolution": 1},
        {"stem": 0},
        {"stages": (StageSpec(width=8, depth=1, kernel=4, expansion=1.0),)},
        {"stages": (StageSpec(width=8, depth=0, kernel=3, expansion=1.0),)},
        {"stages": (StageSpec(width=8, depth=1, kernel=3, expansion=0.0),)},
    ],
)
def test_a_spec_that_makes_no_network_is_refused(change: dict[str, object]):
    stage = StageSpec(width=8, depth=1, kernel=3, expansion=1.0)
    good = StudentSpec(family="residual", resolution=8, stem=8, stages=(stage,))
    bad = dataclasses.replace(good, **change)
    for use in (students.build, students.features):
        use(good, channels=1, classes=2)
        with pytest.raises(ConfigError):
            use(bad, channels=1, classes=2)
