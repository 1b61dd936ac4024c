"""How well is a device known from a few measurements, with other devices' measurements as prior?

    python tools/bench/predictor.py --table FILE [--targets a,b] [--samples 10] [--seeds 20] [--kin ti,titan]

Prints JSON. FILE is an .npz of `ops`, `op_names`, `device` and `latency_ms` (NaN where not measured). Each target is
predicted from `--samples` of its own measurements and from the devices that are neither among the named targets nor
its kin (`latency_table.kin`: by the stem of their names; `--kin` declares stems to be one family). All its other
measurements judge: rank correlation, share within 10 %, and what the stated 90 % interval holds.

    mean_spearman         architectures to measure were chosen by the surrogate, from 1,000 drawn by the seed
    mean_spearman_random  they were drawn by the seed, as the peers' are
    ceiling               a ridge or boosted trees, whichever is better, from 4,000 measurements of the device itself
    peers                 a line in the number of operations, ridge, random forest and gradient boosting from scratch

Whole-millisecond devices are limited by their own rounding: compare with the ceiling. A device with too few or equal
latencies is not scored, and said to be so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from latency_table import Table, others, read_table  # noqa: E402

from edgekd.errors import EdgekdError, UsageError  # noqa: E402
from edgekd.surrogates.encodings import encode  # noqa: E402
from edgekd.surrogates.latency import Forecast, Prior, choose, fit, learn_prior  # noqa: E402

Floats = NDArray[np.float64]

CANDIDATES = 1000  # architectures that the surrogate may choose from
HANDFUL = 5  # chosen by the prior alone
CEILING_ROWS = 4000
TIMED = 15_000  # architectures whose prediction is timed
PUBLISHED = {  # github.com/HayeonLee/HELP, README, tables 2 and 3: 10 samples, drawn; other devices as targets
    "HELP NAS-Bench-201": {
        "titan_rtx_256": 0.987, "gold_6226": 0.989, "pixel2": 0.802, "raspi4": 0.890, "eyeriss": 0.940, "fpga": 0.985,
        "mean": 0.932,
    },
    "HELP FBNet": {"raspi4": 0.887, "eyeriss": 0.943, "fpga": 0.892, "mean": 0.910},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--targets", help="devices, by commas; each in turn where not given")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--kin", action="append", default=[], help="stems, by commas, that are one family; once each"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out the peers and the ceiling")
    given = parser.parse_args()
    try:
        print(json.dumps(bench(given), indent=1))
    except EdgekdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def bench(given: argparse.Namespace) -> dict[str, Any]:
    if given.samples < 1 or given.seeds < 1:
        raise UsageError("--samples and --seeds must be at least 1")
    table = read_table(given.table)
    targets = table.wanted(given.targets)
    declared = [frozenset(family.split(",")) for family in given.kin]
    rows = encode(table.ops, table.op_names)
    found, unscored = {}, {}
    for device in targets:
        if why := table.unfit(device):
            unscored[device] = why
            continue
        print(f"{device} ...", file=sys.stderr)
        known = others(table, device, targets, declared)
        found[device] = _device(table, rows, device, known, given)
    if not found:
        raise UsageError("no target can be scored", cause="; ".join(f"{n}: {w}" for n, w in unscored.items()))
    return {
        "table": given.table.name,
        "samples": given.samples,
        "seeds": given.seeds,
        **_means(found),
        "published": PUBLISHED,
        "not_scored": unscored,
        "per_device": found,
    }


def _device(
    table: Table, rows: Floats, device: str, known: Sequence[str], given: argparse.Namespace
) -> dict[str, Any]:
    latency_ms = table.of(device)
    measured = np.flatnonzero(np.isfinite(latency_ms))
    if given.samples > len(measured) // 2:
        cause = f"{device} has {len(measured)}"
        raise UsageError("--samples must leave half of the measurements to judge by", cause=cause)
    began = time.perf_counter()
    prior = (
        learn_prior(rows, np.array([table.of(name) for name in known]), positions=table.ops.shape[1])
        if known
        else None
    )
    learning_s = time.perf_counter() - began
    chosen, drawn, seconds, peers = [], [], [], {name: [] for name in PEERS}
    for seed in range(given.seeds):
        rng = np.random.default_rng(seed)
        random = rng.choice(measured, given.samples, replace=False)
        pool = rng.choice(measured, min(CANDIDATES, len(measured)), replace=False)
        picked = _picked(prior, rows, latency_ms, pool, given.samples) if prior else random

        def forecast(at: NDArray[np.intp], wanted: Floats) -> Forecast:
            return fit(rows[at], latency_ms[at], prior).forecast(wanted)

        chosen.append(_scores(forecast, rows, latency_ms, measured, picked))
        drawn.append(_scores(forecast, rows, latency_ms, measured, random))
        began = time.perf_counter()
        forecast(picked, np.resize(rows, (TIMED, rows.shape[1])))
        seconds.append(time.perf_counter() - began)
        if not given.no_peers:
            judged = np.setdiff1d(measured, random)
            for name, peer in PEERS.items():
                expected = peer(table, rows, latency_ms, random)
                peers[name].append(_spearman(expected[judged], latency_ms[judged]))
    result = {name: statistics.fmean(one[name] for one in chosen) for name in chosen[0]}
    result |= {f"{name}_random": statistics.fmean(one[name] for one in drawn) for name in drawn[0]}
    result |= {
        "ceiling": None if given.no_peers else _ceiling(rows, latency_ms, measured),
        "whole_milliseconds": bool((latency_ms[measured] == np.round(latency_ms[measured])).all()),
        "prior": list(known),
        "learn_prior_seconds": learning_s,
        "fit_and_predict_15000_seconds": statistics.median(seconds),
    }
    if not given.no_peers:
        result["peers"] = {name: statistics.fmean(values) for name, values in peers.items()}
    return result


def _picked(
    prior: Prior, rows: Floats, latency_ms: Floats, pool: NDArray[np.intp], samples: int
) -> NDArray[np.intp]:
    """Return what the surrogate measures: a handful by the prior, the rest by what the handful has shown."""
    first = min(samples, max(HANDFUL, samples // 2))
    at = pool[choose(prior, rows[pool], first)]
    if first < samples:
        left = np.setdiff1d(pool, at)
        known = fit(rows[at], latency_ms[at], prior)
        at = np.concatenate([at, left[choose(known, rows[left], samples - first)]])
    return at


def _scores(
    forecast: Callable[[NDArray[np.intp], Floats], Forecast],
    rows: Floats,
    latency_ms: Floats,
    measured: NDArray[np.intp],
    at: NDArray[np.intp],
) -> dict[str, float]:
    judged = np.setdiff1d(measured, at)
    found, truth_ms = forecast(at, rows[judged]), latency_ms[judged]
    held = (truth_ms >= found.quantile_ms(0.05)) & (truth_ms <= found.quantile_ms(0.95))
    return {
        "spearman": _spearman(found.median_ms, truth_ms),
        "coverage90": float(held.mean()),
        "within_10_percent": float((np.abs(found.median_ms / truth_ms - 1) <= 0.1).mean()),
    }


def _spearman(expected: Floats, truth_ms: Floats) -> float:
    return float(spearmanr(expected, truth_ms).statistic) if np.ptp(expected) > 0 else 0.0


def _means(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = [
        f"{name}{how}" for how in ("", "_random") for name in ("spearman", "coverage90", "within_10_percent")
    ]
    means = {name: statistics.fmean(one[name] for one in found.values()) for name in names}
    first = next(iter(found.values()))
    result = {
        "mean_spearman": means["spearman"],
        "coverage90": means["coverage90"],
        "within_10_percent": means["within_10_percent"],
        "mean_spearman_random": means["spearman_random"],
        "coverage90_random": means["coverage90_random"],
        "within_10_percent_random": means["within_10_percent_random"],
        "fit_and_predict_15000_seconds": max(one["fit_and_predict_15000_seconds"] for one in found.values()),
    }
    if "peers" in first:
        result["mean_ceiling"] = statistics.fmean(one["ceiling"] for one in found.values())
        result["peers"] = {
            name: statistics.fmean(one["peers"][name] for one in found.values()) for name in first["peers"]
        }
    return result


def _ceiling(rows: Floats, latency_ms: Floats, measured: NDArray[np.intp]) -> float:
    """Return what thousands of the device's own measurements reach on the rest."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    order = np.random.default_rng(0).permutation(measured)
    count = min(CEILING_ROWS, len(order) * 4 // 5)
    known, judged = order[:count], order[count:]
    found = []
    for model in (RidgeCV(np.logspace(-3, 3, 13)), HistGradientBoostingRegressor(max_iter=200)):
        expected = model.fit(rows[known], latency_ms[known]).predict(rows[judged])
        found.append(_spearman(expected, latency_ms[judged]))
    return max(found)


def count_line(table: Table, _: Floats, latency_ms: Floats, at: NDArray[np.intp]) -> Floats:
    """A line in the number of each operation, whatever its place, from scratch."""
    counts = np.eye(len(table.op_names))[table.ops].sum(axis=1)
    return _ridge(counts, latency_ms, at)


def ridge(_: Table, rows: Floats, latency_ms: Floats, at: NDArray[np.intp]) -> Floats:
    return _ridge(rows, latency_ms, at)


def forest(_: Table, rows: Floats, latency_ms: Floats, at: NDArray[np.intp]) -> Floats:
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(100, random_state=0, n_jobs=1).fit(rows[at], latency_ms[at])
    return np.asarray(model.predict(rows))


def boosting(_: Table, rows: Floats, latency_ms: Floats, at: NDArray[np.intp]) -> Floats:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(random_state=0).fit(rows[at], latency_ms[at])
    return np.asarray(model.predict(rows))


def _ridge(rows: Floats, latency_ms: Floats, at: NDArray[np.intp]) -> Floats:
    from sklearn.linear_model import RidgeCV

    return np.asarray(RidgeCV(np.logspace(-3, 3, 13)).fit(rows[at], latency_ms[at]).predict(rows))


PEERS: dict[str, Callable[[Table, Floats, Floats, NDArray[np.intp]], Floats]] = {
    "count_of_operations": count_line,
    "ridge": ridge,
    "random_forest": forest,
    "gradient_boosting": boosting,
}

if __name__ == "__main__":
    main()
