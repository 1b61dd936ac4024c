from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices import Device
from edgekd.errors import NoBaseline
from edgekd.stages.baseline import hold, measure_baseline, read_baseline, write_baseline
from edgekd.stages.subject import Subject, subject
from edgekd.values.baseline import Baseline
from edgekd.values.gate import GateRules, GateVerdict
from tests.stages.gated import network, rehearsal, target

RULES = GateRules()
DATE = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    yield from rehearsal(monkeypatch, tmp_path)


def at(device: Device, path: Path) -> Subject:
    return subject(device, path, target())


@pytest.fixture
def baseline(device: Device, tmp_path: Path) -> Baseline:
    path = network(tmp_path / "base.onnx", seed=1)
    return measure_baseline(device, at(device, path), RULES, {}, DATE)


def test_the_same_model_keeps_the_limits_that_it_set(device: Device, tmp_path: Path, baseline: Baseline):
    found = hold(device, at(device, tmp_path / "base.onnx"), baseline, RULES)
    assert found.verdict is GateVerdict.PASS
    assert found.against == "baseline"


def test_a_slower_model_breaks_them(device: Device, tmp_path: Path, baseline: Baseline):
    slower = network(tmp_path / "slower.onnx", seed=2, slowdown="1.3")
    found = hold(device, at(device, slower), baseline, RULES)
    assert found.verdict is GateVerdict.FAIL
    assert "p99 is at least" in found.reasons[0]


def test_limits_of_ones_own_are_kept(device: Device, tmp_path: Path):
    path = network(tmp_path / "base.onnx", seed=1)
    made = measure_baseline(device, at(device, path), RULES, {"p50": 1e-6}, DATE)
    assert made.limits_ms == {"p50": 1e-6}
    assert hold(device, at(device, path), made, RULES).verdict is GateVerdict.FAIL


def test_a_machine_that_is_slower_than_it_was_gives_no_answer(
    device: Device, tmp_path: Path, baseline: Baseline
):
    then = replace(baseline, reference_p50_ms=baseline.reference_p50_ms / 1.2)
    found = hold(device, at(device, tmp_path / "base.onnx"), then, RULES)
    assert found.verdict is GateVerdict.ENVIRONMENT
    assert "the machine is not what it was" in found.reasons[0]


@pytest.mark.parametrize("field", ["hardware", "software", "protocol_fingerprint", "runtime"])
def test_numbers_from_elsewhere_are_not_compared(
    device: Device, tmp_path: Path, baseline: Baseline, field: str
):
    other = replace(baseline, **{field: "another"})
    with pytest.raises(NoBaseline, match=field.split("_", maxsplit=1)[0]) as raised:
        hold(device, at(device, tmp_path / "base.onnx"), other, RULES)
    assert "--update" in raised.value.mend


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path, baseline: Baseline):
    write_baseline(tmp_path / "b.json", baseline)
    assert read_baseline(tmp_path / "b.json") == baseline


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no baseline"),
        ("not json", "is not a baseline"),
        ("[]", "schema is None"),
        ('{"schema_version": 1}', "is not a baseline"),
    ],
)
def test_a_file_that_is_no_baseline_says_how_to_make_one(tmp_path: Path, text: str | None, told: str):
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(NoBaseline, match=told) as raised:
        read_baseline(path)
    assert "--update" in raised.value.mend


def test_a_baseline_of_another_schema_is_not_comparable(tmp_path: Path, baseline: Baseline):
    write_baseline(tmp_path / "b.json", baseline)
    data = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    (tmp_path / "b.json").write_text(json.dumps({**data, "schema_version": 99}), encoding="utf-8")
    with pytest.raises(NoBaseline, match="99"):
        read_baseline(tmp_path / "b.json")
