"""Each verb hands what it was given to one function, and prints what that returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd import pipeline
from edgekd.__main__ import main
from edgekd.errors import BudgetError
from edgekd.values.bundle import Accuracies, Check, LatencySummary, VerifyReport
from edgekd.values.codec import plain
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision, Signature, TensorSpec
from edgekd.values.outcome import (
    ChosenStudent,
    Exported,
    ExportedFile,
    Outcome,
    Plan,
    Profile,
    Profiled,
    Reach,
    Relaxation,
)
from edgekd.values.student import StageSpec, StudentSpec
from tests.values.test_ledger import LEDGER

SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)
LATENCY = LatencySummary(
    p50=0.5,
    p90=0.6,
    p95=0.7,
    p99=0.8,
    p99_upper=0.9,
    mean=0.55,
    confidence=0.95,
    samples=1200,
    protocol=Protocol(),
    trust=Trust(verdict=TrustVerdict.GOOD),
    conditions=Conditions(
        hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1, features=()),
        software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
        load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
    ),
)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 3, None, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 10)),),
)
OUTCOME = Outcome(
    bundle=Path("out/my bundle"),
    report=Path("out/report.html"),
    student=ChosenStudent(spec=SPEC, precision=Precision.INT8, runtime="openvino"),
    latency_ms=LATENCY,
    teacher_latency_ms=LATENCY,
    budget={"p99": 1.25},
    accuracy=Accuracies(
        metric="top-1",
        teacher=0.98,
        student=0.97,
        validation_teacher=0.97,
        validation_student=0.96,
        test_samples=360,
    ),
    trials={"fits": 1, "too slow": 3},
    device_seconds=30.0,
    train_seconds=60.0,
    seconds=100.0,
)
PLAN = Plan(
    reachable=False,
    limits_ms={"openvino": {"p99": 0.25}},
    teacher_p99_ms={"openvino": 1.0},
    fastest_measured_ms=float("inf"),
    frontier=(
        Reach(
            spec=SPEC,
            runtime="openvino",
            precision=Precision.FP32,
            expected_ms=0.3,
            low_ms=0.2,
            high_ms=0.4,
            mega_macs=1.5,
        ),
    ),
    relaxations=(Relaxation(change="a limit of 0.3 ms", saves_ms=0.05),),
    steps=(Relaxation(change="input 8 -> 4", saves_ms=0.02),),
    expected_proposals=5.5,
    expected_seconds=None,
    space_size=10**6,
    measured=12,
    trials=4,
    device_seconds=20.0,
)
PROFILED = Profiled(
    model_sha256="ab",
    runtime="onnxruntime",
    precision=Precision.FP32,
    latency_ms=LATENCY,
    open_ms=20.0,
    memory_mib=10.0,
)
BROKEN = Profiled(
    model_sha256="ab",
    runtime="openvino",
    precision=Precision.BF16,
    latency_ms=None,
    open_ms=None,
    memory_mib=None,
    problem="no [bf16] here",
)
PROFILE = Profile(signature=SIGNATURE, results=(BROKEN, PROFILED))
EXPORTED = Exported(
    source="models.py:net",
    signature=SIGNATURE,
    opset=18,
    exports=(
        ExportedFile(
            files={"model.onnx": "ab"},
            runtime="onnxruntime",
            precision=Precision.FP32,
            max_error=1e-6,
            scale=10.0,
            changed_labels=0,
            samples=32,
            latency_ms=LATENCY,
        ),
    ),
    problems=("openvino is not installed",),
    calibration_sha256="",
)

Edgekd = Callable[..., tuple[int, str, str]]
Asked = dict[str, Any]


@pytest.fixture
def edgekd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Edgekd:
    """Run a command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgekd", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, shown.out, shown.err

    return run


def answering(monkeypatch: pytest.MonkeyPatch, name: str, answer: object) -> Asked:
    """Let a function of the pipeline return `answer` (or raise it), and remember what it was asked."""
    asked: Asked = {}

    def function(*given: object, **named: object) -> object:
        asked.update(named, given=given)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(pipeline, name, function, raising=False)
    return asked


def test_run_hands_the_job_over_and_prints_what_was_accepted(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, "run", OUTCOME)
    code, out, err = edgekd("run", "digits", "search.trials=2", "budget.latency_ms.p99=1.25")
    (job,) = asked["given"]
    assert (job.search.trials, job.budget.latency_ms.p99) == (2, 1.25)
    assert (asked["name"], asked["out"]) == ("digits", Path("runs/digits"))
    assert asked["command"] == "edgekd run digits search.trials=2 budget.latency_ms.p99=1.25"
    assert asked["beside"].name == "jobs"
    assert code == 0
    assert err == ""
    for part in ("ACCEPTED", "openvino, int8", "p99 0.800 ms (at most 0.900 at 95%)", "p99 1.250 ms"):
        assert part in out
    for part in ("teacher 0.9800, student 0.9700 (-1.00 points", "1 fits, 3 too slow", "1 min 40 s"):
        assert part in out
    assert "python 'out/my bundle/run.py' --image some.png" in out


def test_run_as_json_is_one_object_with_what_the_design_promises(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, "run", OUTCOME)
    code, out, _ = edgekd("run", "digits", "--json", "--out", "here")
    data = json.loads(out)
    assert code == 0
    assert asked["out"] == Path("here")
    assert next(iter(data)) == "schema_version"
    wanted = {
        "bundle",
        "student",
        "latency_ms",
        "budget",
        "accuracy",
        "trials",
        "device_seconds",
        "train_seconds",
    }
    assert wanted <= data.keys()
    assert {"spec", "precision", "runtime"} <= data["student"].keys()
    assert {"teacher", "student"} <= data["accuracy"].keys()


def test_a_run_that_accepts_nothing_ends_with_1_and_says_why(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "run", BudgetError("no student fits", cause="p99 2 ms", mend="allow 2.1 ms"))
    code, out, err = edgekd("run", "digits", "--json")
    assert (code, out) == (1, "")
    assert err == "error: no student fits\n  because: p99 2 ms\n  to mend it: allow 2.1 ms\n"


def test_a_misspelt_key_ends_with_2_before_anything_runs(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, "run", OUTCOME)
    code, _, err = edgekd("run", "digits", "search.trails=2")
    assert code == 2
    assert not asked
    assert "did you mean 'trials'?" in err


def test_an_unknown_option_and_an_unknown_verb_end_with_2(edgekd: Edgekd) -> None:
    for arguments in (("run", "digits", "--jsno"), ("rnu",), ("run",)):
        code, out, err = edgekd(*arguments)
        assert (code, out) == (2, "")
        assert err


def test_a_plan_out_of_reach_ends_with_1_and_the_relaxations(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, "plan", PLAN)
    code, out, _ = edgekd("plan", "digits")
    assert code == 1
    assert asked["out"] == Path("runs/digits")  # a run goes on with what was measured
    for part in ("OUT OF REACH", "a limit of 0.3 ms", "0.200-0.400", "openvino/fp32"):
        assert part in out
    code, out, _ = edgekd("plan", "digits", "--json")
    assert json.loads(out)["fastest_measured_ms"] is None  # JSON knows no infinity


def test_profile_hands_shapes_and_target_over(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "profile", PROFILE)
    code, out, _ = edgekd(
        "profile",
        "m.onnx",
        "--shape",
        "a=1x3",
        "--shape",
        "b=2",
        "--runtime",
        "onnxruntime",
        "--threads",
        "2",
    )
    model, target = asked["given"]
    assert code == 0
    assert model == Path("m.onnx")
    assert (target.runtimes, target.threads) == (("onnxruntime",), 2)
    assert asked["shapes"] == {"a": (1, 3), "b": (2,)}
    assert "0.900" in out
    assert "no [bf16] here" in out  # a problem is text, never markup


def test_profile_as_json_has_the_fastest_result_at_the_top(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, "profile", PROFILE)
    data = json.loads(edgekd("profile", "m.onnx", "--json")[1])
    assert (data["model_sha256"], data["runtime"], data["precision"]) == ("ab", "onnxruntime", "fp32")
    assert {"p50", "p90", "p95", "p99", "p99_upper", "mean"} <= data["latency_ms"].keys()
    assert data["samples"] == 1200
    assert {"verdict", "reasons"} <= data["trust"].keys()
    assert {"protocol", "conditions", "signature"} <= data.keys()
    assert [one["runtime"] for one in data["results"]] == ["openvino", "onnxruntime"]


def test_profile_of_a_bundle_shows_its_ledger(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "profile", replace(PROFILE, results=(replace(PROFILED, ledger=LEDGER),)))
    out = edgekd("profile", "bundle")[1]
    for part in ("pre-processing", "copy in", "compute", "copy out", "post-processing", "timed as one"):
        assert part in " ".join(out.split())
    for ms in ("0.0200", "0.0010", "0.3000", "0.0020", "0.0100", "0.3400", "0.0330"):
        assert ms in out
    data = json.loads(edgekd("profile", "bundle", "--json")[1])
    assert data["ledger"] == data["results"][0]["ledger"] == plain(LEDGER)


def test_threads_of_a_bundle_are_its_own(edgekd: Edgekd, tmp_path: Path) -> None:
    code, out, err = edgekd("profile", str(tmp_path), "--threads", "2")
    assert (code, out) == (2, "")
    assert "--threads" in err


def test_export_hands_everything_over(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, "export", EXPORTED)
    code, out, _ = edgekd(
        "export", "models.py:net", "--weights", "w.safetensors", "--input", "images=1x3x8x8", "--to",
        "onnx,openvino", "--precision", "fp32,int8", "--calibrate", "images", "--dynamic-batch",
    )  # fmt: skip
    assert code == 0
    assert asked["given"] == ("models.py:net",)
    assert asked["to"] == ("onnx", "openvino")
    assert asked["precisions"] == (Precision.FP32, Precision.INT8)
    assert asked["inputs"] == {"images": (1, 3, 8, 8)}
    assert (asked["weights"], asked["calibrate"]) == (Path("w.safetensors"), Path("images"))
    assert (asked["out"], asked["dynamic_batch"], asked["opset"]) == (Path("exported"), True, None)
    for part in ("model.onnx", "1.0e-07 of the scale", "0 of 32", "openvino is not installed"):
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("export", "m.onnx", "--to", "openvnio"), "did you mean 'openvino'?"),
        (("export", "m.onnx", "--input", "images"), "--input images=1x3x224x224"),
        (("profile", "m.onnx", "--precision", "fp64"), "fp32"),
        (("profile", "m.onnx", "--runtime", "openvion"), "did you mean 'openvino'?"),
        (("profile", "m.onnx", "--profile", "x86-cup"), "did you mean 'x86-cpu'?"),
        (("config", "shwo", "digits"), "did you mean 'show'?"),
        (("distill", "digits", "--student", "none.json"), "none.json"),
        (("compile", "m.onnx", "--runtime", "openvino", "--precision", "fp32,int8"), "one precision"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_mend(
    edgekd: Edgekd, arguments: tuple[str, ...], word: str
) -> None:
    code, out, err = edgekd(*arguments)
    assert (code, out) == (2, "")
    assert word in err


@pytest.mark.parametrize(("passed", "expected"), [(True, 0), (None, 0), (False, 1)])
def test_verify_ends_with_what_it_found(
    edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, passed: bool | None, expected: int
) -> None:
    report = VerifyReport(folder=tmp_path, checks=(Check(name="digests", passed=passed, detail="7 files"),))
    answering(monkeypatch, "verify", report)
    code, out, _ = edgekd("verify", str(tmp_path))
    assert code == expected
    assert "7 files" in out
    assert ("VERIFIED" in out) is (expected == 0)


def test_a_bundle_that_is_not_there_is_a_usage_error(edgekd: Edgekd) -> None:
    assert edgekd("verify", "nowhere")[0] == 2
    assert edgekd("report", "nowhere")[0] == 2


def test_config_shows_every_key_with_its_origin(edgekd: Edgekd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_SEARCH__SEED", "5")
    code, out, _ = edgekd("config", "show", "digits", "search.trials=2", "--json")
    settings = json.loads(out)["settings"]
    assert code == 0
    assert settings["search.trials"] == {"value": 2, "origin": "command line"}
    assert settings["search.seed"] == {"value": 5, "origin": "environment EDGEKD_SEARCH__SEED"}
    assert settings["task.data"] == {"value": "digits", "origin": "job digits"}
    code, out, _ = edgekd("config", "show", "digits", "search.trials=2")
    assert code == 0
    assert all(key in out for key in settings)


def test_the_users_file_is_read(edgekd: Edgekd, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "edgekd" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[search]\nseed = 9\n", encoding="utf-8")
    settings = json.loads(edgekd("config", "show", "digits", "--json")[1])["settings"]
    assert settings["search.seed"] == {"value": 9, "origin": f"user file {path}"}


def test_init_writes_a_job_that_config_shows_and_a_second_time_refuses(edgekd: Edgekd) -> None:
    code, out, _ = edgekd("init", "my job", "--data", "pictures", "--p99", "2.5")
    assert code == 0
    assert "edgekd plan 'my job/job.toml'" in out
    settings = json.loads(edgekd("config", "show", "my job/job.toml", "--json")[1])["settings"]
    assert settings["budget.latency_ms.p99"]["value"] == 2.5
    assert settings["task.data"]["value"] == "pictures"
    code, _, err = edgekd("init", "my job")
    assert code == 2
    assert "there already" in err


def test_no_verb_at_all_shows_the_guide(edgekd: Edgekd) -> None:
    code, out, err = edgekd()
    assert code in (0, 2)
    assert "edgekd run digits" in out + err
