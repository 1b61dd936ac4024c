"""Students: families of networks, the space of their specs, and what a spec amounts to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from edgekd.errors import ConfigError
from edgekd.students import counts, gru, inverted, maps, mlp, residual
from edgekd.students.blocks import fold
from edgekd.students.shapes import Layer, image_inputs, refuse_nonsense
from edgekd.students.space import contains, draw, image_space, neighbours, sample, smallest
from edgekd.values.codec import did_you_mean
from edgekd.values.student import Space, StudentSpec

__all__ = [
    "FAMILIES", "IMAGES", "Family", "build", "contains", "costs", "draw", "family_of", "feature_names", "features", "fold",
    "inputs", "layers", "neighbours", "outputs", "sample", "shipped", "smallest", "space_for",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """What tells one family from another; `outputs` is the width of its end, whatever that stands for."""

    build: Callable[[StudentSpec, int, int], nn.Module]  # spec, channels, outputs; the caller has seeded
    layers: Callable[
        [StudentSpec, int, int], tuple[Layer, ...]
    ]  # of the folded network, named as its modules
    # (resolution, channels, outputs, families) to what may be proposed; families with one of these can be searched
    # together, and `space_for` fills in their expansions.
    space: Callable[[int, int, int, tuple[str, ...]], Space]
    inputs: Callable[[StudentSpec, int], dict[str, tuple[int, ...]]]  # whole shapes by name, of one inference
    expansions: tuple[float, ...]
    output: str = "logits"  # name of the first output
    # Of a family that is called several times a sample: the module that ships, one step with its state. It takes the
    # inputs in order, and gives the output and then what each further input is to be in the next step.
    step: Callable[[nn.Module], nn.Module] | None = None
    integers: tuple[str, ...] = ()  # inputs that are int64; the others are float32


FAMILIES = {
    "residual": Family(
        build=residual.build,
        layers=residual.layers,
        space=image_space,
        inputs=image_inputs,
        expansions=residual.EXPANSIONS,
    ),
    "inverted": Family(
        build=inverted.build,
        layers=inverted.layers,
        space=image_space,
        inputs=image_inputs,
        expansions=inverted.EXPANSIONS,
    ),
    "residual_maps": Family(
        build=maps.residual_build,
        layers=maps.residual_layers,
        space=maps.space,
        inputs=image_inputs,
        expansions=residual.EXPANSIONS,
    ),
    "inverted_maps": Family(
        build=maps.inverted_build,
        layers=maps.inverted_layers,
        space=maps.space,
        inputs=image_inputs,
        expansions=inverted.EXPANSIONS,
    ),
    "mlp": Family(
        build=mlp.build,
        layers=mlp.layers,
        space=mlp.space,
        inputs=mlp.inputs,
        expansions=mlp.EXPANSIONS,
    ),
    "gru": Family(
        build=gru.build,
        layers=gru.layers,
        space=gru.space,
        inputs=gru.inputs,
        expansions=gru.EXPANSIONS,
        step=gru.step,
    ),
}
IMAGES = ("residual", "inverted")  # families that tell classes of images apart


def space_for(*, resolution: int, channels: int, classes: int, families: tuple[str, ...] = IMAGES) -> Space:
    """Return the students that may be proposed; of images more than a million.

    Args:
        resolution: as the task says: side of an image, letters of a text.
        channels: of the input.
        classes: width of the students' end.
        families: to choose from.

    Raises:
        ConfigError: a family is unknown, two cannot be searched together, or the resolution is too small.

    """
    if not families:
        raise ConfigError("there is no family to search", mend="name one in search.families")
    found = [family_of(name) for name in families]
    for name, family in zip(families, found):
        if family.space is not found[0].space:
            raise ConfigError(
                f"the families {families[0]!r} and {name!r} cannot be searched together",
                cause="they share no dimensions",
                mend="name one of them in search.families",
            )
    space = found[0].space(resolution, channels, classes, tuple(families))
    return replace(space, expansions={name: one.expansions for name, one in zip(families, found)})


def build(spec: StudentSpec, *, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """Return the student to train, initialised from the seed; `classes` is the width of its end.

    Submodule `pool` gives the pooled features (B, D) where there are any. The global random state is left as it was.
    """
    layers(spec, channels=channels, classes=classes)  # refuses what cannot be built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family_of(spec.family).build(spec, channels, classes)


@lru_cache(maxsize=8192)
def layers(spec: StudentSpec, *, channels: int, classes: int) -> tuple[Layer, ...]:
    """Return the layers of the folded student in order, named after their modules.

    Raises:
        ConfigError: the family is unknown, or no network can be built from the spec.

    """
    family = family_of(spec.family)
    refuse_nonsense(spec)
    return family.layers(spec, channels, classes)


def inputs(spec: StudentSpec, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of what a student takes, by name."""
    return family_of(spec.family).inputs(spec, channels)


def outputs(spec: StudentSpec, channels: int) -> tuple[str, ...]:
    """Name what the shipped student gives: its answer, and as `next_NAME` what a state is in the next step."""
    family = family_of(spec.family)
    if family.step is None:
        return (family.output,)
    return (family.output, *(f"next_{name}" for name in list(family.inputs(spec, channels))[1:]))


def shipped(module: nn.Module, spec: StudentSpec) -> nn.Module:
    """Return the form of a trained student that ships: folded, and one step where it is called step by step."""
    step = family_of(spec.family).step
    folded = fold(module)
    return folded if step is None else step(folded).eval()


def features(spec: StudentSpec, *, channels: int, classes: int) -> tuple[float, ...]:
    """Return numbers that predict latency and capacity, in the order of `feature_names(spec.family)`.

    The first is log10 of the multiply-accumulates of one inference, the second log10 of the parameters.
    """
    sized = layers(spec, channels=channels, classes=classes)
    one_hot = (float(spec.family == name) for name in _together_with(spec.family))
    return (*counts.numbers(sized, spec.resolution), *one_hot)


def costs(spec: StudentSpec, *, channels: int, classes: int) -> tuple[float, ...]:
    """Return what latency is a sum of, each with a price that the device sets.

    One start; layers to dispatch; dense, then depthwise multiply-accumulates in millions; elements read and
    written in millions.
    """
    return counts.costs(layers(spec, channels=channels, classes=classes))


def feature_names(family: str) -> tuple[str, ...]:
    """Name what `features()` returns for a student of a family, or of one that is searched with it."""
    return (*counts.NAMES, *(f"family_{name}" for name in _together_with(family)))


def family_of(name: str) -> Family:
    """Look a family up.

    Raises:
        ConfigError: there is none of this name.

    """
    if name not in FAMILIES:
        raise ConfigError(f"there is no family {name!r}", mend=did_you_mean(name, list(FAMILIES)))
    return FAMILIES[name]


def _together_with(family: str) -> tuple[str, ...]:
    """Return the families that can be searched together with one, itself among them."""
    space = family_of(family).space
    return tuple(name for name, one in FAMILIES.items() if one.space is space)
