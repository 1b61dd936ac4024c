"""What a rung of the parity ladder is held against, and how far it may depart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ModelError
from edgekd.stages.looking import Arrays, Rows
from edgekd.stages.match import Match
from edgekd.values.artifact import Artifact
from edgekd.values.ladder import Rung
from edgekd.values.model import Precision, TensorSpec

_MOST_CHANGED = 0.2  # of the labels: what int8 may change on real inputs, as in `stages.verify`
_LEAST_LABELLED = 10  # rows, below which a share of changed labels says nothing

# Of an output's scale, by the coarser arithmetic of two rungs.
OUTPUT_LIMITS = {Precision.FP32: 1e-5, Precision.FP16: 0.05, Precision.BF16: 0.05, Precision.INT8: 0.25}
# What one layer may add by itself. Sums in another order differ by 1e-6; fp16 keeps 11 bits, bf16 8, int8 about 7.
LAYER_LIMITS = {Precision.FP32: 1e-5, Precision.FP16: 5e-3, Precision.BF16: 0.03, Precision.INT8: 0.06}
COARSER = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides whether a rung holds."""

    limit: float | None  # the user's own, of an output's scale: then nothing else decides
    real: bool  # whether the inputs are: noise lies nowhere near what int8 was calibrated on, its labels mean nothing


def judged(name: str, against: str, found: Match, precision: Precision, rules: Rules) -> Rung:
    """Return the rung with its verdict; `precision` is the coarser of the two that were compared."""
    limit = OUTPUT_LIMITS[precision] if rules.limit is None else rules.limit
    passed, changed = found.relative_error <= limit, found.changed_labels
    if rules.limit is None and changed is not None:
        if precision is Precision.FP32:
            passed = passed and not changed
        elif precision is Precision.INT8 and rules.real and found.samples >= _LEAST_LABELLED:
            passed = math.isfinite(found.max_error) and changed <= _MOST_CHANGED * found.samples
    return Rung(
        name=name,
        against=against,
        passed=passed,
        output=found.output,
        error=found.relative_error,
        limit=limit,
        changed_labels=changed,
        samples=found.samples,
    )


def alike(wanted: Arrays, found: Arrays) -> tuple[Arrays, Arrays]:
    """Cut both to the rows that both have."""
    count = min(rows_in(wanted), rows_in(found))
    return {name: one[:count] for name, one in wanted.items()}, {n: one[:count] for n, one in found.items()}


def rows_in(outputs: Mapping[str, NDArray[Any]]) -> int:
    """Count rows."""
    return len(next(iter(outputs.values())))


def worst_rows(wanted: Arrays, found: Arrays) -> list[int]:
    """Return the rows in which any output departs, the worst first; then the others."""
    errors = np.zeros(rows_in(wanted))
    for one, other in zip(wanted.values(), found.values()):
        with np.errstate(invalid="ignore"):
            gaps = np.abs(one.astype(np.float64) - other.astype(np.float64)).reshape(len(one), -1).max(axis=1)
        scale = float(np.nan_to_num(np.abs(one.astype(np.float64)), posinf=0.0).max()) or 1.0
        errors = np.maximum(errors, np.nan_to_num(gaps / scale, nan=np.inf))
    return [int(at) for at in np.argsort(-errors, kind="stable")]


def rows_at(rows: Rows, places: Sequence[int], folder: Path) -> dict[str, Artifact]:
    """Copy some rows of each input, in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for at, (name, file) in enumerate(rows.items()):
        path = folder / f"{at}.npy"
        held = np.load(file.verified(), mmap_mode="r", allow_pickle=False)
        np.save(path, held[[place for place in places if place < len(held)]])
        kept[name] = Artifact.of(path)
    return kept


def matched(specs: tuple[TensorSpec, ...], own: tuple[TensorSpec, ...], paths: list[Path]) -> dict[str, str]:
    """Return the first model's input for each of this one's: by name, else by place.

    Raises:
        ModelError: they take different things.

    """
    forms = {spec.name: (spec.dtype, spec.shape) for spec in specs}
    if forms == {spec.name: (spec.dtype, spec.shape) for spec in own}:
        return {spec.name: spec.name for spec in own}
    if [(spec.dtype, spec.shape) for spec in own] == list(forms.values()):
        return {spec.name: name for spec, name in zip(own, forms)}
    takes = [
        " and ".join(f"{one.name} {one.dtype} {'x'.join(map(str, one.shape))}" for one in side)
        for side in (specs, own)
    ]
    raise ModelError(
        f"{paths[0]} and {paths[-1]} take different inputs",
        cause=f"{takes[0]}; {takes[1]}",
        mend="compare models of the same inputs; --shape settles dimensions that are left open",
    )
