from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices import Device
from edgekd.errors import BuildError, IntegrityError
from edgekd.stages.compare import PAIRS, compare, pair_protocol, replay
from edgekd.store.journal import read
from edgekd.values.gate import GateRules, GateVerdict, Pair
from tests.stages.gated import network, rehearsal, rivals

RULES = GateRules()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    yield from rehearsal(monkeypatch, tmp_path)


def judged(folder: Path, device: Device, rules: GateRules = RULES, **knobs: str):
    base = network(folder / "base.onnx", seed=1)
    candidate = network(folder / "candidate.onnx", seed=2, **knobs)
    return compare(folder / "pairs", device, rivals(base, candidate), rules, alpha=rules.alpha)


def test_an_equal_candidate_passes_at_the_first_look(device: Device, tmp_path: Path):
    found = judged(tmp_path, device)
    assert found.verdict is GateVerdict.PASS
    assert found.pairs == RULES.looks[0]
    assert found.ratio is not None
    assert found.ratio.low < 1.003
    assert found.ratio.high > 0.997


def test_five_percent_more_work_fails(device: Device, tmp_path: Path):
    found = judged(tmp_path, device, slowdown="1.05")
    assert found.verdict is GateVerdict.FAIL
    assert found.ratio is not None
    assert found.ratio.low > 1.03
    assert found.ratio.estimate == pytest.approx(1.05, abs=0.01)


def test_five_percent_less_work_is_an_improvement(device: Device, tmp_path: Path):
    assert judged(tmp_path, device, slowdown="0.94").verdict is GateVerdict.IMPROVED


def test_a_slowdown_within_the_margin_passes(device: Device, tmp_path: Path):
    found = judged(tmp_path, device, GateRules(margin=0.10), slowdown="1.05")
    assert found.verdict is GateVerdict.PASS


def test_exchanging_the_arms_inverts_the_ratio(device: Device, tmp_path: Path):
    base, candidate = (
        network(tmp_path / "a.onnx", seed=1),
        network(tmp_path / "b.onnx", seed=2, slowdown="1.2"),
    )
    there, back = (
        compare(tmp_path / name, device, rivals(*files), RULES, alpha=RULES.alpha)
        for name, files in (("there", (base, candidate)), ("back", (candidate, base)))
    )
    assert there.ratio is not None
    assert back.ratio is not None
    assert there.verdict is GateVerdict.FAIL
    assert back.verdict is GateVerdict.IMPROVED
    assert there.ratio.estimate * back.ratio.estimate == pytest.approx(1, abs=0.005)


def test_pairs_of_a_throttled_arm_are_dropped_and_nothing_is_called_a_regression(
    device: Device, tmp_path: Path
):
    found = judged(tmp_path, device, throttle="3:1.5")
    assert found.verdict in {GateVerdict.PASS, GateVerdict.INCONCLUSIVE, GateVerdict.ENVIRONMENT}
    assert any("throttled" in reason for reason in found.dropped)


def test_a_device_that_always_throttles_is_called_unfit(device: Device, tmp_path: Path):
    found = judged(tmp_path, device, always_throttled="1")
    assert found.verdict is GateVerdict.ENVIRONMENT
    assert found.pairs == 0
    assert "pairs were lost" in found.reasons[0]


def test_a_candidate_that_answers_nan_is_named_and_not_called_slow(device: Device, tmp_path: Path):
    with pytest.raises(BuildError, match=r"the candidate candidate\.onnx .*") as raised:
        judged(tmp_path, device, nan_after="40")
    assert "NaN" in str(raised.value)


def test_the_time_given_is_kept_to(device: Device, tmp_path: Path):
    clock = iter(range(0, 10_000, 61))
    base, candidate = network(tmp_path / "a.onnx", seed=1), network(tmp_path / "b.onnx", seed=2)
    found = compare(
        tmp_path / "pairs",
        device,
        rivals(base, candidate),
        GateRules(max_minutes=3),
        alpha=0.01,
        now=lambda: float(next(clock)),
    )
    assert found.verdict is GateVerdict.INCONCLUSIVE
    assert found.pairs < RULES.looks[0]
    assert "the time given ended" in found.reasons[0]


def test_every_pair_is_kept_and_gives_the_same_verdict_when_it_is_judged_again(
    device: Device, tmp_path: Path
):
    found = judged(tmp_path, device, slowdown="1.05")
    kept = read(tmp_path / "pairs" / PAIRS, Pair)
    assert len(kept) == found.pairs
    assert all(len(pair.base.samples_ms) == sum(pair.base.block_sizes) for pair in kept)
    pair = rivals(tmp_path / "base.onnx", tmp_path / "candidate.onnx")
    again = replay(tmp_path / "pairs", pair, RULES, alpha=RULES.alpha)
    assert again == replace(found, seconds=0.0)


def test_altered_pairs_are_refused(device: Device, tmp_path: Path):
    judged(tmp_path, device)
    path = tmp_path / "pairs" / PAIRS
    path.write_text(path.read_text(encoding="utf-8").replace('"number"', '"numbr"', 1), encoding="utf-8")
    with pytest.raises(IntegrityError, match="cannot be read"):
        replay(
            tmp_path / "pairs",
            rivals(tmp_path / "base.onnx", tmp_path / "candidate.onnx"),
            RULES,
            alpha=0.01,
        )


def test_a_turn_takes_some_milliseconds_whatever_the_model(device: Device, tmp_path: Path):
    small, large = network(tmp_path / "s.onnx"), network(tmp_path / "l.onnx", slowdown="30")
    quick, slow = (pair_protocol(device, rivals(path, path), RULES) for path in (small, large))
    assert quick.samples > slow.samples >= 3


def test_a_fine_question_is_given_more_turns_a_pair(device: Device, tmp_path: Path):
    model = network(tmp_path / "m.onnx")
    coarse, fine = (
        pair_protocol(device, rivals(model, model), GateRules(margin=margin)).blocks
        for margin in (0.03, 0.005)
    )
    assert fine > coarse
