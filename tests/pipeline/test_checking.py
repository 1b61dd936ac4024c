from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd import pipeline
from edgekd.devices import Device
from edgekd.errors import ModelError, UsageError
from edgekd.pipeline.checking import corrected, overall, paired
from edgekd.store.measurements import GateLog
from edgekd.values.gate import Clock, Comparison, Gate, GateRules, GateVerdict, Question
from tests.stages.gated import network, rehearsal, target


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    yield from rehearsal(monkeypatch, tmp_path)


def asked(tmp_path: Path, *models: Path, rules: GateRules | None = None, **more: object) -> Gate:
    question = Question(models=models, rules=rules or GateRules(), **more)
    return pipeline.check(question, target(), out=tmp_path / "out", history=tmp_path / "history.sqlite")


def test_a_slower_candidate_fails_and_everything_is_written(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    slower = network(tmp_path / "slower.onnx", seed=2, slowdown="1.06")
    found = asked(tmp_path, base, slower)
    assert found.verdict is GateVerdict.FAIL
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"gate.json", "junit.xml", "comment.md", "gate.html", "benchmark.json", "bencher.json"}
    data = json.loads((tmp_path / "out" / "gate.json").read_text(encoding="utf-8"))
    assert data["verdict"] == "FAIL"
    assert data["ratio_low"] > 1.03
    assert (tmp_path / "out" / "pairs").is_dir()


def test_two_folders_are_compared_name_by_name_and_the_worst_decides(tmp_path: Path):
    for name, slowdown in (("a.onnx", "1"), ("b.onnx", "1.1")):
        network(tmp_path / "base" / name, seed=1)
        network(tmp_path / "new" / name, seed=2, slowdown=slowdown)
    network(tmp_path / "new" / "fresh.onnx")
    found = asked(tmp_path, tmp_path / "base", tmp_path / "new")
    assert {one.name: one.verdict for one in found.comparisons} == {
        "a.onnx": GateVerdict.PASS,
        "b.onnx": GateVerdict.FAIL,
    }
    assert found.verdict is GateVerdict.FAIL
    assert found.decisive.name == "b.onnx"


def test_slow_boiling_is_seen_against_the_release(tmp_path: Path):
    release = network(tmp_path / "release.onnx", seed=1)
    base = network(tmp_path / "base.onnx", seed=2, slowdown="1.06")
    candidate = network(tmp_path / "candidate.onnx", seed=3, slowdown="1.08")
    found = asked(tmp_path, base, candidate, release=release)
    assert [(one.against, one.verdict) for one in found.comparisons] == [
        ("base", GateVerdict.PASS),
        ("release", GateVerdict.FAIL),
    ]


def test_a_file_that_grew_fails_though_it_is_fast(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    grown = network(tmp_path / "grown.onnx", seed=2)
    grown.write_bytes(grown.read_bytes() + _padding(4000))
    found = asked(tmp_path, base, grown)
    assert found.verdict is GateVerdict.FAIL
    assert "the file grew" in found.comparisons[0].reasons[0]


def _padding(size: int) -> bytes:
    """Return a doc_string (field 6 of ModelProto) that makes the file longer and changes nothing else."""
    length = bytes([size & 0x7F | 0x80, size >> 7])
    return b"\x32" + length + b"x" * size


def test_accuracy_is_compared_where_labelled_images_are_given(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    base, other = network(tmp_path / "base.onnx", seed=1), network(tmp_path / "other.onnx", seed=5)
    labels = _answers(base, images)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    found = asked(tmp_path, base, other, data=str(tmp_path / "data.npz"))
    (one,) = found.comparisons
    assert one.base.accuracy == 1.0
    assert one.candidate.accuracy is not None
    assert one.candidate.accuracy < 0.9
    assert found.verdict is GateVerdict.FAIL
    assert "accuracy fell" in one.reasons[0]


def _answers(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = (images / np.float32(255)).transpose(0, 3, 1, 2)[:, None]
    return np.array([session.run(None, {"images": row})[0].argmax() for row in rows], dtype=np.int64)


def test_models_of_different_inputs_are_refused(tmp_path: Path):
    base, other = network(tmp_path / "base.onnx"), network(tmp_path / "other.onnx", side=16)
    with pytest.raises(ModelError, match="take different inputs") as raised:
        asked(tmp_path, base, other)
    assert "1x3x16x16" in raised.value.cause


@pytest.mark.parametrize(
    ("names", "told"),
    [((), "0 models"), (("a.onnx",), "nothing to compare"), (("a.onnx", "b.onnx", "c.onnx"), "3 models")],
)
def test_a_question_that_is_none_is_refused(tmp_path: Path, names: tuple[str, ...], told: str):
    with pytest.raises(UsageError, match=told):
        asked(tmp_path, *(tmp_path / name for name in names))


def test_a_missing_model_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.onnx"):
        asked(tmp_path, network(tmp_path / "base.onnx"), tmp_path / "gone.onnx")


def test_folders_that_share_no_name_are_refused(tmp_path: Path):
    network(tmp_path / "base" / "a.onnx")
    network(tmp_path / "new" / "b.onnx")
    with pytest.raises(UsageError, match="no model of the same name"):
        paired(tmp_path / "base", tmp_path / "new")


def test_the_cpu_clock_is_refused_for_several_threads(tmp_path: Path):
    base = network(tmp_path / "base.onnx")
    question = Question(models=(base, base), rules=GateRules(clock=Clock.CPU))
    with pytest.raises(UsageError, match="single-threaded"):
        pipeline.check(question, replace(target(), threads=2), out=tmp_path / "out")


def test_the_history_holds_every_comparison(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    for _ in range(2):
        found = asked(tmp_path, base, base)
    (one,) = found.comparisons
    series = GateLog(tmp_path / "history.sqlite").series("base.onnx", one.conditions.fingerprint, "rehearsal")
    assert [entry.verdict for entry in series] == [GateVerdict.PASS] * 2
    assert series[0].reference_p50_ms
    assert found.changes == ()


def test_a_summary_is_appended_to(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    pipeline.check(Question(models=(base, base)), target(), out=tmp_path / "out", summary=summary)
    assert summary.read_text(encoding="utf-8").startswith("before\n")
    assert "PASS" in summary.read_text(encoding="utf-8")


def test_what_is_clear_beside_clear_failures_fails_by_holm(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    (one,) = asked(tmp_path, base, base).comparisons

    def like(verdict: GateVerdict, p_fail: float) -> Comparison:
        return replace(one, verdict=verdict, p_fail=p_fail)

    clear, near = like(GateVerdict.FAIL, 0.001), like(GateVerdict.INCONCLUSIVE, 0.008)
    assert [found.verdict for found in corrected([clear, near], GateRules())] == [GateVerdict.FAIL] * 2
    alone = corrected([near, like(GateVerdict.PASS, 1.0)], GateRules())
    assert [found.verdict for found in alone] == [GateVerdict.INCONCLUSIVE, GateVerdict.PASS]


def test_the_worst_verdict_is_that_of_the_call(tmp_path: Path):
    base = network(tmp_path / "base.onnx", seed=1)
    (one,) = asked(tmp_path, base, base).comparisons
    order = ["FAIL", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "IMPROVED"]
    for at in range(len(order)):
        judged = [replace(one, verdict=GateVerdict(name)) for name in order[at:]]
        assert overall(judged).value == order[at]
