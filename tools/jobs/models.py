"""The teachers of the example jobs; a job names one as `models.py:FUNCTION`."""

from __future__ import annotations

import itertools

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


def scenes_teacher() -> nn.Module:
    """A detector for 1x64x64 and ten classes, with four edges of eight places each."""
    return MapsTeacher(channels=1, outputs=10 + 4 * 8, width=48, blocks=1)


def cells_teacher() -> nn.Module:
    """A detector for 3x160x160 and three classes, with four edges of eight places each."""
    return MapsTeacher(channels=3, outputs=3 + 4 * 8, width=32, blocks=1)


def masks_teacher() -> nn.Module:
    """A segmenter for 1x64x64 and eleven classes."""
    return MapsTeacher(channels=1, outputs=11, width=48, blocks=1)


class MapsTeacher(nn.Module):
    """Residual stages down to a 32nd of the side, and a feature pyramid (Lin et al. 2017) up to a fourth."""

    def __init__(self, channels: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                WideBlock(before, after, stride=2), *(WideBlock(after, after) for _ in range(blocks))
            )
            for before, after in zip([width, *widths], widths)
        )
        pyramid = 2 * width
        self.laterals = nn.ModuleList(nn.Conv2d(after, pyramid, 1) for after in widths)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Sequential(
            *(
                part
                for _ in range(2)
                for part in (
                    nn.Conv2d(pyramid, pyramid, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(pyramid),
                    nn.ReLU(),
                )
            )
        )
        self.answers = nn.Conv2d(pyramid, outputs, 1)
        nn.init.constant_(
            self.answers.bias, -4.0
        )  # nearly every cell is to say no; a softmax does not see it

    def forward(self, images: Tensor) -> Tensor:
        features, kept = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            kept.append(features)
        merged = self.laterals[-1](kept[-1])
        for lateral, below in zip(reversed(self.laterals[:-1]), reversed(kept[:-1])):
            merged = self.enlarge(merged) + lateral(below)
        return self.answers(self.head(merged))


def keywords_teacher() -> nn.Module:
    """A wide residual network for spectrograms 1x32x32 and ten words."""
    width = 40
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        WideBlock(width, width, stride=2),
        WideBlock(width, width),
        WideBlock(width, 2 * width, stride=2),
        WideBlock(2 * width, 2 * width),
        WideBlock(2 * width, 4 * width, stride=2),
        WideBlock(4 * width, 4 * width),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def letters_teacher() -> nn.Module:
    """A recurrent network that reads text in ASCII: 95 signs that can be printed, line ends and tabs."""
    return Reader(letters=97, embedded=64, width=384)


class Reader(nn.Module):
    """Gated recurrent units (Cho et al. 2014) over letters (B, T), to logits (B, T, letters) of what follows each."""

    def __init__(self, letters: int, embedded: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, embedded)
        self.gru = nn.GRU(embedded, width, batch_first=True)
        self.end = nn.Linear(width, letters)

    def forward(self, letters: Tensor) -> Tensor:
        return self.end(self.gru(self.embed(letters))[0])

    def step(self) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
        """Return what reads a single letter, and what it takes: its latency is what a student's is held against."""
        return ReaderStep(self), {"letter": (1, self.end.out_features), "state": (1, 1, self.gru.hidden_size)}


class ReaderStep(nn.Module):
    """A letter, all 0 but one, and a state, to logits and the next state."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, letter: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        features, after = self.reader.gru((letter @ self.reader.embed.weight)[:, None], state)
        return self.reader.end(features[:, 0]), after


def diabetes_teacher() -> nn.Module:
    """A wide perceptron for rows of ten features and one value, with dropout: 319 patients are few."""
    return perceptron(10, (1024, 1024, 1024, 1024), dropout=0.3)


def retrieval_teacher() -> nn.Module:
    """A wide perceptron that scores the rows of a list (B, L, 128), each by itself: (B, L)."""
    return nn.Sequential(perceptron(128, (512, 512), dropout=0.1), nn.Flatten())


def perceptron(inputs: int, widths: tuple[int, ...], *, dropout: float) -> nn.Sequential:
    """Linear layers, each with a ReLU, to one number a row."""
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def pairs_teacher() -> nn.Module:
    """Convolutions for 1x20x20, to an embedding of 64 numbers; the halves of the image are pooled apart."""
    widths = (1, 40, 40, 80, 80, 160)
    layers: list[nn.Module] = []
    for at, (before, width) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if at in (1, 3) else []
    return nn.Sequential(
        *layers, nn.AvgPool2d((5, 2), stride=(5, 2)), nn.Flatten(), nn.Linear(2 * widths[-1], 64)
    )
