"""Inverted residual networks of depthwise convolutions, which need few operations."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.students.blocks import QUIET, ConvNorm, Network, RepConvNorm, conv_norm_relu
from edgekd.students.shapes import BlockShape, Layer, block_shapes, halved, image_layers
from edgekd.values.student import StudentSpec

EXPANSIONS = (2.0, 4.0, 6.0)
_LAST = 2  # channels that are pooled / channels of the last stage


class Block(nn.Module):
    """Widen by 1 x 1, filter each channel alone, narrow by 1 x 1 (MobileNetV2, Sandler et al. 2018)."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        expand, depthwise, project = block_layers(shape)
        self.expand = conv_norm_relu(expand)
        self.depthwise = RepConvNorm(depthwise)
        self.relu = nn.ReLU(inplace=True)
        self.project = ConvNorm(project)
        self.residual = shape.keeps_shape
        if self.residual:
            nn.init.constant_(self.project.norm.weight, QUIET)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.project(self.relu(self.depthwise(self.expand(x))))
        return out + x if self.residual else out


def build(spec: StudentSpec, channels: int, outputs: int) -> nn.Module:
    """Return the network to train: images (B, C, r, r) to logits (B, outputs)."""
    return Network(layers(spec, channels, outputs), tuple(block_shapes(spec)), Block)


def layers(spec: StudentSpec, channels: int, outputs: int) -> tuple[Layer, ...]:
    """Return the layers of the folded network."""
    return image_layers(spec, channels, outputs, block_layers, last)


def block_layers(shape: BlockShape) -> tuple[Layer, ...]:
    """Return the block's layers once folded."""
    name, stage, stride, inner = shape.name, shape.stage, shape.stride, shape.inner
    expand = Layer(
        name=f"{name}.expand.conv", inputs=shape.inputs, outputs=inner, side=shape.side, stage=stage
    )
    depthwise = Layer(
        name=f"{name}.depthwise", inputs=inner, outputs=inner, groups=inner,
        side=shape.side, kernel=shape.kernel, stride=stride, stage=stage,
    )  # fmt: skip
    project = Layer(
        name=f"{name}.project", inputs=inner, outputs=shape.outputs,
        side=halved(shape.side, stride), stage=stage,
    )  # fmt: skip
    return expand, depthwise, project


def last(channels: int, side: int) -> Layer:
    """Return the 1 x 1 convolution before the pool.

    Blocks end without a ReLU: without this layer the last block and the classifier would be one linear map.
    """
    return Layer(name="last.conv", inputs=channels, outputs=_LAST * channels, side=side)
