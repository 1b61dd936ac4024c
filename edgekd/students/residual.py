"""Plain residual networks of dense convolutions, which saturate vector and tensor units."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.students.blocks import QUIET, ConvNorm, Network, RepConvNorm
from edgekd.students.shapes import BlockShape, Layer, block_shapes, halved, image_layers
from edgekd.values.student import StudentSpec

EXPANSIONS = (0.5, 1.0, 1.5)


class Block(nn.Module):
    """Two k x k convolutions beside a shortcut (He et al. 2016), each with a branch that folds away."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        first, second, *shortcut = block_layers(shape)
        self.first = RepConvNorm(first)
        self.first_relu = nn.ReLU(inplace=True)
        self.second = RepConvNorm(second)
        nn.init.constant_(self.second.norm.weight, QUIET)
        self.shortcut = ConvNorm(shortcut[0]) if shortcut else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.relu(self.second(self.first_relu(self.first(x))) + self.shortcut(x))
        return out


def build(spec: StudentSpec, channels: int, outputs: int) -> nn.Module:
    """Return the network to train: images (B, C, r, r) to logits (B, outputs)."""
    return Network(layers(spec, channels, outputs), tuple(block_shapes(spec)), Block)


def layers(spec: StudentSpec, channels: int, outputs: int) -> tuple[Layer, ...]:
    """Return the layers of the folded network."""
    return image_layers(spec, channels, outputs, block_layers, last)


def block_layers(shape: BlockShape) -> tuple[Layer, ...]:
    """Return the block's layers once folded."""
    name, stage, stride = shape.name, shape.stage, shape.stride
    first = Layer(
        name=f"{name}.first", inputs=shape.inputs, outputs=shape.inner,
        side=shape.side, kernel=shape.kernel, stride=stride, stage=stage,
    )  # fmt: skip
    second = Layer(
        name=f"{name}.second", inputs=shape.inner, outputs=shape.outputs,
        side=halved(shape.side, stride), kernel=shape.kernel, stage=stage,
    )  # fmt: skip
    shortcut = Layer(
        name=f"{name}.shortcut", inputs=shape.inputs, outputs=shape.outputs,
        side=shape.side, stride=stride, stage=stage,
    )  # fmt: skip
    return (first, second) if shape.keeps_shape else (first, second, shortcut)


def last(channels: int, side: int) -> None:
    """Return nothing: the blocks' output is pooled as it is."""
