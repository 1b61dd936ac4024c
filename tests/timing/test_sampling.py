from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.errors import BuildError, ModelError
from edgekd.timing import sampling
from edgekd.timing.sampling import RING, sample, varied_inputs, warm_up
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
