"""Students: families of networks, the space of their specs, and what a spec amounts to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from edgekd.errors import ConfigError
from edgekd.students import counts, inverted, residual
from edgekd.students.blocks import Network, fold
from edgekd.students.shapes import (
    BlockShape,
    Layer,
    block_shapes,
    last_side,
    refuse_nonsense,
    stem_layer,
)
from edgekd.students.space import contains, draw, neighbours, sample, smallest, space_of
from edgekd.values.codec import did_you_mean
from edgekd.values.student import Space, StudentSpec

__all__ = [
    "FAMILIES", "Family", "build", "contains", "costs", "draw", "feature_names", "features", "fold", "layers",
    "neighbours", "sample", "smallest", "space_for",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """What tells one family from another: its block, as a module and as layers."""

    block: Callable[[BlockShape], nn.Module]
    layers: Callable[[BlockShape], tuple[Layer, ...]]
    last: Callable[[int, int], Layer | None]  # of channels and side: a convolution before the pool
    expansions: tuple[float, ...]


FAMILIES = {
    "residual": Family(
        block=residual.Block,
        layers=residual.layers,
        last=residual.last,
        expansions=residual.EXPANSIONS,
    ),
    "inverted": Family(
        block=inverted.Block,
        layers=inverted.layers,
        last=inverted.last,
        expansions=inverted.EXPANSIONS,
    ),
}


def space_for(
    *, resolution: int, channels: int, classes: int, families: tuple[str, ...] = tuple(FAMILIES)
) -> Space:
    """Return the students that may be proposed for images of this side; more than a million.

    Raises:
        ConfigError: a family is unknown, or the images are smaller than 8 x 8.

    """
    expansions = {name: _family(name).expansions for name in families}
    return space_of(resolution=resolution, channels=channels, classes=classes, expansions=expansions)


def build(spec: StudentSpec, *, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """Return the student to train, initialised from the seed; images (B, C, r, r) to logits (B, classes).

    Submodule `pool` gives the pooled features (B, D). The global random state is left as it was.
    """
    sized = layers(spec, channels=channels, classes=classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(sized, tuple(block_shapes(spec)), _family(spec.family).block)


@lru_cache(maxsize=8192)
def layers(spec: StudentSpec, *, channels: int, classes: int) -> tuple[Layer, ...]:
    """Return the layers of the folded student in order, named after their modules.

    Raises:
        ConfigError: the family is unknown, or no network can be built from the spec.

    """
    family = _family(spec.family)
    refuse_nonsense(spec)
    blocks = (layer for shape in block_shapes(spec) for layer in family.layers(shape))
    last = family.last(spec.stages[-1].width, last_side(spec))
    pooled = last.outputs if last else spec.stages[-1].width
    classifier = Layer(name="classifier", inputs=pooled, outputs=classes)
    return (stem_layer(spec, channels), *blocks, *([last] if last else []), classifier)


def features(spec: StudentSpec, *, channels: int, classes: int) -> tuple[float, ...]:
    """Return numbers that predict latency and capacity, in the order of `feature_names()`.

    The first is log10 of the multiply-accumulates for one image, the second log10 of the parameters.
    """
    sized = layers(spec, channels=channels, classes=classes)
    one_hot = (float(spec.family == name) for name in FAMILIES)
    return (*counts.numbers(sized, spec.resolution), *one_hot)


def costs(spec: StudentSpec, *, channels: int, classes: int) -> tuple[float, ...]:
    """Return what latency is a sum of, each with a price that the device sets.

    One start; layers to dispatch; dense, then depthwise multiply-accumulates in millions; elements read and
    written in millions.
    """
    return counts.costs(layers(spec, channels=channels, classes=classes))


def feature_names() -> tuple[str, ...]:
    """Name what `features()` returns."""
    return (*counts.NAMES, *(f"family_{name}" for name in FAMILIES))


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"there is no family {name!r}", mend=did_you_mean(name, list(FAMILIES)))
    return FAMILIES[name]
