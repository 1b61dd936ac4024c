"""Check the statistics of the gate by simulation, and say what other gates conclude from the same traces.

    python tools/bench/gate_coverage.py --rounds 40000

Prints JSON: how often the interval of the ratio holds the truth under six kinds of noise, and how often the gate
fails, passes or gives up at true slowdowns of 0 to 8 %.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from edgekd.timing.duet import decide, exact_alpha, hodges_lehmann, signed_rank_bounds
from edgekd.values.gate import GateRules, GateVerdict

Array = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int], Array]  # (rng, runs, pairs) -> log ratios, runs x pairs

ALPHAS = (0.05, 0.01, 0.005)
PAIRS = (10, 20, 40)
EFFECTS = (0.0, 0.01, 0.03, 0.05, 0.08)
BAR = 0.01  # coverage may miss the nominal by one point
TURNS = 4  # of an arm within a pair
_SCALE = 0.01
_DRIFT, _MEMORY, _LAUNCH, _SESSION, _BURST = 0.02, 0.95, 0.004, 0.02, 0.05


def normal(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    return rng.normal(0.0, _SCALE, (runs, pairs))


def heavy(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """Student's t with 3 degrees of freedom: tails of a busy scheduler."""
    return _SCALE * rng.standard_t(3, (runs, pairs))


def bursts(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """Contaminated normal: one pair in ten is ten times as noisy."""
    return rng.normal(0.0, _SCALE, (runs, pairs)) * np.where(rng.random((runs, pairs)) < 0.1, 10.0, 1.0)


def laplace(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    return rng.laplace(0.0, _SCALE, (runs, pairs))


def skewed(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """Log ratio of two times that are each a floor plus lognormal delays.

    Times are skewed, their log ratio is not: exchanging the arms turns its sign.
    """
    base, candidate = (1.0 + 0.02 * rng.lognormal(0.0, 1.0, (runs, pairs)) for _ in range(2))
    return np.asarray(np.log(candidate) - np.log(base))


def drifting(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """Pairs as they are measured: a machine that drifts, launches that differ, t3 noise and bursts in each turn.

    The figures are those of measurement-and-gate.md, 7.1: drift AR(1) 2 %, session 2 %, launch 0.4 %, bursts in 5 % of
    the turns. Arms take turns in random order, so that drift within a round has no side; one session has both.
    """
    turns = pairs * TURNS * 2
    drift = np.empty((runs, turns))
    drift[:, 0] = rng.normal(0.0, _DRIFT, runs)
    for turn in range(1, turns):
        shock = rng.normal(0.0, _DRIFT * np.sqrt(1 - _MEMORY**2), runs)
        drift[:, turn] = _MEMORY * drift[:, turn - 1] + shock
    noise = _SCALE * rng.standard_t(3, (runs, turns))
    hit = rng.random((runs, turns)) < _BURST
    session = rng.normal(0.0, _SESSION, (runs, 1))
    logs = (session + drift + noise + hit * rng.exponential(0.05, (runs, turns))).reshape(
        runs, pairs, TURNS, 2
    )
    launches = rng.normal(0.0, _LAUNCH, (runs, pairs, 1, 2))
    first_is_base = np.where(rng.random((runs, pairs, TURNS)) < 0.5, 1.0, -1.0)
    between_turns = first_is_base * (logs[..., 1] - logs[..., 0]) + (launches[..., 1] - launches[..., 0])
    return _hodges_lehmann_last(between_turns)


FAMILIES: dict[str, Noise] = {
    "normal": normal,
    "t3": heavy,
    "bursts": bursts,
    "laplace": laplace,
    "lognormal_difference": skewed,
    "drift_and_launches": drifting,
}


def coverage(rounds: int, seed: int) -> dict[str, object]:
    """Return, for each kind of noise, how far the coverage of the two-sided interval is from its nominal.

    Bounds are order statistics, of which few samples have few: the nominal is the exact level of the one that
    is used, always at least 1 - 2 alpha. `coverage_minus_nominal` is in shares; 0.01 is one point.
    """
    rows = [
        _covered(
            family, pairs, alpha, FAMILIES[family](np.random.default_rng([seed, at, pairs]), rounds, pairs)
        )
        for at, family in enumerate(FAMILIES)
        for pairs in PAIRS
        for alpha in ALPHAS
    ]
    worst = max(rows, key=lambda row: abs(row["coverage_minus_nominal"]))
    within = abs(worst["coverage_minus_nominal"]) <= BAR
    return {"rounds": rounds, "seed": seed, "bar": BAR, "within_bar": within, "worst": worst, "rows": rows}


def decisions(rounds: int, seed: int, rules: GateRules) -> list[dict[str, object]]:
    """Return what the gate concludes at true slowdowns, on pairs as they are measured."""
    log_ratios = drifting(np.random.default_rng(seed), rounds, rules.looks[-1])
    return [_decided(effect, log_ratios + np.log1p(effect), rules) for effect in EFFECTS]


def at_the_margin(rounds: int, seed: int, rules: GateRules) -> dict[str, float]:
    """Return how often a candidate that is slower by exactly the margin fails, for each kind of noise.

    Nothing that may pass fails more often; the rules allow `alpha`.
    """
    shares = {}
    for name, noise in FAMILIES.items():
        log_ratios = noise(np.random.default_rng(seed), rounds, rules.looks[-1]) + np.log1p(rules.margin)
        fails = sum(_verdict(run, rules)[0] is GateVerdict.FAIL for run in log_ratios)
        shares[name] = round(fails / rounds, 5)
    return shares


def peers(
    base_traces: Sequence[Sequence[float]], candidate_traces: Sequence[Sequence[float]]
) -> dict[str, bool]:
    """Return which other gates would fail the candidate; a trace is the samples of one launch, in ms.

    They are given interleaved traces, better than the stored baseline of their usual use.
    """
    base, candidate = np.concatenate(base_traces), np.concatenate(candidate_traces)
    return {
        "pytest-benchmark median:5%": median_5_percent(base, candidate),
        "fixed ratio 110%": ratio_110_percent(base, candidate),
        "Mann-Whitney p<.05": mann_whitney(base, candidate),
    }


def median_5_percent(base: Array, candidate: Array) -> bool:
    """Tell what `pytest-benchmark --benchmark-compare-fail=median:5%` says.

    `PercentageRegressionCheck` in its src/pytest_benchmark/utils.py: current / compared * 100 - 100 > 5.
    """
    return bool(np.median(candidate) / np.median(base) * 100 - 100 > 5)


def ratio_110_percent(base: Array, candidate: Array) -> bool:
    """Tell what github-action-benchmark says with `alert-threshold: 110%` and `fail-on-alert`; 200 % is its default.

    `findAlerts` in its src/write.ts: ratio > threshold, of the mean times (`extractPytestResult` in src/extract.ts
    reads `ops`, which is 1 / mean).
    """
    return bool(np.mean(candidate) / np.mean(base) > 1.10)


def mann_whitney(base: Array, candidate: Array) -> bool:
    """Tell what a two-sided U test over pooled samples says at p < .05, in the direction of slower.

    `calc_utest` in google/benchmark's tools/gbench/report.py: mannwhitneyu(..., alternative="two-sided"); 0.05 is the
    default of compare.py's --alpha.
    """
    significant = mannwhitneyu(base, candidate, alternative="two-sided").pvalue < 0.05
    return bool(significant and np.median(candidate) > np.median(base))


def _covered(family: str, pairs: int, alpha: float, log_ratios: Array) -> dict[str, Any]:
    held = 0
    for run in log_ratios:
        low, high = signed_rank_bounds(run, alpha)
        held += low <= 0.0 <= high
    covered, nominal = held / len(log_ratios), 1 - 2 * exact_alpha(pairs, alpha)
    return {
        "family": family,
        "pairs": pairs,
        "alpha": alpha,
        "nominal": round(nominal, 5),
        "coverage": round(covered, 5),
        "coverage_minus_nominal": round(covered - nominal, 5),
        "standard_error": round(math.sqrt(nominal * (1 - nominal) / len(log_ratios)), 5),  # of the simulation
    }


def _decided(effect: float, log_ratios: Array, rules: GateRules) -> dict[str, object]:
    verdicts, used = [], []
    for run in log_ratios:
        verdict, pairs = _verdict(run, rules)
        verdicts.append(verdict)
        used.append(pairs)
    shares = {verdict.value: round(verdicts.count(verdict) / len(verdicts), 4) for verdict in GateVerdict}
    estimates = [hodges_lehmann(run[: rules.looks[0]]) for run in log_ratios]
    return {
        "true_slowdown": effect,
        **shares,
        "median_pairs": statistics.median(used),
        "pair_sd": round(float(np.std(log_ratios)), 5),
        "estimate_sd_first_look": round(float(np.std(estimates)), 5),
    }


def _verdict(run: Array, rules: GateRules) -> tuple[GateVerdict, int]:
    for pairs in rules.looks:
        verdict = decide(run[:pairs].tolist(), rules, rules.alpha)
        if verdict is not None:
            return verdict, pairs
    raise AssertionError("the last look decides")


def _hodges_lehmann_last(values: Array) -> Array:
    """Return Hodges-Lehmann over the last axis."""
    first, second = np.triu_indices(values.shape[-1])
    return np.asarray(np.median((values[..., first] + values[..., second]) / 2, axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40_000, help="simulated comparisons a figure")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    few = max(1, arguments.rounds // 10)  # these look up to six times
    found = {
        "coverage": coverage(arguments.rounds, arguments.seed),
        "decisions": decisions(few, arguments.seed, GateRules()),
        "fails_at_the_margin": at_the_margin(few, arguments.seed, GateRules()),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
