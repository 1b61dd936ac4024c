"""The building blocks that families share, each with a form to train and a form to ship."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.students.shapes import BlockShape, Layer

# Of the last norm of a residual branch. Small, so that a block starts near the identity (Goyal et al. 2017);
# not zero, because untrained students are quantised and timed, and kernels of zeros would flatter them.
QUIET = 0.2


class ConvNorm(nn.Module):
    """Convolution and batch norm, which fold into one convolution with bias."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.stride, self.groups = layer.stride, layer.groups
        self.kernel = nn.Parameter(_kaiming(layer, layer.kernel))
        self.norm = nn.BatchNorm2d(layer.outputs)

    def weight(self) -> Tensor:
        """Return the kernel that convolves, shaped (outputs, inputs / groups, k, k)."""
        return self.kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        padding = self.kernel.shape[-1] // 2
        out: Tensor = self.norm(F.conv2d(x, self.weight(), None, self.stride, padding, 1, self.groups))
        return out

    def folded(self) -> nn.Conv2d:
        """Return one convolution with bias that does the same in evaluation mode (Ding et al. 2021, eq. 3)."""
        weight, norm = self.weight().detach(), self.norm
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - tracked
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        outputs, inputs, side, _ = weight.shape
        conv = nn.Conv2d(
            inputs * self.groups, outputs, side, self.stride, side // 2, groups=self.groups, device="meta"
        )
        conv.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
        conv.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * scale).to(weight.dtype))
        return conv


class RepConvNorm(ConvNorm):
    """A k x k convolution with a parallel 1 x 1 branch and a batch norm, which fold into one convolution.

    The branches of RepVGG (Ding et al. 2021) are summed as kernels before they convolve, each scaled by
    channel in place of its own norm (OREPA, Hu et al. 2022): a step then costs what a plain convolution does,
    where branches of activations cost 40 % more on a CPU.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.point = nn.Parameter(_kaiming(layer, 1))
        # One-dimensional, as a norm's, so that recipes which spare norms weight decay spare these too.
        self.kernel_scale = nn.Parameter(torch.ones(layer.outputs))
        self.point_scale = nn.Parameter(torch.ones(layer.outputs))

    def weight(self) -> Tensor:
        """Return the sum of the branches' kernels, the 1 x 1 in the middle of the k x k."""
        rim = self.kernel.shape[-1] // 2
        point = F.pad(self.point * self.point_scale[:, None, None, None], (rim, rim, rim, rim))
        return self.kernel * self.kernel_scale[:, None, None, None] + point


class Network(nn.Module):
    """Stem, stages of blocks, perhaps a last convolution, global average pool, linear classifier."""

    def __init__(
        self,
        layers: Sequence[Layer],  # from stem to classifier
        shapes: Sequence[BlockShape],
        block: Callable[[BlockShape], nn.Module],
    ) -> None:
        super().__init__()
        self.stem = conv_norm_relu(layers[0])
        stages = range(shapes[-1].stage + 1)
        self.stages = nn.Sequential(
            *(nn.Sequential(*(block(shape) for shape in shapes if shape.stage == stage)) for stage in stages)
        )
        last = [layer for layer in layers[1:-1] if layer.stage is None]
        self.last = conv_norm_relu(last[0]) if last else nn.Sequential()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(layers[-1].inputs, layers[-1].outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, r, r) to logits (B, classes)."""
        logits: Tensor = self.classifier(self.pool(self.last(self.stages(self.stem(x)))))
        return logits


def conv_norm_relu(layer: Layer) -> nn.Sequential:
    """Return a convolution, its norm and a ReLU; the convolution is at `.conv`."""
    return nn.Sequential(OrderedDict(conv=ConvNorm(layer), relu=nn.ReLU(inplace=True)))


def fold(module: nn.Module) -> nn.Module:
    """Return a copy for inference: every branch and batch norm folded into a convolution with bias."""
    replaced = [one for name, one in module.named_modules() if name and isinstance(one, ConvNorm)]
    tensors = {id(tensor): tensor for one in replaced for tensor in (*one.parameters(), *one.buffers())}
    shipped = copy.deepcopy(
        module, tensors
    )  # those are not copied: what holds them is gone after the next line
    _fold_children(shipped)
    shipped.eval()
    return shipped.requires_grad_(requires_grad=False)


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, child.folded())
        else:
            _fold_children(child)


def _kaiming(layer: Layer, side: int) -> Tensor:
    """Draw a kernel that keeps the variance of what a ReLU gave (He et al. 2015)."""
    inputs = layer.inputs // layer.groups
    return torch.randn(layer.outputs, inputs, side, side) * math.sqrt(2.0 / (inputs * side * side))
