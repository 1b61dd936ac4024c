"""How finalists are measured before one is accepted: together, and in every mode the budget asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.errors import BuildError
from edgekd.pipeline import loop, measuring
from edgekd.pipeline.measuring import InModes, Judged, judge_in_modes, modes
from edgekd.timing.conditions import conditions
from edgekd.values.artifact import Artifact
from edgekd.values.budget import Budget, LatencyBudget, Limits
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.student import StageSpec, StudentSpec
from edgekd.values.trial import History, Proposal, Trial, Verdict

IDLE = Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0)
SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)
BUDGET = Budget(latency_ms=LatencyBudget(p99=2.0), period_ms=33.0, sustained_minutes=10.0)


def latency(ms: float, *, blocks: int = 4, verdict: TrustVerdict = TrustVerdict.GOOD) -> Latency:
    samples = (ms,) * (100 * blocks)
    return Latency(
        samples_ms=samples,
        cpu_ms=samples,
        protocol=Protocol(),
        conditions=conditions(IDLE),
        trust=Trust(verdict=verdict),
        block_sizes=(100,) * blocks,
    )


def engine(name: str) -> Engine:
    file = Artifact(path=Path(__file__), sha256=name)  # it is never opened
    return Engine(model=Model(file=file), runtime="rehearsal", precision=Precision.FP32)


def judged(name: str, ms: float, **kwargs: TrustVerdict) -> Judged:
    limits = Limits(latency_ms={"p99": 2.0}, confidence=0.95)
    return Judged(engine=engine(name), latency=latency(ms, **kwargs), teacher=latency(9.0), limits=limits)


def trial(name: str, ms: float, accuracy: float = 0.9) -> Trial:
    proposal = Proposal(spec=SPEC, runtime="rehearsal", precision=Precision.FP32)
    return Trial(
        proposal=proposal,
        verdict=Verdict.FITS,
        latency=latency(ms),
        accuracy=accuracy,
        engine=engine(name),
        epochs=1,
    )


class Bench:
    """What acceptance needs of a workbench: trials, a budget, and a device that says how long each mode takes."""

    def __init__(self, *trials: Trial, answers: Callable[[Protocol], Latency] | None = None) -> None:
        self.trials, self.seed = list(trials), 7
        self.job = SimpleNamespace(budget=BUDGET)
        self.task = SimpleNamespace(validation=range(100))
        self.asked: list[Protocol] = []
        self.device = SimpleNamespace(time=self._time)
        self._answers = answers

    def _time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        assert len(engines) == 1
        assert self._answers is not None
        self.asked.append(protocol)
        return (self._answers(protocol),)

    def history(self) -> History:
        return History(trials=tuple(self.trials))

    def record(self, *trials: Trial) -> list[Trial]:
        self.trials += trials
        return list(trials)


def measured(patch: pytest.MonkeyPatch, **by_name: float) -> list[list[str]]:
    """Let each file take so long; return which were measured together."""
    rounds: list[list[str]] = []

    def judge(_: object, engines: Sequence[Engine], __: Protocol) -> tuple[Judged, ...]:
        names = [one.model.file.sha256 for one in engines]
        rounds.append(names)
        if len(names) > 1 and any(by_name[name] < 0 for name in names):
            raise BuildError("one of them dies")
        return tuple(judged(name, by_name[name]) for name in names)

    patch.setattr(loop, "judge", judge)
    patch.setattr(loop, "judge_in_modes", lambda *_: InModes())
    return rounds


def test_finalists_that_accuracy_cannot_tell_apart_are_measured_together_and_the_fastest_now_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = measured(monkeypatch, a=1.5, b=1.2)
    accepted = loop.accept(Bench(trial("a", 1.0), trial("b", 1.1), trial("c", 0.5, accuracy=0.5)))
    assert rounds == [["a", "b"]]  # c is worse by more than chance
    assert accepted is not None
    assert accepted.engine.model.file.sha256 == "b"
    assert accepted.trial.engine == accepted.engine


def test_a_fast_file_that_breaks_a_limit_does_not_win_over_one_that_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, a=1.0, b=1.5)
    real = loop.judge

    def with_a_limit_on_start_up(*arguments: object) -> tuple[Judged, ...]:
        return tuple(
            replace(one, limits=replace(one.limits, open_ms=1.0)) if one.latency.samples_ms[0] == 1.0 else one
            for one in real(*arguments)
        )

    monkeypatch.setattr(loop, "judge", with_a_limit_on_start_up)
    accepted = loop.accept(Bench(trial("a", 1.0), trial("b", 1.5)))
    assert accepted is not None
    assert accepted.engine.model.file.sha256 == "b"


def test_at_most_four_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = measured(monkeypatch, **dict.fromkeys("abcdef", 1.0))
    loop.accept(Bench(*(trial(name, 1.0 + at / 10) for at, name in enumerate("fedcba"))))
    assert rounds == [["f", "e", "d", "c"]]


def test_where_one_breaks_the_measurement_the_first_is_measured_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = measured(monkeypatch, a=1.0, b=-1.0)
    accepted = loop.accept(Bench(trial("a", 1.0), trial("b", 1.1)))
    assert rounds == [["a", "b"], ["a"]]
    assert accepted is not None


def test_all_that_do_not_hold_are_refused_at_once_and_the_others_get_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = measured(monkeypatch, a=3.0, b=4.0, c=1.0)
    bench = Bench(trial("a", 1.0), trial("b", 1.1), trial("c", 0.5, accuracy=0.5))
    accepted = loop.accept(bench)
    assert rounds == [["a", "b"], ["c"]]
    assert accepted is not None
    refused = bench.history().with_verdict(Verdict.TOO_SLOW)
    assert {one.engine.model.file.sha256 for one in refused if one.engine} == {"a", "b"}


def test_a_file_that_slows_down_when_it_is_hot_is_refused_with_its_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured(monkeypatch, a=1.0)
    monkeypatch.setattr(loop, "judge_in_modes", judge_in_modes)
    bench = Bench(
        trial("a", 1.0), answers=lambda protocol: latency(2.5 if protocol.soak_s else 1.0, blocks=20)
    )
    assert loop.accept(bench) is None
    (refused,) = bench.history().with_verdict(Verdict.TOO_SLOW)
    assert "sustained 10 min: p99 <= 2.500 ms at 95%, limit 2.000 ms" in refused.why


def test_each_mode_is_measured_in_its_own_way() -> None:
    bench = Bench(answers=lambda _: latency(1.0, blocks=20))
    found = judge_in_modes(bench, judged("a", 1.0))
    assert list(found.latencies) == ["one every 33 ms", "sustained 10 min"]
    duty, soak = bench.asked
    assert (duty.period_ms, duty.soak_s, duty.seed) == (33.0, 0.0, 7)
    assert (soak.period_ms, soak.soak_s, soak.launches) == (0.0, 600.0, 1)
    assert len(found.latencies["sustained 10 min"].samples_ms) == 1000  # the later half judges
    assert found.breaches == ()


def test_what_was_not_asked_for_is_not_measured() -> None:
    bench = Bench()
    bench.job.budget = Budget(latency_ms=LatencyBudget(p99=2.0))
    assert judge_in_modes(bench, judged("a", 1.0)) == InModes()
    assert bench.asked == []


def test_an_inference_longer_than_its_period_is_refused_unmeasured() -> None:
    bench = Bench()
    bench.job.budget = replace(BUDGET, period_ms=0.5)
    assert judge_in_modes(bench, judged("a", 1.0)).breaches == (
        "an inference takes 1.000 ms, its period is 0.5 ms",
    )
    assert bench.asked == []


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_every_mode_takes_samples_enough_for_its_bound(confidence: float) -> None:
    for name, protocol in modes(replace(BUDGET, confidence=confidence)):
        blocks = protocol.launches * protocol.blocks // (2 if name.startswith("sustained") else 1)
        (bound,) = {
            replace(latency(1.0), samples_ms=(1.0,) * (blocks * protocol.samples)).upper_bound(99, confidence)
        }
        assert bound == 1.0


def test_limits_carry_everything_that_the_budget_says_of_a_launch() -> None:
    bench = SimpleNamespace(job=SimpleNamespace(budget=replace(BUDGET, memory_mb=30.0, open_ms=50.0)))
    limits = measuring.limits_for(bench, latency(9.0))
    assert (limits.memory_mb, limits.open_ms, limits.size_mb) == (30.0, 50.0, None)
