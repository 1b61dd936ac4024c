from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.errors import BuildError, ModelError
from edgekd.timing import sampling
from edgekd.timing.sampling import RING, Answers, sample, soak, varied_inputs, warm_up
from edgekd.timing.session import Tensors
from edgekd.values.model import Signature, TensorSpec


def signature(*kinds: str, shape: tuple[int, ...] = (4, 5)) -> Signature:
    inputs = tuple(TensorSpec(name=kind, dtype=kind, shape=shape) for kind in kinds)
    return Signature(inputs=inputs, outputs=())


class Metronome:
    """A session whose nth inference takes `wall_ns[n]`, the last one for ever."""

    real_time = False

    def __init__(self, *wall_ns: int, answer: float = 0.0) -> None:
        self.signature = signature("float32")
        self.fed: list[Tensors] = []
        self.collecting: list[bool] = []
        self._wall_ns, self._now, self._answer = wall_ns, 0, answer

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        self._now += self._wall_ns[min(len(self.fed), len(self._wall_ns) - 1)]
        self.fed.append(feeds)
        self.collecting.append(gc.isenabled())
        return {"y": np.full(3, self._answer, dtype=np.float32)}

    def clock_ns(self) -> int:
        return self._now

    def cpu_clock_ns(self) -> int:
        return self._now // 2

    def throttle_count(self) -> int:
        return 0


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]
)
def test_inputs_of_every_type_differ_and_are_not_constant(dtype: str):
    ring = varied_inputs(signature(dtype, shape=(64,)), seed=0)
    assert len({feeds[dtype].tobytes() for feeds in ring}) == RING
    for feeds in ring:
        assert feeds[dtype].dtype == np.dtype(dtype)
        assert len(np.unique(feeds[dtype])) > 1


def test_the_same_seed_makes_the_same_inputs():
    one, other = (varied_inputs(signature("float32"), seed=7) for _ in range(2))
    assert all((a["float32"] == b["float32"]).all() for a, b in zip(one, other))


def test_a_scalar_input_is_an_array_without_dimensions():
    assert varied_inputs(signature("float32", shape=()), seed=0)[0]["float32"].shape == ()


@pytest.mark.parametrize("dtype", ["object", "bfloat16", "str"])
def test_an_input_that_cannot_be_made_is_named(dtype: str):
    with pytest.raises(ModelError, match=dtype):
        varied_inputs(signature(dtype), seed=0)


def test_samples_are_the_clocks_differences_in_run_order():
    session = Metronome(*[100] * RING, 10, 20, 30, 40)  # the first lap is not recorded
    found = sample(session, varied_inputs(session.signature, 0), 4)
    assert found.wall_ns == (10, 20, 30, 40)
    assert sum(found.cpu_ns) == pytest.approx(50, abs=2)
    assert found.preempted == (False,) * 4


def test_an_inference_that_lost_the_core_is_kept_marked_and_replaced(monkeypatch: pytest.MonkeyPatch):
    session = Metronome(10)
    session.real_time = True
    counter = iter(
        [0, 0, 0, 1, 1, 2, 2, 2]
    )  # read before and after each inference: the second and third lose it
    monkeypatch.setattr(sampling, "_involuntary_switches", lambda: next(counter))
    found = sampling.sample(session, varied_inputs(session.signature, 0), 2)
    assert found.preempted == (False, True, True, False)
    assert len(found.wall_ns) == len(found.cpu_ns) == 4


def test_where_every_inference_loses_the_core_it_ends_all_the_same(monkeypatch: pytest.MonkeyPatch):
    session = Metronome(10)
    session.real_time = True
    counter = iter(range(1000))
    monkeypatch.setattr(sampling, "_involuntary_switches", lambda: next(counter))
    found = sampling.sample(session, varied_inputs(session.signature, 0), 5)
    assert found.preempted == (True,) * 15


def test_consecutive_samples_get_different_inputs_and_go_on_where_the_last_block_ended():
    session = Metronome(10_000_000)  # so slow that one inference leads in
    ring = varied_inputs(session.signature, 0)
    sample(session, ring, 3, first=6)
    assert [next(at for at, feeds in enumerate(ring) if feeds is fed) for fed in session.fed] == [0, 6, 7, 0]


def test_the_collector_rests_while_samples_are_taken_and_comes_back():
    session = Metronome(10)
    sample(session, varied_inputs(session.signature, 0), 3)
    assert not any(session.collecting)
    assert gc.isenabled()


def test_the_collector_comes_back_after_an_error_too():
    session = Metronome(10)
    with pytest.raises(KeyError):
        sample(session, [_Missing()], 3)
    assert gc.isenabled()


class _Missing(dict[str, NDArray[Any]]):
    def __init__(self) -> None:
        raise KeyError("made to fail")


def test_warm_up_lasts_at_least_as_long_as_asked():
    session = Metronome(1_000_000)
    warm_up(session, varied_inputs(session.signature, 0), least_ms=60)
    assert 60 <= session.clock_ns() / 1e6 < 120


def test_warm_up_goes_on_until_two_windows_agree():
    falling = [40_000_000 - 3_000_000 * at for at in range(10)]  # then steady at 10 ms
    session = Metronome(*falling, 10_000_000)
    warm_up(session, varied_inputs(session.signature, 0), least_ms=60)
    steady = Metronome(40_000_000)
    warm_up(steady, varied_inputs(steady.signature, 0), least_ms=60)
    assert session.clock_ns() > steady.clock_ns()


def test_warm_up_gives_up_on_a_session_that_never_settles():
    session = Metronome(*[1_000_000 * (1 + at % 7 * at) for at in range(5000)])
    warm_up(session, varied_inputs(session.signature, 0), least_ms=60)
    assert session.clock_ns() / 1e6 >= 600
    assert len(session.fed) < 100


def test_a_slow_model_is_warm_after_two_windows():
    session = Metronome(5_000_000_000)
    warm_up(session, varied_inputs(session.signature, 0), least_ms=60)
    assert len(session.fed) <= 6


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_a_build_error(answer: float):
    session = Metronome(1000, answer=answer)
    with pytest.raises(BuildError, match="NaN"):
        warm_up(session, varied_inputs(session.signature, 0), least_ms=1)


def test_an_answer_that_becomes_no_number_while_it_is_timed_is_a_build_error():
    session = Metronome(1000, answer=float("nan"))
    with pytest.raises(BuildError, match="NaN") as caught:
        sample(session, varied_inputs(session.signature, 0), 5)
    assert "timed" in caught.value.cause


def test_the_last_answer_of_a_block_comes_with_the_input_that_it_answers():
    session = Metronome(10_000_000, answer=3.0)
    found = sample(session, varied_inputs(session.signature, 0), 3, first=6)
    assert found.asked == 0  # 6, 7, and round the ring
    assert found.answer["y"].tolist() == [3.0, 3.0, 3.0]


def floats(*values: float) -> dict[str, NDArray[Any]]:
    return {"y": np.array(values, dtype=np.float32)}


@pytest.mark.parametrize(
    ("now", "steady"),
    [
        (floats(1.0, 100.0), True),
        (floats(1.05, 100.0), True),
        (floats(1.0, 101.0), False),
        (floats(1.0), False),
    ],
)
def test_an_answer_is_the_same_within_a_thousandth_of_its_largest_value(
    now: dict[str, NDArray[Any]],
    steady: bool,  # noqa: FBT001
):
    answers = Answers()
    answers.keep(2, floats(1.0, 100.0))
    answers.keep(2, floats(5.0, 5.0))  # the first is what counts
    assert answers.agree(2, now) is steady
    assert answers.agree(3, now)  # was never asked


def test_integers_agree_only_where_they_are_equal():
    answers = Answers()
    answers.keep(0, {"label": np.array([1000])})
    assert answers.agree(0, {"label": np.array([1000])})
    assert not answers.agree(0, {"label": np.array([1001])})


def test_large_answers_are_not_kept():
    answers, large = Answers(), {"y": np.zeros(1 << 18, dtype=np.float64)}
    answers.keep(0, large)
    assert answers.agree(0, {"y": np.ones(1 << 18, dtype=np.float64)})


def test_warming_up_remembers_what_each_input_gave():
    session = Metronome(1_000_000, answer=2.0)
    answers = warm_up(session, varied_inputs(session.signature, 0), least_ms=60)
    assert all(answers.agree(at, floats(2.0, 2.0, 2.0)) for at in range(RING))
    assert not any(answers.agree(at, floats(2.0, 2.0, 2.1)) for at in range(RING))


class Watch:
    """Time that passes only in sleep."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_s, self.slept_s = 100.0, []
        patch.setattr(sampling.time, "monotonic", lambda: self.now_s)
        patch.setattr(sampling.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_with_a_period_there_is_one_inference_a_tick_and_sleep_before_each(monkeypatch: pytest.MonkeyPatch):
    watch, session = Watch(monkeypatch), Metronome(1000)
    session.real_time = True
    monkeypatch.setattr(sampling, "_involuntary_switches", lambda: 0)
    found = sample(session, varied_inputs(session.signature, 0), 5, period_ms=33.0)
    assert watch.slept_s == pytest.approx([0.033] * 5)
    assert len(session.fed) == len(found.wall_ns) == 5  # nothing leads in: cold caches are the question


def test_a_tick_that_was_missed_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch):
    watch = Watch(monkeypatch)
    pause = sampling._pacer(10.0)
    pause()
    watch.now_s += 0.025  # an inference of two and a half periods
    pause()
    pause()
    assert watch.slept_s == pytest.approx([0.010, 0.0, 0.010])


def test_a_session_with_a_clock_of_its_own_never_sleeps(monkeypatch: pytest.MonkeyPatch):
    watch, session = Watch(monkeypatch), Metronome(1000)
    sample(session, varied_inputs(session.signature, 0), 5, period_ms=33.0)
    assert watch.slept_s == []


def test_a_soak_runs_for_as_long_as_asked_on_a_real_clock_and_briefly_on_another():
    session = Metronome(10_000_000)
    session.real_time = True
    soak(session, varied_inputs(session.signature, 0), 3.0)
    assert session.clock_ns() == 3_000_000_000
    rehearsed = Metronome(10)
    soak(rehearsed, varied_inputs(rehearsed.signature, 0), 3600.0)
    assert 0 < len(rehearsed.fed) <= 1000
    soak(rehearsed, [], 0.0)  # none was asked for
