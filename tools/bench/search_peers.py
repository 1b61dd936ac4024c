"""Other searches over a table, all told for free which architectures are within the budget."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UsageError

Floats = NDArray[np.float64]

_POPULATION, _SAMPLED = 20, 5  # of regularised evolution (Real et al. 2019, table 1, scaled to these budgets)
_ASKS = 40  # times the trainings, before a sampler that repeats itself is stopped
OPTUNA = ("tpe", "nsga2", "gp")
PEERS = (*OPTUNA, "evolution", "random")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One device and budget of a table."""

    ops: NDArray[np.int64]  # (n, positions) of all architectures
    kinds: int
    latency_ms: Floats  # (n,)
    limit_ms: float
    accuracy: Floats  # (n,)

    @property
    def within(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.latency_ms <= self.limit_ms)

    @property
    def best(self) -> float:
        return float(self.accuracy[self.within].max())


def peer(name: str, cell: Cell, trainings: int, seed: int) -> list[int]:
    """Return the distinct rows within the budget that a peer trains, in order."""
    if name == "random":
        rng = np.random.default_rng(seed)
        return [int(row) for row in rng.permutation(cell.within)[:trainings]]
    if name == "evolution":
        return evolution(cell, trainings, np.random.default_rng(seed))
    return with_optuna(name, cell, trainings, seed)


def evolution(cell: Cell, trainings: int, rng: np.random.Generator) -> list[int]:
    """Mutate one operation of the best of a sample; the oldest dies (Real et al. 2019, algorithm 1)."""
    where = {tuple(one): row for row, one in enumerate(cell.ops.tolist())}
    within = set(cell.within.tolist())
    trained: list[int] = []
    population: deque[int] = deque(maxlen=_POPULATION)
    for _ in range(_ASKS * trainings):
        if len(trained) == min(trainings, len(within)):
            break
        if len(trained) < min(_POPULATION, trainings):
            child = int(rng.choice(cell.within))
        else:
            parents = rng.choice(list(population), size=min(_SAMPLED, len(population)), replace=False)
            child = _mutated(max(parents, key=lambda row: cell.accuracy[row]), cell, where, rng)
        if child in within and child not in trained:
            trained.append(child)
            population.append(child)
    return trained


def _mutated(parent: int, cell: Cell, where: dict[tuple[int, ...], int], rng: np.random.Generator) -> int:
    ops = cell.ops[parent].copy()
    at = int(rng.integers(len(ops)))
    ops[at] = (ops[at] + rng.integers(1, cell.kinds)) % cell.kinds
    return where.get(tuple(ops.tolist()), parent)


def with_optuna(name: str, cell: Cell, trainings: int, seed: int) -> list[int]:
    """Ask an Optuna sampler with the budget as its constraint, until it asked for enough that are within it.

    What it proposes beyond the budget, or again, costs no training, and it is told the score all the same.
    """
    optuna = _optuna()
    constraint: Callable[..., tuple[float]] = lambda trial: (trial.user_attrs["over"],)  # noqa: E731
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(
            multivariate=True, constraints_func=constraint, seed=seed, n_startup_trials=10
        ),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(
            population_size=_POPULATION, constraints_func=constraint, seed=seed
        ),
        "gp": lambda: optuna.samplers.GPSampler(constraints_func=constraint, seed=seed),
    }
    where = {tuple(one): row for row, one in enumerate(cell.ops.tolist())}
    trained: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental arguments
        study = optuna.create_study(direction="maximize", sampler=samplers[name]())
        for _ in range(_ASKS * trainings):
            if len(trained) == min(trainings, len(cell.within)):
                break
            trial = study.ask()
            ops = tuple(
                trial.suggest_categorical(f"op{at}", range(cell.kinds)) for at in range(cell.ops.shape[1])
            )
            row = where.get(ops)
            over = cell.latency_ms[row] / cell.limit_ms - 1 if row is not None else 1.0
            trial.set_user_attr("over", float(over))
            study.tell(trial, float(cell.accuracy[row]) if row is not None else float(cell.accuracy.min()))
            if row is not None and over <= 0 and row not in trained:
                trained.append(row)
    return trained


def _optuna():  # type: ignore[no-untyped-def] # noqa: ANN202 - a module that need not be installed
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "these peers need Optuna",
            cause=str(error),
            mend="pip install 'edgekd[optuna]', or name others with --peers",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
