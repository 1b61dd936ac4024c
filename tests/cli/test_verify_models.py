"""`edgekd verify` of two models: what is asked for reaches the ladder, and the verdict is the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd import pipeline
from edgekd.__main__ import main
from edgekd.values.ladder import Blame, Ladder, Rung

BLAME = Blame(
    layer="stages.0.1.conv", operator="Conv", own_error=0.4, error=0.2, limit=1e-5, counterpart="node_7",
    module="stages.0", source="nets.py:12",
)  # fmt: skip
SOUND = (
    Rung(name="a.onnx on onnxruntime", samples=16),
    Rung(name="b.onnx on openvino", problem="it cannot be compiled"),
)
BAD = Rung(
    name="b.onnx on onnxruntime", against="a.onnx on onnxruntime", passed=False, output="logits", error=float("inf"),
    limit=1e-5, changed_labels=3, samples=16, blames=(BLAME,), layers=21,
)  # fmt: skip

Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edgekd", "verify", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def climbing(monkeypatch: pytest.MonkeyPatch, *rungs: Rung) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def ladder(first: str, second: str, **options: Any) -> Ladder:
        asked.append({"first": first, "second": second, **options})
        return Ladder(models=(first, second), rungs=rungs, real=False, problems=("random inputs",))

    monkeypatch.setattr(pipeline, "ladder", ladder)
    return asked


def test_a_fault_ends_with_1_and_names_the_layer(verify: Verify, monkeypatch: pytest.MonkeyPatch):
    climbing(monkeypatch, *SOUND, BAD)
    code, out, _ = verify("a.onnx", "b.onnx")
    assert code == 1
    for word in (
        "NOT THE SAME",
        "stages.0.1.conv (was node_7)",
        "nets.py:12",
        "it cannot be compiled",
        "3 of 16",
    ):
        assert word in out


def test_models_that_agree_end_with_0(verify: Verify, monkeypatch: pytest.MonkeyPatch):
    climbing(monkeypatch, *SOUND, replace(BAD, passed=True, error=1e-7, blames=()))
    code, out, _ = verify("a.onnx", "b.onnx")
    assert code == 0
    assert "THE SAME" in out
    assert "NOT" not in out
    assert "random inputs" in out


def test_json_has_the_verdict_the_rungs_and_the_first_bad_layer(
    verify: Verify, monkeypatch: pytest.MonkeyPatch
):
    climbing(monkeypatch, *SOUND, BAD)
    _, out, _ = verify("a.onnx", "b.onnx", "--json")
    found = json.loads(out)
    assert found["passed"] is False
    assert found["first_bad"]["layer"] == "stages.0.1.conv"
    assert found["first_bad"]["stands_out"] is True
    assert found["rungs"][2]["error"] is None  # infinite
    assert found["schema_version"] == 1


def test_a_layer_that_only_adds_the_most_is_not_called_bad(verify: Verify, monkeypatch: pytest.MonkeyPatch):
    climbing(monkeypatch, replace(BAD, blames=(replace(BLAME, own_error=1e-6),)))
    _, out, _ = verify("a.onnx", "b.onnx")
    assert "no layer stands out" in out
    climbing(monkeypatch, replace(BAD, blames=(), inside="it has no layers"))
    assert "no layer can be named: it has no layers" in verify("a.onnx", "b.onnx")[1]


def test_what_is_asked_for_reaches_the_ladder(verify: Verify, monkeypatch: pytest.MonkeyPatch):
    (asked,) = [climbing(monkeypatch, *SOUND)]
    options = "--data d.npz --mean 0.5 --std 0.2 --shape x=1x3 --limit 0.01 --weights w.pt --runtime openvino"
    verify("nets.py:net", "b.onnx", *options.split())
    assert asked[0]["first"] == "nets.py:net"
    assert asked[0]["second"] == "b.onnx"
    assert asked[0]["data"] == Path("d.npz")
    assert asked[0]["normalisation"].mean == (0.5,)
    assert asked[0]["shapes"] == {"x": (1, 3)}
    assert asked[0]["limit"] == 0.01
    assert asked[0]["weights"] == Path("w.pt")
    assert asked[0]["asked"] is True
    assert asked[0]["target"].runtimes == ("openvino",)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nowhere",),
        ("model.onnx",),
        ("nets.py:net",),
        (".", "--data", "x.npz"),
        (".", "--runtime", "openvino"),
    ],
)
def test_one_model_alone_is_a_usage_error(
    verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    code, _, err = verify(*arguments)
    assert code == 2
    assert "MODEL_A MODEL_B" in err
