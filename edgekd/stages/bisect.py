"""Find the first layer at which one form of a model departs from another.

Every layer of the one is given the other's values in place of its inputs, in one run of a copy that is cut between all
layers. What a layer then departs by is its own doing, however wrong the layers before it are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import EdgekdError
from edgekd.stages.looking import Form, Rows, Seen, Workshop, see
from edgekd.stages.pairing import paired
from edgekd.values.artifact import Artifact
from edgekd.values.ladder import Blame
from edgekd.values.watch import GraphLayer

_MOST_BYTES = 256 << 20  # of all tensors that are looked at at once
_MOST_ROWS = 2
_UNKNOWN = 1 << 18  # elements of a tensor whose size depends on its inputs
_MOST_ROUNDS = 6  # each looks into one part of the part before
_MOST_BLAMES = 10
_OUTLIER, _MOST_LIMITS = 3.0, 4.0
_LEAST_RANK, _LEAST_VALUES = 4, 16  # (rows, B, C, ...), and values of a channel


@dataclass(frozen=True, kw_only=True)
class Found:
    """What looking inside came to."""

    blames: tuple[Blame, ...] = ()  # layers beyond the limit in order, or the one that adds the most
    layers: int = 0  # that were held against a counterpart
    problem: str = ""  # why none can be named
    before: tuple[str, str] = ("", "")  # tensors of both sides that the first of them follows; empty: nothing
    at: tuple[str, str] = ("", "")  # its own


def first_bad(
    workshop: Workshop, reference: Form, other: Form, rows: Mapping[str, Rows], folder: Path, *, limit: float
) -> Found:
    """Name the layers of `other` that depart from `reference` by themselves.

    Where not all tensors fit into memory at once, evenly spread ones are looked at first, and then those in the first
    part that departs, and so on down to a layer.

    Args:
        workshop: takes the models apart.
        reference: what is right.
        other: what departs from it.
        rows: inputs by the names of each, under "reference" and "other".
        folder: for copies and tensors.
        limit: what a layer may depart by, see `departure`.

    """
    try:
        own = list(workshop.graph(reference.model, reference.shapes).layers)
        others = list(workshop.graph(other.model, other.shapes).layers)
        count = _rows_for(own, _count(rows["reference"]))
        few = {side: _first(rows[side], count, folder / side) for side in ("reference", "other")}
        for round_ in range(_MOST_ROUNDS):
            place = folder / f"round{round_}"
            seen = see(
                workshop, reference, _thinned(own, count), few["reference"], folder=place / "reference"
            )
            held = held_against(
                workshop, seen, other, few["other"], place, limit=limit, layers=_thinned(others, count)
            )
            whole = len(seen) == len(own) and len(_thinned(others, count)) == len(others)
            part = None if whole else _part(held, own, others)
            if part is None:
                return held
            own, others = part
    except EdgekdError as error:
        return Found(problem=f"{error.what}: {error.cause}".rstrip(": ")[:300])
    return held


def held_against(
    workshop: Workshop,
    seen: Sequence[Seen],
    other: Form,
    rows: Rows,
    folder: Path,
    *,
    limit: float,
    layers: Sequence[GraphLayer],
) -> Found:
    """Name those of the `layers` that depart by themselves from what was seen in the reference on the same rows.

    Raises:
        ModelError: the other cannot be taken apart, or its copy cannot be run.

    """
    looked = see(workshop, other, layers, rows, folder=folder / "as-run")
    pairs = [(seen[one], looked[two]) for one, two in paired(seen, looked) if looked[two].layer.cuttable]
    if not pairs:
        return Found(problem="no layer of the one could be told to be a layer of the other")
    given = {two.layer.tensor: one.values.reshape(two.values.shape) for one, two in pairs}
    kept = [two.layer for _, two in pairs]
    alone = see(workshop, other, kept, rows, folder=folder / "alone", given=given)
    blames = [_blame(one, two, by_itself.values, limit) for (one, two), by_itself in zip(pairs, alone)]
    blames = [replace(one, limit=_ordinary(blames, limit)) for one in blames]
    bad = [one for one in blames if one.stands_out] or [max(blames, key=lambda one: one.own_error)]
    first = blames.index(bad[0])
    return Found(
        blames=tuple(bad[:_MOST_BLAMES]),
        layers=len(pairs),
        before=(pairs[first - 1][0].layer.tensor, pairs[first - 1][1].layer.tensor) if first else ("", ""),
        at=(pairs[first][0].layer.tensor, pairs[first][1].layer.tensor),
    )


def _part(
    held: Found, own: list[GraphLayer], others: list[GraphLayer]
) -> tuple[list[GraphLayer], list[GraphLayer]] | None:
    """Return the layers in which a departure begins, where some of them were not looked at yet."""
    if not held.blames or not held.blames[0].stands_out:
        return None
    parts = [_between(layers, before, at) for layers, before, at in zip((own, others), held.before, held.at)]
    if len(parts[0]) == len(own) or min(map(len, parts)) <= 1:
        return None
    return parts[0], parts[1]


def _between(layers: list[GraphLayer], before: str, at: str) -> list[GraphLayer]:
    names = [one.tensor for one in layers]
    return layers[names.index(before) + 1 if before else 0 : names.index(at) + 1]


def _blame(reference: Seen, as_run: Seen, alone: NDArray[np.generic], limit: float) -> Blame:
    layer = as_run.layer
    other = reference.layer.name if reference.layer.name != layer.name else ""
    return Blame(
        layer=layer.name,
        operator=layer.operator,
        own_error=departure(reference.values, alone),
        error=departure(reference.values, as_run.values),
        limit=limit,
        counterpart=other,
        module=reference.module or layer.origin,
        source=reference.source,
    )


def _ordinary(blames: Sequence[Blame], limit: float) -> float:
    """Return what a layer may depart by: where all are rounded coarsely, three times what is ordinary, within reason."""
    ordinary = statistics.median(one.own_error for one in blames)
    return min(max(limit, _OUTLIER * ordinary), _MOST_LIMITS * limit)


def departure(reference: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return how far a tensor (rows, B, C, ...) departs: the largest of three shares.

    Of the norm; half of that of the channel that departs most, held against an ordinary one where it is quieter; and a
    fourth of the largest single error in the largest value. The parts are what sound int8 layers come to alike: there a
    few values are clipped, and one channel in a hundred has twice the error. What is infinite or NaN on both sides is
    equal, and on one side infinitely far.
    """
    wanted, found = (one.astype(np.float64) for one in (reference, other))
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - wanted)
    errors[(found == wanted) | (np.isnan(found) & np.isnan(wanted))] = 0.0
    finite = np.nan_to_num(np.abs(wanted), nan=0.0, posinf=0.0, neginf=0.0)
    norm = _share(float(np.linalg.norm(errors)), float(np.linalg.norm(finite)))
    shares = [norm, _share(float(errors.max()), float(finite.max())) / 4]
    by_channel = [_by_channel(one) for one in (errors, finite)]
    if by_channel[0].size:
        scales = np.maximum(by_channel[1], np.sqrt((by_channel[1] ** 2).mean()))
        shares += [_share(error, scale) / 2 for error, scale in zip(by_channel[0], scales)]
    return max(shares)


def _by_channel(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norm of each channel; of none where a channel is only a few values."""
    if values.ndim < _LEAST_RANK or values.size < _LEAST_VALUES * values.shape[2]:
        return np.empty(0)
    norms: NDArray[np.float64] = np.linalg.norm(
        np.moveaxis(values, 2, 0).reshape(values.shape[2], -1), axis=1
    )
    return norms


def _share(error: float, scale: float) -> float:
    if not error:
        return 0.0
    return float(error / scale) if scale and np.isfinite(error) else math.inf


def _rows_for(layers: Sequence[GraphLayer], rows: int) -> int:
    a_row = 4 * sum(_UNKNOWN if one.elements is None else one.elements for one in layers)
    return max(1, min(rows, _MOST_ROWS, _MOST_BYTES // max(a_row, 1)))


def _thinned(layers: Sequence[GraphLayer], rows: int) -> list[GraphLayer]:
    """Leave out layers evenly until what is left fits into memory; the last one stays."""
    a_row = 4 * sum(_UNKNOWN if one.elements is None else one.elements for one in layers)
    every = -(-a_row * rows // _MOST_BYTES)
    return [one for at, one in enumerate(reversed(layers)) if at % max(every, 1) == 0][::-1]


def _count(rows: Rows) -> int:
    return len(np.load(next(iter(rows.values())).path, mmap_mode="r", allow_pickle=False))


def _first(rows: Rows, count: int, folder: Path) -> dict[str, Artifact]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for at, (name, file) in enumerate(rows.items()):
        path = folder / f"input_{at}.npy"
        np.save(path, np.load(file.verified(), mmap_mode="r", allow_pickle=False)[:count])
        found[name] = Artifact.of(path)
    return found
