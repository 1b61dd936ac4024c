"""Inputs for every loss in the table: what the formulas, the pitfalls and the identities are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from edgekd.distillation.knowledge import Batch
from edgekd.distillation.losses import LOSSES

ROWS, CLASSES = 6, 5
LABELS = Batch(labels=torch.tensor([0, 1, 2, 4, 3, 1]))


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Draw normal numbers in float64."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Example:
    loss: Callable[[Tensor, Tensor, Batch], Tensor]
    student: Tensor
    teacher: Tensor
    batch: Batch = LABELS

    def value(self) -> Tensor:
        return self.loss(self.student, self.teacher, self.batch)


def example(name: str, **settings: float) -> Example:
    """Give a loss something to work on, as its contract asks."""
    loss = LOSSES[name].loss
    if name in ("ail", "aht"):
        settings = {"eta": 9.0, **settings}
    bound = partial(loss, **settings) if settings else loss
    return Example(loss=bound, **_inputs(name))


def _inputs(name: str) -> dict[str, Tensor | Batch]:
    if name in _MAPS:
        return {"student": draw(1, ROWS, 3, 6, 6), "teacher": draw(2, ROWS, 3, 6, 6)}
    if name in _VECTORS:
        return {"student": draw(1, ROWS, 4), "teacher": draw(2, ROWS, 4)}
    return _SPECIAL[name]() if name in _SPECIAL else _logits()


def _logits() -> dict[str, Tensor | Batch]:
    return {"student": draw(1, ROWS, CLASSES, scale=2), "teacher": draw(2, ROWS, CLASSES, scale=2)}


def _numbers() -> dict[str, Tensor | Batch]:
    labels = draw(3, ROWS, 2)
    teacher = labels + draw(2, ROWS, 2, scale=0.5)
    teacher[0] += 50  # a label that is far from what the teacher says
    return {
        "student": draw(1, ROWS, 2),
        "teacher": teacher,
        "batch": Batch(labels=labels, outputs=labels + draw(4, ROWS, 2, scale=0.3)),
    }


def _tokens() -> dict[str, Tensor | Batch]:
    tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    return {
        "student": draw(1, 3, 5, 7),
        "teacher": draw(2, 3, 5, 7),
        "batch": Batch(labels=tokens, valid=valid),
    }


def _with_tokens_as_teacher() -> dict[str, Tensor | Batch]:
    given = _tokens()
    return {**given, "teacher": given["batch"].labels}


def _lists() -> dict[str, Tensor | Batch]:
    return {"student": draw(1, 4, 12), "teacher": draw(2, 4, 12), "batch": Batch(labels=torch.zeros(4))}


def _pixels() -> dict[str, Tensor | Batch]:
    valid = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    return {
        "student": draw(1, 2, 5, 3, 4),
        "teacher": draw(2, 2, 5, 3, 4),
        "batch": Batch(labels=torch.zeros(2), valid=valid),
    }


def _masks() -> dict[str, Tensor | Batch]:
    labels = torch.randint(5, (2, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels[:, :2] = 255  # nothing is said there
    return {"student": draw(1, 2, 5, 3, 4), "teacher": labels, "batch": Batch(labels=labels)}


def _boxes() -> dict[str, Tensor | Batch]:
    labels = torch.tensor([[[0, 0.1, 0.2, 0.5, 0.6, 0], [2, 0.5, 0.5, 0.9, 1.0, 0]]] * 2).double()
    return {"student": draw(1, 2, 3 + 4 * 8, 8, 8), "teacher": labels, "batch": Batch(labels=labels)}


def _edges() -> dict[str, Tensor | Batch]:
    valid = torch.tensor([True, True, False, True])
    return {
        "student": draw(1, 4, 4, 9),
        "teacher": draw(2, 4, 4, 9),
        "batch": Batch(labels=torch.zeros(4), valid=valid),
    }


_MAPS = {"fitnet", "at", "reviewkd", "mgd", "ickd", "cwd"}
_VECTORS = {"pooled", "directions", "embedding", "srd", "rkd", "sp", "cc", "pkt", "irg", "infonce", "experts"}
_SPECIAL: dict[str, Callable[[], dict[str, Tensor | Batch]]] = {
    "ce": lambda: {"student": draw(1, ROWS, CLASSES), "teacher": LABELS.labels},
    "cosface": lambda: {"student": draw(1, ROWS, CLASSES).tanh(), "teacher": LABELS.labels},
    "squares": lambda: {"student": draw(1, ROWS, 2), "teacher": draw(2, ROWS, 2)},
    "relevance": lambda: {
        "student": draw(1, 3, 5),
        "teacher": torch.tensor([[0, 2, 1, 0, -1], [1, 0, 0, 0, 0], [3, 3, 0, -1, -1]]),
    },
    "vid": lambda: {
        "student": torch.cat([draw(1, ROWS, 3, 6, 6), draw(5, ROWS, 3, 6, 6).exp()], 1),
        "teacher": draw(2, ROWS, 3, 6, 6),
    },
    "crd": lambda: {"student": draw(1, ROWS, 9), "teacher": draw(2, ROWS, 9)},
    "pixels": _pixels,
    "masks": _masks,
    "boxes": _boxes,
    "ld": _edges,
    "crosskd_boxes": _edges,
    "sequence": _with_tokens_as_teacher,
    **dict.fromkeys(("bounded", "rejecting", "ail", "aht", "differences"), _numbers),
    **dict.fromkeys(("listnet", "rank_distillation", "rrd", "rankdistil", "score_differences"), _lists),
    **dict.fromkeys(("word", "reverse", "gkd", "minillm"), _tokens),
}


def gradient(example: Example) -> Tensor:
    student = example.student.clone().requires_grad_()
    example.loss(student, example.teacher, example.batch).backward()
    return student.grad
