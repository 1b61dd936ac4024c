"""Small tables and lists, drawn."""

from __future__ import annotations

import numpy as np

from edgekd.tasks.ranking import Lists
from edgekd.tasks.regression import Table


def table(count: int = 80, targets: int = 2) -> Table:
    rng = np.random.default_rng(0)
    features = rng.normal(5, 3, (count, 4)).astype(np.float32)
    values = (features @ rng.normal(size=(4, targets)) + rng.normal(0, 0.1, (count, targets))) * 100 + 30
    return Table(
        name="drawn",
        features=features,
        values=values.astype(np.float32),
        columns=("a", "b", "c", "d"),
        targets=tuple(f"y{at}" for at in range(targets)),
    )


def lists(count: int = 40, length: int = 7) -> Lists:
    rng = np.random.default_rng(0)
    relevance = np.stack([rng.permutation(np.arange(length) % 4) for _ in range(count)])
    relevance[::5, -2:] = -1  # shorter lists
    features = rng.normal(size=(count, length, 3)) + relevance[..., None]
    return Lists(
        name="drawn",
        features=features.astype(np.float32),
        relevance=relevance.astype(np.int64),
        columns=("a", "b", "c"),
    )
