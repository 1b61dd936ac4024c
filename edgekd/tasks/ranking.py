"""Ranking: which items of a list matter to a query, by features of each query and item together; NDCG.

One inference is a query with its whole list, (1, L, F) -> (1, L), for three reasons. A user waits for the list, so its
latency is what a budget has to be about; a row alone takes so few microseconds that starting an inference would be all
that is measured. Losses on rankings compare the items of one list, so a sample has to be one. And a runtime multiplies
one matrix faster than L vectors. The rows of a list share the weights and do not see each other: shorter lists are
filled up, and the runner scores longer ones in parts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.runner.from_features import prepare
from edgekd.tasks import tabular
from edgekd.tasks.npz import read_arrays, split_of
from edgekd.tasks.task import Split, fingerprint_of
from edgekd.values.job import TaskSection
from edgekd.values.preprocess import Features

log = logging.getLogger(__name__)

TOP = 10  # of NDCG
ABSENT = -1  # relevance of a row that only fills a list up
_MOST = 30  # relevance; a gain is 2 ** relevance - 1
_POOL = 300  # items of the digits
_LENGTH = 50  # of a list of theirs
_FORMS = (
    "an .npz {features (Q, L, F), relevance (Q, L)}, with columns and split if you like; or a .csv with the columns "
    "`query` and `relevance`, features in all others, and perhaps `split`"
)


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Lists of items before they are divided, a query each."""

    name: str
    features: NDArray[np.float32]  # (Q, L, F)
    relevance: NDArray[np.int64]  # (Q, L): 0 and more, ABSENT where a list is shorter
    columns: tuple[str, ...]  # names of the features
    test: NDArray[np.bool_] | None = None  # the split it brings


@dataclass(frozen=True, kw_only=True, eq=False)
class ListRanking:
    """Lists, divided by query, and how they become inputs."""

    name: str
    train: Split  # samples float32 (Q, L, F), labels int64 (Q, L)
    validation: Split
    test: Split
    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int  # items of a list: L
    metric: str = f"ndcg@{TOP}"
    kind: str = "ranking"
    classes: tuple[str, ...] = ()
    outputs: int = 1  # score an item
    families: tuple[str, ...] = ("mlp",)
    criterion: str = "relevance"
    crop: int = 0
    flip: bool = False
    fingerprint: str = field(init=False)  # of the numbers and settings

    def __post_init__(self) -> None:
        settings = (self.columns, self.mean, self.std, self.resolution, self.metric)
        parts = (self.train, self.validation, self.test)
        object.__setattr__(self, "fingerprint", fingerprint_of(settings, parts))

    @property
    def channels(self) -> int:
        """Features of an item."""
        return len(self.columns)

    @property
    def losses(self) -> Mapping[str, float]:
        """What did best of the losses on rankings: `tools/bench`, part D5."""
        return {"listnet": 1.0}

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def preprocess(self, resolution: int) -> Features:
        """Say how an item's features are standardised."""
        del resolution
        return Features(names=self.columns, mean=self.mean, std=self.std)

    def prepare(self, samples: NDArray[Any], resolution: int) -> NDArray[np.float32]:
        """Standardise lists (n, L, F)."""
        return prepare(np.asarray(samples), self.preprocess(resolution))

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.float32]:
        """Standardise a split, or `split.spread(limit)`: (n, 1, L, F), a list an inference."""
        chosen = split if limit is None else split.spread(limit)
        return self.prepare(chosen.samples, resolution)[:, None]

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One score an item."""
        return (resolution,)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Return nothing: the largest score comes first."""
        del resolution
        return {}

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return NDCG@10, the mean over lists; a list with a score that is not finite counts 0."""
        scores = outputs.reshape(labels.shape)
        found = [ndcg(one, relevance, TOP) for one, relevance in zip(scores, labels)]
        return float(np.mean(found))


def ndcg(scores: NDArray[Any], relevance: NDArray[Any], top: int) -> float:
    """Return the normalised discounted cumulative gain of one list, with gains of 2^relevance - 1.

    Items of equal scores share the mean of their gains (McSherry and Najork 2008), so that a constant score is worth
    what a random order is.
    """
    present = relevance != ABSENT
    scores, gains = scores[present], 2.0 ** relevance[present] - 1
    if not np.isfinite(scores).all():
        return 0.0
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    shared = np.bincount(group, gains) / sizes  # by group, the highest score first
    discounts = 1 / np.log2(np.arange(2, min(top, len(gains)) + 2))
    reached = np.repeat(shared, sizes)[:top] @ discounts
    return float(reached / (np.sort(gains)[::-1][:top] @ discounts))


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> ListRanking:
    """Read the lists that `[task]` names.

    Raises:
        DataError: they cannot serve the task.

    """
    del cache  # nothing is decoded
    return from_lists(open_lists(section.data, beside), section=section, seed=seed)


def open_lists(data: str, beside: Path) -> Lists:
    """Read what `[task] data` names, before it is divided.

    Raises:
        DataError: nothing is there, or it holds no lists.

    """
    if data in BUILT_IN:
        return BUILT_IN[data]()
    path = tabular.file_of(data, beside, BUILT_IN, _FORMS)
    return _from_npz(data, path) if path.suffix == ".npz" else _from_csv(data, path)


def from_lists(lists: Lists, *, section: TaskSection, seed: int = 0) -> ListRanking:
    """Divide lists by query; those without a relevant item, or with nothing but such, say nothing and are left out.

    Raises:
        DataError: there are too few, or a relevance is negative or too large.

    """
    present = lists.relevance != ABSENT
    least, most = int(lists.relevance.min()), int(lists.relevance.max())
    if least < ABSENT or most > _MOST:
        raise DataError(
            f"a relevance of {lists.name} is {least if least < ABSENT else most}",
            mend=f"give whole numbers from 0 to {_MOST}",
        )
    told = lists.relevance.max(axis=1) > np.where(present, lists.relevance, most).min(axis=1)
    if not told.all():
        log.info("%d lists whose items are all alike are left out", int((~told).sum()))
    features, relevance = lists.features[told], lists.relevance[told]
    test = None if lists.test is None else lists.test[told]
    parts = tabular.divide(lists.name, test, len(relevance), section, seed)
    mean, std = tabular.statistics(features[parts.train][present[told][parts.train]])
    train, validation, test = (
        Split(samples=features[rows], labels=relevance[rows])
        for rows in (parts.train, parts.validation, parts.test)
    )
    return ListRanking(
        name=lists.name,
        columns=lists.columns,
        mean=mean,
        std=std,
        resolution=int(relevance.shape[1]),
        train=train,
        validation=validation,
        test=test,
    )


def digits_retrieval() -> Lists:
    """Return scikit-learn's digits as a search for the same digit.

    300 of the images are the items; each other image is a query, with a list of 50 items drawn for it. The features of
    a row are the pixels of the query, then the item's, in [0, 1]; the relevance is 1 where both show the same digit.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, digits = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    rng = np.random.Generator(np.random.Philox(key=0))
    order = rng.permutation(len(pixels))
    items, queries = order[:_POOL], order[_POOL:]
    shown = np.stack([rng.permutation(items)[:_LENGTH] for _ in queries])
    asked = np.broadcast_to(pixels[queries][:, None], (*shown.shape, pixels.shape[1]))
    return Lists(
        name="digits-retrieval",
        features=np.concatenate([asked, pixels[shown]], axis=2),
        relevance=(digits[shown] == digits[queries][:, None]).astype(np.int64),
        columns=tuple(f"{who}{at}" for who in ("query", "item") for at in range(pixels.shape[1])),
    )


BUILT_IN = {"digits-retrieval": digits_retrieval}


def _from_npz(data: str, path: Path) -> Lists:
    arrays = read_arrays(path, _FORMS)
    features = tabular.numbers(path, arrays, "features", 3)
    relevance = tabular.numbers(path, arrays, "relevance", 2)
    if relevance.shape != features.shape[:2]:
        raise DataError(f"`relevance` of {path} is {relevance.shape}, the lists are {features.shape[:2]}")
    return Lists(
        name=data,
        features=features,
        relevance=_whole(path, relevance),
        columns=tabular.names_of(path, arrays, "columns", features.shape[2]),
        test=split_of(path, arrays, len(features)),
    )


def _from_csv(data: str, path: Path) -> Lists:
    table = tabular.read_csv(path)
    columns = tuple(name for name in table if name not in ("query", "relevance", tabular.SPLIT))
    if not {"query", "relevance"} <= table.keys() or not columns:
        raise DataError(f"{path} has the columns {', '.join(table)}", mend=f"give {_FORMS}")
    queries = table["query"]
    _, firsts, places = np.unique(queries, return_index=True, return_inverse=True)
    rows = [np.flatnonzero(places == at) for at in range(len(firsts))]
    length = max(map(len, rows))
    filled = np.stack([np.resize(one, length) for one in rows])  # a short list repeats its rows
    present = np.stack([np.arange(length) < len(one) for one in rows])
    relevance = _whole(path, table["relevance"])[filled]
    features = np.stack([table[name] for name in columns], axis=1).astype(np.float32)
    split = {name: table[name][firsts] for name in table if name == tabular.SPLIT}
    return Lists(
        name=data,
        features=features[filled],
        relevance=np.where(present, relevance, ABSENT),
        columns=columns,
        test=split_of(path, split, len(rows)),
    )


def _whole(path: Path, relevance: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    if (relevance != np.rint(relevance)).any():
        raise DataError(f"a relevance of {path} is no whole number", mend="give 0, 1, 2 and so on")
    return relevance.astype(np.int64)
