"""Networks that end in maps: the image families' blocks, and a light decoder up to a fourth of the image's side."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.students import inverted, residual
from edgekd.students.blocks import ConvNorm, conv_norm_relu
from edgekd.students.shapes import (
    CHANNEL_STEP,
    BlockShape,
    Layer,
    block_shapes,
    halved,
    stem_layer,
)
from edgekd.students.space import image_space
from edgekd.values.student import Space, StudentSpec

STRIDE = 4  # pixels of the image's side for one of the maps'

_STAGES = 4  # at a 4th, an 8th, a 16th and a 32nd of the image's side
_DEEPEST = 32
_WIDEST = 64  # channels of the decoder
# What a logit starts from. Softmax does not see it; of sigmoids, nearly all of which are to say no, it spares the first
# steps (RetinaNet, Lin et al. 2017, section 4.1).
_START = -4.0

_Blocks = Callable[[BlockShape], tuple[Layer, ...]]


class MapsNetwork(nn.Module):
    """Stem and stages; from the deepest stage up, each is added to the one below, enlarged (Lin et al. 2017, FPN)."""

    def __init__(
        self,
        layers: tuple[Layer, ...],
        shapes: tuple[BlockShape, ...],
        block: Callable[[BlockShape], nn.Module],
    ) -> None:
        super().__init__()
        self.stem = conv_norm_relu(layers[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(shape) for shape in shapes if shape.stage == stage))
            for stage in range(_STAGES)
        )
        side_ways = [one for one in layers if one.name.startswith("laterals.")]
        self.laterals = nn.ModuleList(ConvNorm(one) for one in reversed(side_ways))
        sides = [one.side for one in reversed(side_ways)]
        self.enlarge = nn.ModuleList(_enlarged(above // below) for above, below in itertools.pairwise(sides))
        self.relu = nn.ReLU()
        head = [one for one in layers if one.name.startswith("head.")]
        self.head = nn.Sequential(*(conv_norm_relu(one) for one in head))
        self.classifier = nn.Conv2d(layers[-1].inputs, layers[-1].outputs, 1)
        assert self.classifier.bias is not None  # noqa: S101 - Conv2d has one unless told otherwise
        nn.init.constant_(self.classifier.bias, _START)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, r, r) to logits (B, outputs, r / 4, r / 4)."""
        features, kept = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            kept.append(features)
        merged = self.laterals[-1](kept[-1])
        for at in reversed(range(len(kept) - 1)):
            merged = self.enlarge[at](merged) + self.laterals[at](kept[at])
        maps: Tensor = self.classifier(self.head(self.relu(merged)))
        return maps


def space(resolution: int, channels: int, outputs: int, families: tuple[str, ...]) -> Space:
    """Return the students for images of this side, and of no other: their maps must be as large as the teacher's.

    Raises:
        ConfigError: the side is not a multiple of 32.

    """
    _refuse_odd(resolution)
    found = image_space(resolution, channels, outputs, families)
    widths = tuple(tuple(CHANNEL_STEP * at * 2**stage for at in range(1, 9)) for stage in range(_STAGES))
    return dataclasses.replace(found, resolutions=(resolution,), widths=widths)


def _build(
    spec: StudentSpec,
    channels: int,
    outputs: int,
    *,
    blocks: _Blocks,
    block: Callable[[BlockShape], nn.Module],
) -> nn.Module:
    return MapsNetwork(_layers(spec, channels, outputs, blocks=blocks), tuple(block_shapes(spec)), block)


def _layers(spec: StudentSpec, channels: int, outputs: int, *, blocks: _Blocks) -> tuple[Layer, ...]:
    """Return the layers of the folded network in the order in which they run.

    Raises:
        ConfigError: it has not four stages, or the image's side is not a multiple of 32.

    """
    _refuse_odd(spec.resolution)
    if len(spec.stages) != _STAGES:
        raise ConfigError(f"no network can be built from {spec}", mend=f"give {_STAGES} stages")
    shapes = tuple(block_shapes(spec))
    width = min(_WIDEST, spec.stages[1].width)
    ends = [[one for one in shapes if one.stage == stage][-1] for stage in range(_STAGES)]
    laterals = [
        Layer(name=f"laterals.{at}", inputs=end.outputs, outputs=width, side=halved(end.side, end.stride))
        for at, end in enumerate(ends)
    ]
    side = laterals[0].side
    dense = blocks is residual.block_layers
    filters = Layer(
        name="head.0.conv", inputs=width, outputs=width, side=side, kernel=3, groups=1 if dense else width
    )
    mixing = () if dense else (Layer(name="head.1.conv", inputs=width, outputs=width, side=side),)
    return (
        stem_layer(spec, channels),
        *(layer for shape in shapes for layer in blocks(shape)),
        *reversed(laterals),
        filters,
        *mixing,
        Layer(name="classifier", inputs=width, outputs=outputs, side=side),
    )


def _enlarged(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=float(factor), mode="nearest") if factor > 1 else nn.Identity()


def _refuse_odd(resolution: int) -> None:
    if resolution < 1 or resolution % _DEEPEST:
        raise ConfigError(
            f"networks that end in maps take images of a multiple of {_DEEPEST} pixels a side",
            cause=f"the resolution is {resolution}",
            mend=f"set task.resolution to {max(1, round(resolution / _DEEPEST)) * _DEEPEST}",
        )


residual_layers = partial(_layers, blocks=residual.block_layers)
residual_build = partial(_build, blocks=residual.block_layers, block=residual.Block)
inverted_layers = partial(_layers, blocks=inverted.block_layers)
inverted_build = partial(_build, blocks=inverted.block_layers, block=inverted.Block)
