"""What learns beside the student, so that its tensors can be compared with the teacher's; it is never shipped.

An adapter is made of the shapes it has to match, and maps (students, teachers, batch) to (students, teachers). Its
parameters are in the optimizer and in gradient clipping, its state is in the training's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distillation.knowledge import Batch, Shapes, Tensors
from edgekd.errors import ConfigError

_MAP = 3  # dimensions of one sample: C, H, W
_VECTOR = 1
_STEEPEST = 1e-5  # least variance of VID, as its reference code


class Pairwise(nn.Module):
    """One module for each pair of taps, on the student's side; the teacher's tensors stay as they are."""

    def __init__(self, maps: Sequence[nn.Module], shapes: Shapes) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)
        self.sides = [shape[1:] for shape in shapes.teacher]

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Map each student's tensor to its teacher's shape."""
        mapped = (resized(one(tensor), side) for one, tensor, side in zip(self.maps, students, self.sides))
        return tuple(mapped), teachers


def project(shapes: Shapes) -> nn.Module:
    """Map widths: a linear layer for vectors, a 1 x 1 convolution for maps, which are pooled or scaled to fit."""
    return Pairwise([_widths(shapes, a, b) for a, b in _pairs(shapes)], shapes)


def regress(shapes: Shapes) -> nn.Module:
    """Map as FitNets' reference code: a convolution that meets the teacher's size, a norm, a ReLU."""
    return Pairwise([_regressor(shapes, a, b) for a, b in _pairs(shapes)], shapes)


def generate(shapes: Shapes, *, masked: float = 0.15) -> nn.Module:
    """Map widths, hide channels at random, and generate the teacher's map from the rest (MGD)."""
    return Pairwise([_generator(shapes, a, b, masked) for a, b in _pairs(shapes, _MAP)], shapes)


def head(shapes: Shapes) -> nn.Module:
    """Give each tapped stage a classifier of its own: separable convolution, pool, linear (OFA-KD)."""
    found = []
    for shape in shapes.student:
        _expect(shapes, shape, (_VECTOR, _MAP))
        width = shape[0]
        layers = [_separable(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()] if len(shape) == _MAP else []
        found.append(nn.Sequential(*layers, nn.Linear(width, shapes.classes)))
    return Heads(found)


class Heads(nn.Module):
    """One module for each of the student's taps."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Answer at every stage."""
        return tuple(one(tensor) for one, tensor in zip(self.heads, students)), teachers


class Fuse(nn.Module):
    """ReviewKD's fusion: from the deepest tap up, each level reviews those below it by attention (Chen et al. 2021)."""

    def __init__(self, shapes: Shapes, *, width: int = 64) -> None:
        super().__init__()
        pairs = _pairs(shapes, _MAP)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a[0], width, 1, bias=False), nn.BatchNorm2d(width)) for a, _ in pairs
        )
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in pairs[1:])
        self.leave = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, b[0], 3, padding=1, bias=False), nn.BatchNorm2d(b[0]))
            for _, b in pairs
        )
        self.sides = [b[1:] for _, b in pairs]

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Fuse the student's maps, given from shallow to deep."""
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for at in reversed(range(len(students))):
            here = self.enter[at](students[at])
            if deeper is not None:
                above = F.interpolate(deeper, here.shape[2:], mode="nearest")
                share = torch.sigmoid(self.attend[at](torch.cat([here, above], dim=1)))
                here = here * share[:, :1] + above * share[:, 1:]
            deeper = here
            fused.append(resized(self.leave[at](here), self.sides[at]))
        return tuple(reversed(fused)), teachers


class Standardise(nn.Module):
    """A linear map, and a norm without weights on both sides (Miles and Mikolajczyk 2024)."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.maps = nn.ModuleList(_widths(shapes, a, b) for a, b in _pairs(shapes))
        norms = [nn.BatchNorm1d if len(shape) == _VECTOR else nn.BatchNorm2d for shape in shapes.teacher]
        self.students = nn.ModuleList(norm(b[0], affine=False) for norm, b in zip(norms, shapes.teacher))
        self.teachers = nn.ModuleList(norm(b[0], affine=False) for norm, b in zip(norms, shapes.teacher))

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Give both sides mean 0 and variance 1 over the batch."""
        mapped = [resized(one(s), t.shape[2:]) for one, s, t in zip(self.maps, students, teachers)]
        return (
            tuple(norm(tensor) for norm, tensor in zip(self.students, mapped)),
            tuple(norm(tensor) for norm, tensor in zip(self.teachers, teachers)),
        )


class Embed(nn.Module):
    """A linear embedding of one width for both sides."""

    def __init__(self, shapes: Shapes, *, width: int = 128) -> None:
        super().__init__()
        self.students = nn.ModuleList(nn.Linear(math.prod(shape), width) for shape in shapes.student)
        self.teachers = nn.ModuleList(nn.Linear(math.prod(shape), width) for shape in shapes.teacher)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Embed flattened tensors."""
        return (
            tuple(one(tensor.flatten(1)) for one, tensor in zip(self.students, students)),
            tuple(one(tensor.flatten(1)) for one, tensor in zip(self.teachers, teachers)),
        )


class Proxies(nn.Module):
    """A learned direction for each class; what comes out are the cosines (B, classes) of embeddings (B, D) with them."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for shape in shapes.student:
            _expect(shapes, shape, (_VECTOR,))
        self.directions = nn.ParameterList(torch.randn(shapes.classes, shape[0]) for shape in shapes.student)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Compare directions; the labels stay as they are."""
        found = (F.normalize(one) @ F.normalize(kept).T for one, kept in zip(students, self.directions))
        return tuple(found), teachers


class Gaussian(nn.Module):
    """Three 1 x 1 convolutions to the teacher's mean, and a learned variance a channel (Ahn et al. 2019)."""

    def __init__(self, shapes: Shapes, *, variance: float = 5.0) -> None:
        super().__init__()
        pairs = _pairs(shapes)
        self.means = nn.ModuleList(_three(shapes, a, b) for a, b in pairs)
        start = math.log(math.expm1(variance - _STEEPEST))
        self.scales = nn.ParameterList(torch.full((b[0],), start) for _, b in pairs)

    def forward(self, students: Tensors, teachers: Tensors, _batch: Batch) -> tuple[Tensors, Tensors]:
        """Return means, then variances, along dimension 1."""
        found = []
        for mean, scale, student, teacher in zip(self.means, self.scales, students, teachers):
            centre = resized(mean(student), teacher.shape[2:])
            variance = (F.softplus(scale) + _STEEPEST).view(1, -1, *[1] * (centre.ndim - 2)).expand_as(centre)
            found.append(torch.cat([centre, variance], dim=1))
        return tuple(found), teachers


class Experts(nn.Module):
    """Experts from the student's width to the teacher's, one chosen by a Gumbel softmax (Kang et al. 2020, DE).

    Its temperature falls from 1 to `coldest` over the training.
    """

    def __init__(self, shapes: Shapes, *, experts: int = 30, coldest: float = 1e-10) -> None:
        super().__init__()
        given, wanted = shapes.student[0][-1], shapes.teacher[0][-1]
        hidden = (given + wanted) // 2
        self.gate = nn.Linear(wanted, experts)  # the teacher's vector chooses
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, wanted))
            for _ in range(experts)
        )
        self.coldest = coldest

    def forward(self, students: Tensors, teachers: Tensors, batch: Batch) -> tuple[Tensors, Tensors]:
        """Map vectors (B, D) of the student, or those of lists (B, L, D)."""
        temperature = max(self.coldest**batch.progress, torch.finfo(students[0].dtype).tiny)
        choice = F.gumbel_softmax(self.gate(teachers[0]), tau=temperature, dim=-1)  # (..., experts)
        said = torch.stack([expert(students[0]) for expert in self.experts], dim=-2)
        return ((choice[..., None] * said).sum(dim=-2),), teachers


def resized(tensor: Tensor, side: Sequence[int]) -> Tensor:
    """Pool a map that is larger than `side`, scale one that is smaller; leave vectors alone."""
    if tensor.ndim <= _MAP or tuple(tensor.shape[2:]) == tuple(side):
        return tensor
    if tensor.shape[2] >= side[0] and tensor.shape[3] >= side[1]:
        return F.adaptive_avg_pool2d(tensor, (side[0], side[1]))
    return F.interpolate(tensor, tuple(side), mode="bilinear")


def _pairs(shapes: Shapes, *forms: int) -> list[tuple[torch.Size, torch.Size]]:
    """Pair the taps' shapes.

    Raises:
        ConfigError: a pair is not two vectors or two maps.

    """
    pairs = list(zip(shapes.student, shapes.teacher))
    for student, teacher in pairs:
        _expect(shapes, student, forms or (_VECTOR, _MAP))
        _expect(shapes, teacher, (len(student),))
    return pairs


def _expect(shapes: Shapes, shape: torch.Size, forms: tuple[int, ...]) -> None:
    if len(shape) not in forms:
        words = {_VECTOR: "vectors (D)", _MAP: "maps (C, H, W)"}
        wanted = " or ".join(words.get(form, f"{form} dimensions") for form in forms)
        raise ConfigError(
            f"the loss `{shapes.name}` cannot match the tensors that are tapped",
            cause=f"one has the shape {tuple(shape)} a sample, where {wanted} are compared",
            mend="tap two vectors, or two maps, of student and teacher",
        )


def _widths(shapes: Shapes, student: torch.Size, teacher: torch.Size) -> nn.Module:
    _expect(shapes, teacher, (len(student),))
    if len(student) == _VECTOR:
        return nn.Linear(student[0], teacher[0])
    return nn.Conv2d(student[0], teacher[0], 1)


def _regressor(shapes: Shapes, student: torch.Size, teacher: torch.Size) -> nn.Module:
    if len(student) == _VECTOR:
        return _widths(shapes, student, teacher)
    given, wanted, old, new = student[0], teacher[0], student[1], teacher[1]
    conv: nn.Module
    if old == 2 * new:
        conv = nn.Conv2d(given, wanted, 3, stride=2, padding=1)
    elif new == 2 * old:
        conv = nn.ConvTranspose2d(given, wanted, 4, stride=2, padding=1)
    elif old >= new:
        conv = nn.Conv2d(given, wanted, 1 + old - new)
    else:
        conv = nn.Conv2d(given, wanted, 1)  # and scaled after it
    return nn.Sequential(conv, nn.BatchNorm2d(wanted), nn.ReLU())


def _generator(shapes: Shapes, student: torch.Size, teacher: torch.Size, masked: float) -> nn.Module:
    width = teacher[0]
    generation = (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
    return nn.Sequential(_widths(shapes, student, teacher), HideChannels(masked), *generation)


class HideChannels(nn.Module):
    """Set a random share of a map's channels to 0, others for each sample; the rest keep their size."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, maps: Tensor) -> Tensor:
        """Hide channels of (B, C, H, W)."""
        kept = torch.rand(maps.shape[:2], device=maps.device) >= self.share
        return maps * kept[..., None, None]


def _separable(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def _three(shapes: Shapes, student: torch.Size, teacher: torch.Size) -> nn.Module:
    first = _widths(shapes, student, teacher)
    second, third = _widths(shapes, teacher, teacher), _widths(shapes, teacher, teacher)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
