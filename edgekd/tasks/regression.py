"""Regression: numbers from rows of features, the share of their variance that is explained.

Targets are standardised by the training rows, because losses weigh errors against the teacher's in those units; the
bundle puts predictions back into the targets' own.
"""

from __future__ import annotations

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

_FORMS = (
    "an .npz {features (N, F), values (N,) or (N, K)}, with columns, targets and split if you like; or a .csv whose "
    "last column is the value, and where a column `split` may say which rows are for the test"
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of features and their values, before they are divided."""

    name: str
    features: NDArray[np.float32]  # (N, F)
    values: NDArray[np.float32]  # (N, K), in their own units
    columns: tuple[str, ...]  # names of the features
    targets: tuple[str, ...]  # names of the values
    test: NDArray[np.bool_] | None = None  # the split it brings


@dataclass(frozen=True, kw_only=True, eq=False)
class TableRegression:
    """A table, divided, and how its rows become inputs and outputs become values again."""

    name: str
    train: Split  # samples float32 (N, F), labels float32 (N, K), standardised
    validation: Split
    test: Split
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    mean: tuple[float, ...]  # of the features
    std: tuple[float, ...]
    centre: tuple[float, ...]  # mean of the targets
    spread: tuple[float, ...]  # their standard deviation
    metric: str = "r2"
    kind: str = "regression"
    classes: tuple[str, ...] = ()
    resolution: int = 1
    families: tuple[str, ...] = ("mlp",)
    criterion: str = "squares"
    crop: int = 0
    flip: bool = False
    fingerprint: str = field(init=False)  # of the numbers and settings

    def __post_init__(self) -> None:
        settings = (self.columns, self.targets, self.mean, self.std, self.centre, self.spread, self.metric)
        parts = (self.train, self.validation, self.test)
        object.__setattr__(self, "fingerprint", fingerprint_of(settings, parts))

    @property
    def outputs(self) -> int:
        """One number a target."""
        return len(self.targets)

    @property
    def channels(self) -> int:
        """Features of a row."""
        return len(self.columns)

    @property
    def losses(self) -> Mapping[str, float]:
        """Imitation: best where labels have outliers, no worse where they have none (`tools/bench`, part D3)."""
        return {"mse": 1.0}

    def split(self, name: str) -> Split:
        """Return the part called train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def preprocess(self, resolution: int) -> Features:
        """Say how a row is standardised."""
        del resolution
        return Features(names=self.columns, mean=self.mean, std=self.std)

    def prepare(self, samples: NDArray[Any], resolution: int) -> NDArray[np.float32]:
        """Standardise rows (n, F)."""
        return prepare(np.asarray(samples), self.preprocess(resolution))

    def inputs(self, split: Split, resolution: int, limit: int | None = None) -> NDArray[np.float32]:
        """Standardise a split, or `split.spread(limit)`: (n, 1, F), a row an inference."""
        chosen = split if limit is None else split.spread(limit)
        return self.prepare(chosen.samples, resolution)[:, None]

    def answer_shape(self, resolution: int) -> tuple[int, ...]:
        """One number a target."""
        del resolution
        return (self.outputs,)

    def decoding(self, resolution: int) -> dict[str, Any]:
        """Return what puts an output back into the units of the targets, and their names."""
        del resolution
        return {"names": list(self.targets), "mean": list(self.centre), "std": list(self.spread)}

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Return R^2, the mean over the targets; 1 is perfect, 0 is what the labels' mean scores, and less is worse.

        A prediction that is not finite counts as far off as the labels are apart, or as the worst that is finite.
        """
        truth = labels.reshape(len(labels), -1).astype(np.float64)
        rows = outputs.reshape(truth.shape).astype(np.float64)
        finite = np.isfinite(rows)
        errors = np.square(np.where(finite, rows, truth) - truth)
        worst = np.maximum(np.square(np.ptp(truth, axis=0)), errors.max(axis=0))
        errors = np.where(finite, errors, worst)
        total = np.square(truth - truth.mean(axis=0)).sum(axis=0)
        told = np.where(total > 0, 1 - errors.sum(axis=0) / np.where(total > 0, total, 1.0), 0.0)
        return float(told.mean())


def load(section: TaskSection, *, beside: Path, cache: Path, seed: int = 0) -> TableRegression:
    """Read the table that `[task]` names.

    Raises:
        DataError: it cannot serve the task.

    """
    del cache  # nothing is decoded
    return from_table(open_table(section.data, beside), section=section, seed=seed)


def open_table(data: str, beside: Path) -> Table:
    """Read what `[task] data` names, before it is divided.

    Raises:
        DataError: nothing is there, or it is no table.

    """
    if data in BUILT_IN:
        return BUILT_IN[data]()
    path = tabular.file_of(data, beside, BUILT_IN, _FORMS)
    return _from_npz(data, path) if path.suffix == ".npz" else _from_csv(data, path)


def from_table(table: Table, *, section: TaskSection, seed: int = 0) -> TableRegression:
    """Divide a table and standardise its targets.

    Raises:
        DataError: it is too small, or a target is the same in every training row.

    """
    parts = tabular.divide(table.name, table.test, len(table.values), section, seed)
    mean, std = tabular.statistics(table.features[parts.train])
    flat = np.ptp(table.values[parts.train], axis=0) == 0
    if flat.any():
        raise DataError(
            f"{table.targets[int(flat.argmax())]!r} of {table.name} is the same in every training row",
            mend="give values that differ",
        )
    centre, spread = tabular.statistics(table.values[parts.train])
    labels = ((table.values.astype(np.float64) - centre) / spread).astype(np.float32)
    train, validation, test = (
        Split(samples=table.features[rows], labels=labels[rows])
        for rows in (parts.train, parts.validation, parts.test)
    )
    return TableRegression(
        name=table.name,
        columns=table.columns,
        targets=table.targets,
        mean=mean,
        std=std,
        centre=centre,
        spread=spread,
        train=train,
        validation=validation,
        test=test,
    )


def diabetes() -> Table:
    """Return the 442 patients that ship with scikit-learn: ten measurements, progression a year later."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Table(
        name="diabetes",
        features=bunch.data.astype(np.float32),
        values=bunch.target.astype(np.float32)[:, None],
        columns=tuple(str(name) for name in bunch.feature_names),
        targets=("progression",),
    )


BUILT_IN = {"diabetes": diabetes}


def _from_npz(data: str, path: Path) -> Table:
    arrays = read_arrays(path, _FORMS)
    features = tabular.numbers(path, arrays, "features", 2)
    several = "values" in arrays and arrays["values"].ndim == 2  # noqa: PLR2004 - (N, K)
    values = tabular.numbers(path, arrays, "values", 2 if several else 1)
    values = values.reshape(len(values), -1)
    if len(values) != len(features):
        raise DataError(f"{path} holds {len(features)} rows of features and {len(values)} of values")
    return Table(
        name=data,
        features=features,
        values=values,
        columns=tabular.names_of(path, arrays, "columns", features.shape[1]),
        targets=tabular.names_of(path, arrays, "targets", values.shape[1]),
        test=split_of(path, arrays, len(values)),
    )


def _from_csv(data: str, path: Path) -> Table:
    table = tabular.read_csv(path)
    test = split_of(path, table, len(next(iter(table.values()))))
    names = [name for name in table if name != tabular.SPLIT]
    if len(names) < 2:  # noqa: PLR2004 - a feature and a value
        raise DataError(f"{path} has {len(names)} columns", mend=f"give {_FORMS}")
    *columns, target = names
    return Table(
        name=data,
        features=np.stack([table[name] for name in columns], axis=1).astype(np.float32),
        values=table[target].astype(np.float32)[:, None],
        columns=tuple(columns),
        targets=(target,),
        test=test,
    )
