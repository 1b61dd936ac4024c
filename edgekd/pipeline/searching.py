"""Who proposes the next student, and for which budget."""

from __future__ import annotations

from dataclasses import replace

from edgekd.pipeline.workbench import Workbench
from edgekd.stages.ask_optuna import propose_with_optuna
from edgekd.stages.propose import propose
from edgekd.values.budget import Limits
from edgekd.values.trial import History, Proposal, Verdict

_AIMS = (1.0, 0.7, 0.5, 0.35)  # of the limit, in turn, where the frontier is asked for


def next_proposal(bench: Workbench, limits: dict[str, Limits], wanted: int) -> Proposal | None:
    """Ask the job's sampler; None where it knows of no student that may meet the budget.

    Where the frontier is asked for, trials aim at the budget and at shares of it in turn; what is out of reach at
    a share is looked for within the whole.

    Raises:
        UsageError: the job names one of Optuna's samplers, and Optuna is not installed.

    """
    history = bench.history()
    share = frontier_share(bench, history)
    found = _asked(bench, history, scaled(limits, share), wanted)
    return found if found or share == 1.0 else _asked(bench, history, limits, wanted)


def frontier_share(bench: Workbench, history: History) -> float:
    """Return which share of the budget the next trial aims at: the whole, unless the frontier is asked for."""
    if bench.job.search.aim != "frontier":
        return 1.0
    return _AIMS[len(history.with_verdict(Verdict.PROMISING)) % len(_AIMS)]


def scaled(limits: dict[str, Limits], share: float) -> dict[str, Limits]:
    """Return tighter limits."""
    return {
        runtime: replace(limit, latency_ms={name: share * ms for name, ms in limit.latency_ms.items()})
        for runtime, limit in limits.items()
    }


def _asked(bench: Workbench, history: History, limits: dict[str, Limits], wanted: int) -> Proposal | None:
    sampler, stored = bench.job.search.sampler, bench.stored()
    if sampler == "edgekd":
        return propose(bench.space, history, limits, seed=bench.seed, stored=stored, planned=wanted)
    return propose_with_optuna(sampler, bench.space, history, limits, seed=bench.seed, stored=stored)
