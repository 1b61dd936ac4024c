"""What devices have in common: the mean and the spread of what each feature costs, over devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError

Floats = NDArray[np.float64]

_RIDGE = 1.0  # prior rows' worth of shrinkage of a device's prices, against thousands of measurements
LEAST_ROWS = 8  # measurements of a device before it says anything
_PASSES = 6  # of the alternating estimate of a Kronecker covariance; it has settled by then
_FLOOR = 0.05  # of the mean variance that every direction keeps
_LEAST_NOISE = 0.005
_NOISE_DOUBT = 0.5  # of the log of a new device's noise, beside how devices differ
_ALIKE = 0.97  # correlation above which two devices count as one when a new device is acted out


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Belief about a device nobody has measured: its latency is its mean times 1 + features @ prices.

    Latencies add up over what a network does, so prices are relative to the device's mean and not to its
    logarithm. A device's prices are one of `centres` plus a draw from a sum of `covariances`, each with an
    amplitude that is learnt from the device's own measurements.
    """

    shift: Floats  # (f,) mean of the rows that were learnt from
    scale: Floats  # (f,) by which centred rows are divided
    centres: Floats  # (c, f) prices: the mean of all devices, then each device's own
    covariances: Floats  # (j, f, f) of prices
    noise: tuple[float, float] = (
        -3.5,
        1.5,
    )  # mean and SD of the log of a measurement's relative SD, over devices
    adjustment: tuple[tuple[int, float], ...] = ()  # measurements, and by what a stated spread is multiplied

    def standard(self, rows: Floats) -> Floats:
        """Return rows (n, f) as prices expect them.

        Raises:
            DataError: another number of features, or one that is no number.

        """
        found = np.asarray(rows, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != len(self.shift) or not np.isfinite(found).all():  # noqa: PLR2004
            raise DataError(
                f"rows must be numbers of shape (n, {len(self.shift)})", cause=f"they are {found.shape}"
            )
        return np.asarray((found - self.shift) / self.scale)

    def adjusted(self, measurements: int) -> float:
        """Return by what a stated spread is multiplied after so many measurements, from the nearest acted out."""
        if not self.adjustment:
            return 1.0
        known = sorted(self.adjustment)
        counts = np.log([count for count, _ in known])
        return float(np.interp(np.log(max(measurements, 1)), counts, [factor for _, factor in known]))


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What features cost on each device, relative to the device's mean latency."""

    shift: Floats  # (f,)
    scale: Floats  # (f,)
    each: Floats  # (devices, f)
    residuals: Floats  # (devices,) relative SD of what they do not explain

    def without(self, devices: NDArray[np.intp]) -> Prices:
        """Return the prices of the other devices."""
        return replace(
            self, each=np.delete(self.each, devices, axis=0), residuals=np.delete(self.residuals, devices)
        )


def prices(rows: Floats, latency_ms: Floats, positions: int) -> Prices:
    """Return what features cost on each device that tells anything, by ridge regression.

    Args:
        rows: (n, f) features.
        latency_ms: (devices, n), NaN where not measured.
        positions: more than 1 where features are choices at positions, which are of one scale already.

    Raises:
        DataError: shapes do not fit, a latency is not positive, or nothing says anything of a device.

    """
    table = _checked(rows, latency_ms)
    shift = rows.mean(axis=0)
    spread = rows.std(axis=0)
    scale = np.where((spread > 0) & (positions == 1), spread, 1.0)
    standard = (rows - shift) / scale
    found = [_of_one(standard, one) for one in table if tells(one)]
    if not found:
        raise DataError(
            "no device's measurements can be learnt from",
            cause=f"none has {LEAST_ROWS} latencies that differ",
            mend="measure more architectures, or do without a prior",
        )
    return Prices(
        shift=shift,
        scale=scale,
        each=np.array([one for one, _ in found]),
        residuals=np.array([residual for _, residual in found]),
    )


def moments(known: Prices, positions: int) -> Prior:
    """Return the belief that devices' prices (devices, f) support, without its calibration.

    The covariance of a few devices has as many directions as devices, so there are smoother ones beside it. Where
    features are choices at positions, prices are a matrix (positions, kinds) whose covariance is estimated as a
    Kronecker product by alternating (Dutilleul 1999), once around the mean and once around zero: that a device
    which is dear at one position is so at all is then known from every position.
    """
    found = known.each
    mean = found.mean(axis=0)
    apart = found - mean
    covariance = apart.T @ apart / max(len(found) - 1, 1)
    if len(found) == 1:
        covariance = np.outer(mean, mean) * _FLOOR
    size = float(np.trace(covariance)) / len(mean) or 1e-6
    parts = [covariance, _kronecker(apart if len(found) > 1 else found, positions)]
    parts += [_kronecker(found, positions), *_even(positions, len(mean) // positions)]
    scaled = [part * (size * len(mean) / max(float(np.trace(part)), 1e-12)) for part in parts[:3]]
    scaled += [part * size for part in parts[3:]]
    logs = np.log(np.maximum(known.residuals, _LEAST_NOISE))
    return Prior(
        shift=known.shift,
        scale=known.scale,
        centres=np.vstack([mean, found]),
        covariances=np.array(scaled),
        noise=(float(logs.mean()), float(np.hypot(logs.std(), _NOISE_DOUBT))),
    )


def ignorance(rows: Floats) -> Prior:
    """Return the belief of one who has seen no other device: every feature may cost anything."""
    spread = rows.std(axis=0)
    count = rows.shape[1]
    return Prior(
        shift=rows.mean(axis=0),
        scale=np.where(spread > 0, spread, 1.0),
        centres=np.zeros((1, count)),
        covariances=np.array([np.eye(count) / count]),
    )


def families(found: Floats, rows: Floats) -> list[NDArray[np.intp]]:
    """Return groups of devices that rank alike, from their prices: nobody knows their names here."""
    curves = (rows - rows.mean(axis=0)) @ found.T
    alike = np.corrcoef(curves.T).reshape(len(found), len(found)) > _ALIKE
    left, groups = set(range(len(found))), []
    while left:
        group: set[int] = set()
        grown = {min(left)}
        while grown - group:
            group |= grown
            grown = set(np.flatnonzero(alike[sorted(group)].any(axis=0)).tolist())
        groups.append(np.array(sorted(group), dtype=np.intp))
        left -= group
    return groups


def _of_one(standard: Floats, latency_ms: Floats) -> tuple[Floats, float]:
    known = np.isfinite(latency_ms)
    relative = latency_ms[known] / latency_ms[known].mean() - 1
    # An intercept beside the prices: the mean of the rows that this device has is not that of all rows.
    design = np.column_stack([np.ones(int(known.sum())), standard[known]])
    shrink = _RIDGE * np.diag([0.0, *np.ones(standard.shape[1])])
    solved = np.linalg.solve(design.T @ design + shrink, design.T @ relative)
    left = relative - design @ solved
    level = np.maximum(1 + relative - left, 2 * _FLOOR)
    residual = float(np.sqrt(np.square(left / level).sum() / max(len(left) - len(solved), 1)))
    return np.asarray(solved[1:] / max(1 + solved[0], _FLOOR)), residual


def _kronecker(found: Floats, positions: int) -> Floats:
    """Return A (x) B for matrices (devices, positions, kinds) of prices."""
    matrices = found.reshape(len(found), positions, -1)
    kinds = matrices.shape[2]
    across = np.eye(kinds)
    along = np.eye(positions)
    for _ in range(_PASSES):
        along = _regular(np.einsum("dpo,oq,drq->pr", matrices, np.linalg.inv(across), matrices))
        across = _regular(np.einsum("dpo,pr,drq->oq", matrices, np.linalg.inv(along), matrices))
    return np.asarray(np.kron(along, across))


def _regular(matrix: Floats) -> Floats:
    """Return a covariance with a mean variance of 1, of full rank."""
    size = max(float(np.trace(matrix)) / len(matrix), 1e-12)
    return np.asarray((matrix / size + _FLOOR * np.eye(len(matrix))) / (1 + _FLOOR))


def _even(positions: int, kinds: int) -> list[Floats]:
    """Return what treats all alike: a kind costs the same everywhere, a position is dear whatever is there."""
    if positions == 1:
        return [np.eye(kinds), np.eye(kinds)]
    everywhere = np.kron(np.ones((positions, positions)), np.eye(kinds))
    whatever = np.kron(np.eye(positions), np.ones((kinds, kinds)))
    return [np.asarray(everywhere, dtype=np.float64), np.asarray(whatever, dtype=np.float64)]


def _checked(rows: Floats, latency_ms: Floats) -> Floats:
    table = np.asarray(latency_ms, dtype=np.float64)
    if table.ndim != 2 or rows.ndim != 2 or table.shape[1] != len(rows) or not np.isfinite(rows).all():  # noqa: PLR2004
        raise DataError(
            "a prior needs rows (n, features) and latencies (devices, n)",
            cause=f"they are {np.shape(rows)} and {table.shape}",
        )
    if (table[np.isfinite(table)] <= 0).any() or np.isinf(table).any():
        raise DataError(
            "a latency must be above 0 and finite", mend="leave out what was not measured, as NaN"
        )
    return table


def tells(latency_ms: Floats) -> bool:
    """Tell whether a device's latencies (n,), NaN where not measured, say anything."""
    known = latency_ms[np.isfinite(latency_ms)]
    return len(known) >= LEAST_ROWS and float(np.ptp(known)) > 0
