"""How few trainings find the best architecture within a latency budget, on a table that others measured?

    python tools/bench/search.py --table FILE --device a,b --budget-quantile .1,.3,.5 --accuracy acc_cifar10

Prints JSON. FILE is an .npz of `ops`, `op_names`, `device`, `latency_ms`, and the field that --accuracy names. A
cell is a device and a budget, which is a quantile of the device's own latencies; regret is the accuracy of the best
architecture within the budget minus that of the pick.

    --mode measured   each candidate is timed before it is trained, as `edgekd run` does: the budget is a filter
    --mode few-shot   the device gives --samples latencies in all, other devices (no kin of it, and none that was
                      named where some were not) are the prior, and at most --verifications finalists are timed.
                      A pick counts as broken where its latency is above the budget, or where there is none.

    mean_regret, worst_regret   over cells, and of the worst cell, each a mean over seeds
    broken_budgets              picks beyond their budget, of all cells and seeds
    trainings_to_peer           trainings until the mean regret is that of Optuna's TPE after --peer-trainings

Architectures, accuracies and latencies are taken as they are: dead cells are near 0 ms and at chance, and phones
count whole milliseconds. --noise adds luck to each training; regret is judged without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from few_shot import Device, Rules, search_few_shot  # noqa: E402
from latency_table import Table, others, read_table  # noqa: E402
from search_peers import PEERS, Cell, peer  # noqa: E402

from edgekd.errors import DataError, EdgekdError, UsageError  # noqa: E402
from edgekd.surrogates.capacity import Amounts, amounts, belief, candidates  # noqa: E402
from edgekd.surrogates.encodings import encode  # noqa: E402
from edgekd.surrogates.latency import learn_prior  # noqa: E402
from edgekd.surrogates.selection import Trials, next_trial  # noqa: E402
from edgekd.values.codec import did_you_mean  # noqa: E402

Floats = NDArray[np.float64]
POINTS = (1, 3, 5, 6, 10, 15, 20, 40, 80)


def main() -> None:
    arguments = _arguments()
    try:
        print(json.dumps(bench(arguments), indent=1))
    except EdgekdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    table = read_table(arguments.table)
    accuracy = read_accuracy(arguments.table, arguments.accuracy, len(table.ops))
    devices, quantiles = table.wanted(arguments.device), _quantiles(arguments.budget_quantile)
    for device in devices:
        _check(table, device)
    peers = [name.strip() for name in arguments.peers.split(",") if name.strip()]
    for name in peers:
        if name not in PEERS:
            raise UsageError(f"there is no peer {name!r}", mend=did_you_mean(name, list(PEERS)))
    known = amounts(table.ops, table.op_names)
    cells = {
        (device, quantile): _cell(table, device, quantile, accuracy)
        for device in devices
        for quantile in quantiles
    }
    own = {at: _own(arguments, table, at[0], devices, cell, known) for at, cell in cells.items()}
    regrets = {at: np.array([curve for curve, _ in runs]) for at, runs in own.items()}
    rivals = {name: _rival(name, cells, arguments) for name in peers}
    final = {at: float(curves[:, -1].mean()) for at, curves in regrets.items()}
    return {
        "mode": arguments.mode,
        "accuracy": arguments.accuracy,
        "noise": arguments.noise,
        "seeds": arguments.seeds,
        "trainings": arguments.trainings,
        "mean_regret": _rounded(np.mean(list(final.values()))),
        "worst_regret": _rounded(max(final.values())),
        "broken_budgets": sum(broken for runs in own.values() for _, broken in runs),
        "picks": sum(len(runs) for runs in own.values()),
        "trainings_to_peer": _reached(_mean_curve(regrets), rivals.get("tpe")),
        "regret_at": _at_points(_mean_curve(regrets)),
        "peers": {
            name: {
                "seeds": arguments.peer_seeds,
                "regret_at": _at_points(_mean_curve(found)),
                "worst_regret": _rounded(max(curves[:, -1].mean() for curves in found.values())),
            }
            for name, found in rivals.items()
        },
        "cells": [
            {
                "device": device,
                "budget_quantile": quantile,
                "limit_ms": _rounded(cells[device, quantile].limit_ms),
                "within": len(cells[device, quantile].within),
                "best": _rounded(cells[device, quantile].best),
                "mean_regret": _rounded(final[device, quantile]),
                "worst_seed": _rounded(regrets[device, quantile][:, -1].max()),
                "broken_budgets": sum(broken for _, broken in own[device, quantile]),
                "trainings_to_peer": _reached(
                    regrets[device, quantile].mean(axis=0),
                    {(device, quantile): rivals["tpe"][device, quantile]} if "tpe" in rivals else None,
                ),
            }
            for device, quantile in cells
        ],
    }


def read_accuracy(path: Path, field: str, count: int) -> Floats:
    """Read one accuracy an architecture."""
    with np.load(path, allow_pickle=False) as file:
        there = [name for name in file if name.startswith("acc")]
        if field not in file:
            raise UsageError(f"{path} has no field {field!r}", mend=did_you_mean(field, there))
        found = np.asarray(file[field], dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all():
        bad = f"{(~np.isfinite(found)).sum()} of its {found.size} values are NaN or infinite"
        cause = bad if found.shape == (count,) else f"its shape is {found.shape}, of {count} architectures"
        raise DataError(
            f"{field} is no accuracy for each architecture", cause=cause, mend="leave such rows out"
        )
    if np.ptp(found) == 0:
        raise DataError(f"{field} cannot rank anything", cause=f"every value is {found[0]:g}")
    return found


def search_measured(
    cell: Cell, known: Amounts, trainings: int, seed: int, noise: float
) -> list[tuple[int, float]]:
    """Return the rows that edgekd trains and their scores, every candidate's latency being measured."""
    within = cell.within
    rng = np.random.default_rng([seed, 1])
    pool = candidates(known, belief(known, cell.latency_ms), within)
    rows: list[int] = []
    scores: list[float] = []
    for _ in range(min(trainings, len(within))):
        trials = Trials(rows=tuple(rows), scores=tuple(scores))
        row = next_trial(pool, np.ones(len(pool), dtype=bool), trials, seed=seed, planned=trainings)
        if row is None:
            break
        rows.append(row)
        scores.append(float(cell.accuracy[within[row]] + noise * rng.standard_normal()))
    return [(int(within[row]), score) for row, score in zip(rows, scores)]


def _own(  # noqa: PLR0917 - a cell, and what all of them share
    arguments: argparse.Namespace,
    table: Table,
    device: str,
    devices: Sequence[str],
    cell: Cell,
    known: Amounts,
) -> list[tuple[Floats, bool]]:
    """Return a curve of regret over trainings, and whether the budget was broken, for each seed."""
    if arguments.mode == "measured":
        runs = []
        for seed in range(arguments.seeds):
            trained = search_measured(cell, known, arguments.trainings, seed, arguments.noise)
            runs.append((_curve(cell, trained, arguments.trainings), False))
        return runs
    rows = encode(table.ops, table.op_names)
    sources = others(table, device, devices, ())
    prior = None
    if sources:
        learnt = np.array([table.of(name) for name in sources])
        prior = learn_prior(rows, learnt, positions=table.ops.shape[1])
    rules = Rules(
        samples=arguments.samples, verifications=arguments.verifications, trainings=arguments.trainings
    )
    found = []
    for seed in range(arguments.seeds):
        place = Device(cell=cell, rows=rows, prior=prior, known=known, noise=arguments.noise)
        pick = search_few_shot(place, rules, seed=seed)
        broken = pick is None or cell.latency_ms[pick] > cell.limit_ms
        regret = cell.best - (cell.accuracy[pick] if pick is not None and not broken else cell.accuracy.min())
        found.append((np.full(arguments.trainings, regret), bool(broken)))
    return found


def _rival(
    name: str, cells: dict[tuple[str, float], Cell], arguments: argparse.Namespace
) -> dict[tuple[str, float], Floats]:
    trainings = arguments.peer_trainings if name != "gp" else arguments.trainings
    return {
        at: np.array(
            [
                _curve(
                    cell, [(row, cell.accuracy[row]) for row in peer(name, cell, trainings, seed)], trainings
                )
                for seed in range(arguments.peer_seeds)
            ]
        )
        for at, cell in cells.items()
    }


def _curve(cell: Cell, trained: Sequence[tuple[int, float]], trainings: int) -> Floats:
    """Return the regret of the best-scored after each training; where the space ran out, the last one stays."""
    scores = np.array([score for _, score in trained])
    regret = []
    for count in range(1, trainings + 1):
        seen = scores[: min(count, len(scores))]
        regret.append(cell.best - cell.accuracy[trained[int(np.argmax(seen))][0]])
    return np.array(regret)


def _cell(table: Table, device: str, quantile: float, accuracy: Floats) -> Cell:
    taken_ms = table.of(device)
    limit_ms = float(np.quantile(taken_ms, quantile))
    return Cell(
        ops=table.ops, kinds=len(table.op_names), latency_ms=taken_ms, limit_ms=limit_ms, accuracy=accuracy
    )


def _check(table: Table, device: str) -> None:
    taken_ms = table.of(device)
    if missing := int((~np.isfinite(taken_ms)).sum()):
        raise DataError(
            f"{missing} latencies of {device} are NaN",
            cause="a regret needs the latency of every architecture",
            mend="leave out those architectures, or name another --device",
        )
    if cause := table.unfit(device):
        raise DataError(f"no budget can be set on {device}", cause=cause, mend="name another --device")


def _quantiles(text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise UsageError(
            "--budget-quantile must be numbers", cause=str(error), mend="such as .1,.3,.5"
        ) from error
    if not all(0 < one <= 1 for one in found):
        raise UsageError("--budget-quantile must lie in (0, 1]", cause=text)
    return found


def _mean_curve(found: dict[tuple[str, float], Floats]) -> Floats:
    return np.mean([curves.mean(axis=0) for curves in found.values()], axis=0)


def _reached(own: Floats, tpe: dict[tuple[str, float], Floats] | None) -> int | None:
    """Return after how many trainings the regret is that of TPE at its end; None where it is not, or was not run."""
    if tpe is None:
        return None
    there = np.flatnonzero(own <= _mean_curve(tpe)[-1] + 1e-9)
    return int(there[0]) + 1 if len(there) else None


def _at_points(curve: Floats) -> dict[int, float]:
    return {point: _rounded(curve[point - 1]) for point in POINTS if point <= len(curve)}


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--device", help="names, by commas; default: all")
    parser.add_argument("--budget-quantile", default=".1,.3,.5")
    parser.add_argument("--accuracy", default="acc_cifar10", help="field of the table")
    parser.add_argument("--mode", choices=("measured", "few-shot"), default="measured")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.0, help="SD of a training's luck, in points")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--verifications", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="empty: none")
    parser.add_argument("--peer-seeds", type=int, default=3)
    parser.add_argument("--peer-trainings", type=int, default=80, help="of all but gp, which has --trainings")
    found = parser.parse_args()
    for name in ("seeds", "trainings", "samples", "peer_seeds", "peer_trainings"):
        if getattr(found, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return found


if __name__ == "__main__":
    main()
