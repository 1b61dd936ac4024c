"""Optuna in place of our own search: a sampler asked for the next student, and trials written as its study."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekd.errors import ConfigError, DataError, UsageError
from edgekd.stages.predict import predict
from edgekd.stages.propose import Candidate, fastest, sure_of, tried_specs
from edgekd.values.budget import Limits
from edgekd.values.codec import fingerprint
from edgekd.values.measurement import Measurement
from edgekd.values.student import Space, StageSpec, StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

if TYPE_CHECKING:  # an extra that need not be installed
    import optuna

_ASKS = 300  # before a sampler that proposes nothing within reach, or what was tried, is given up
_OVER = 1.0  # by how much what could not be built or timed counts as beyond the budget
_FINISHED = (Verdict.PROMISING, Verdict.FITS, Verdict.INACCURATE)


def propose_with_optuna(
    sampler: str,
    space: Space,
    history: History,
    limits: dict[str, Limits],
    *,
    seed: int,
    stored: Sequence[Measurement] = (),
) -> Proposal | None:
    """Return the next student that an Optuna sampler asks for; None when it finds none that may meet the budget.

    The budget is the sampler's constraint. The study is made anew from the history each time, so that the answer
    hangs on nothing else; as in `propose`, what is not expected to be within the budget is not built.

    Raises:
        UsageError: Optuna is not installed.
        ConfigError: there is no such sampler.

    """
    channels, classes = space.channels, space.classes
    predictor = predict(history, limits, channels=channels, classes=classes, stored=stored)
    tried, sure = tried_specs(history), sure_of(history)
    with _quiet() as optuna_:
        study = optuna_.create_study(
            direction="maximize", sampler=_sampler(sampler, seed + len(history.trials))
        )
        add_trials(study, history, space, limits)
        nearest: Candidate | None = None
        lowest = min((trial.accuracy for trial in history.trials if trial.accuracy is not None), default=0.0)
        for _ in range(_ASKS):
            asked = study.ask(_distributions(space))
            spec = _spec(asked.params, space)
            found = fastest(spec, space, predictor, limits)
            if found is None:
                return None
            if fingerprint(spec) not in tried:
                if found.within(sure):
                    return found.proposal
                nearest = min(filter(None, (nearest, found)), key=Candidate.tightness)
            # Told as it is expected: beyond the budget, or known already and no better than the worst.
            _tell(study, asked, space, over=max(found.tightness() - 1, 0.0), score=lowest)
    return nearest.proposal if nearest and nearest.hopeful() else None


def _tell(study: optuna.Study, asked: optuna.Trial, space: Space, *, over: float, score: float) -> None:
    """Answer what a sampler asked for, constraint included."""
    from optuna.trial import TrialState, create_trial

    study.tell(
        asked, state=TrialState.FAIL
    )  # a trial that was asked for takes no constraint: its double does
    double = create_trial(
        value=score,
        params=asked.params,
        distributions=_distributions(space),
        system_attrs={"constraints": [over]},
    )
    study.add_trial(double)


def export_study(history: History, limits: dict[str, Limits], storage: str, name: str) -> int:
    """Write the trials as a study in Optuna's storage and return how many there are.

    Parameters are places among the choices that were tried, ascending; the student itself is an attribute.

    Args:
        history: of the search.
        limits: by runtime; how far each trial is beyond them becomes its constraint.
        storage: as Optuna names it, such as "sqlite:///study.db".
        name: of the study, which must be new.

    Raises:
        UsageError: Optuna is not installed.
        DataError: nothing was tried, or the storage cannot be written, or has this study.

    """
    if not (tried := [t.proposal.spec for t in history.trials if t.verdict is not Verdict.MEASURED]):
        raise DataError("there is nothing to export", cause="no student was tried")
    with _quiet() as optuna_:
        try:
            study = optuna_.create_study(direction="maximize", storage=storage, study_name=name)
        except Exception as error:
            mend = "give another file, or name it as Optuna does: sqlite:///FILE"
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"no study can be written to {storage}", cause=cause, mend=mend) from error
        add_trials(study, history, _space_of(tried), limits)
        return len(study.trials)


def add_trials(study: optuna.Study, history: History, space: Space, limits: dict[str, Limits]) -> None:
    """Add what was tried to a study: accuracy where there is one, failed where there is none."""
    from optuna.trial import TrialState, create_trial

    distributions = _distributions(space)
    for trial in history.trials:
        if trial.verdict is Verdict.MEASURED:
            continue  # a probe was proposed by nobody
        done = trial.accuracy is not None and trial.verdict in _FINISHED
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if done else TrialState.FAIL,
                value=trial.accuracy if done else None,
                params=_params(trial.proposal.spec, space),
                distributions=distributions,
                user_attrs=_attributes(trial),
                system_attrs={"constraints": [_over(trial, limits)]},
            )
        )


def _attributes(trial: Trial) -> dict[str, Any]:
    latency_ms = trial.latency.percentile(50) if trial.latency else None
    return {
        "student": str(trial.proposal.spec),
        "runtime": trial.proposal.runtime,
        "precision": trial.proposal.precision.value,
        "verdict": trial.verdict.value,
        "why": trial.why,
        "epochs": trial.epochs,
        "p50_ms": latency_ms,
    }


def _over(trial: Trial, limits: dict[str, Limits]) -> float:
    """Return by what share a trial is beyond its limit; at most 0 where it is within."""
    limit = limits.get(trial.proposal.runtime)
    if trial.latency is None or limit is None:
        return _OVER
    if trial.verdict in _FINISHED:
        return 0.0  # judged by more than its percentile, and within
    return max(min(limit.tightness(trial.latency) - 1, _OVER), 1e-6)


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    def places(options: Sequence[object]) -> IntDistribution:
        return IntDistribution(0, len(options) - 1)

    found: dict[str, optuna.distributions.BaseDistribution] = {
        "family": CategoricalDistribution(space.families),
        "resolution": places(space.resolutions),
        "stem": places(space.stems),
    }
    longest = max(space.expansions.values(), key=len)
    for at, widths in enumerate(space.widths):
        found[f"width_{at}"] = places(widths)
        found[f"depth_{at}"] = places(space.depths)
        found[f"kernel_{at}"] = places(space.kernels)
        found[f"expansion_{at}"] = places(longest)
    return found


def _space_of(specs: Sequence[StudentSpec]) -> Space:
    """Return the smallest space that holds students."""
    stages = [stage for spec in specs for stage in spec.stages]
    most = max(len(spec.stages) for spec in specs)
    at_stage = [[spec.stages[at] for spec in specs if at < len(spec.stages)] for at in range(most)]
    families = sorted({spec.family for spec in specs})
    return Space(
        families=tuple(families),
        channels=1,
        classes=1,
        resolutions=tuple(sorted({spec.resolution for spec in specs})),
        stems=tuple(sorted({spec.stem for spec in specs})),
        widths=tuple(tuple(sorted({stage.width for stage in here})) for here in at_stage),
        depths=tuple(sorted({stage.depth for stage in stages})),
        kernels=tuple(sorted({stage.kernel for stage in stages})),
        expansions={
            family: tuple(
                sorted({s.expansion for spec in specs if spec.family == family for s in spec.stages})
            )
            for family in families
        },
    )


def _params(spec: StudentSpec, space: Space) -> dict[str, Any]:
    found: dict[str, Any] = {
        "family": spec.family,
        "resolution": space.resolutions.index(spec.resolution),
        "stem": space.stems.index(spec.stem),
    }
    for at, (stage, widths) in enumerate(zip(spec.stages, space.widths)):
        found[f"width_{at}"] = widths.index(stage.width)
        found[f"depth_{at}"] = space.depths.index(stage.depth)
        found[f"kernel_{at}"] = space.kernels.index(stage.kernel)
        found[f"expansion_{at}"] = space.expansions[spec.family].index(stage.expansion)
    return found


def _spec(params: dict[str, Any], space: Space) -> StudentSpec:
    expansions = space.expansions[params["family"]]
    stages = tuple(
        StageSpec(
            width=widths[params[f"width_{at}"]],
            depth=space.depths[params[f"depth_{at}"]],
            kernel=space.kernels[params[f"kernel_{at}"]],
            # A family with fewer expansions has its largest for the rest.
            expansion=expansions[min(params[f"expansion_{at}"], len(expansions) - 1)],
        )
        for at, widths in enumerate(space.widths)
    )
    return StudentSpec(
        family=params["family"],
        resolution=space.resolutions[params["resolution"]],
        stem=space.stems[params["stem"]],
        stages=stages,
    )


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    if name == "optuna-tpe":
        return samplers.TPESampler(multivariate=True, seed=seed, n_startup_trials=5)
    if name == "optuna-nsga2":
        return samplers.NSGAIISampler(population_size=10, seed=seed)
    if name == "optuna-gp":
        return samplers.GPSampler(seed=seed)
    if name == "optuna-random":
        return samplers.RandomSampler(seed=seed)
    raise ConfigError(f"Optuna's sampler {name!r} is not known here", mend="see [search] sampler")


@contextmanager
def _quiet() -> Iterator[Any]:
    """Give Optuna, without its log and its warnings that something is experimental.

    Raises:
        UsageError: it is not installed.

    """
    try:
        import optuna
    except ImportError as error:
        mend = 'run `pip install "edgekd[optuna]"`, or set search.sampler = "edgekd"'
        raise UsageError("Optuna is not installed", cause=str(error), mend=mend) from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
