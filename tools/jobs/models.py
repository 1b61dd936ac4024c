"""The teachers of the example jobs; a job names one as `models.py:FUNCTION`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resnet56() -> nn.Module:
    """The CIFAR ResNet of He et al. 2015 section 4.2 with 56 layers, for 3x32x32 and 10 classes."""
    return CifarResNet(blocks=9)


def resnet20() -> nn.Module:
    """The same with 20 layers."""
    return CifarResNet(blocks=3)


def digits_teacher() -> nn.Module:
    """A wide residual network (Zagoruyko and Komodakis 2016) for 1x8x8 and 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 80, 3, padding=1, bias=False),
        *(WideBlock(80, 80) for _ in range(3)),
        WideBlock(80, 160, stride=2),
        *(WideBlock(160, 160) for _ in range(2)),
        nn.BatchNorm2d(160),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, 10),
    )


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels; names as in akamaster/pytorch_resnet_cifar10, whose weights fit."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions; the shortcut is option A: every second pixel, zeros for the new channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.zeros = (channels - channels_in) // 2  # channels on either side

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.bn2(self.conv2(features))
        if self.zeros or self.stride > 1:
            strided = images[:, :, :: self.stride, :: self.stride]
            images = F.pad(strided, (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(features + images)


class WideBlock(nn.Module):
    """Norm, activation, convolution, twice."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            if channels_in != channels or stride > 1
            else None
        )

    def forward(self, images: Tensor) -> Tensor:
        active = F.relu(self.bn1(images))
        features = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return torch.add(features, images if self.shortcut is None else self.shortcut(active))


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
