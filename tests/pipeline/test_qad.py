from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest

from edgekd.errors import ConfigError, TrainingError
from edgekd.pipeline import shrinking
from edgekd.pipeline.measuring import accuracy_of, engine_of
from edgekd.pipeline.qad import distilled_int8, scheme_for
from edgekd.pipeline.trials import distilled, training_of
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.values.conditions import Hardware
from edgekd.values.job import DistillationSection
from edgekd.values.model import Precision
from edgekd.values.student import StageSpec, StudentSpec
from edgekd.values.trial import Proposal, Trial, Verdict
from edgekd.values.variant import Method
from tests.pipeline import rehearsed

SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)


def hardware(machine: str, *features: str) -> Hardware:
    return Hardware(machine=machine, processor="", cores=1, memory_mib=1, features=features)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    rehearsed.stay_in_this_process(monkeypatch)
    job = rehearsed.with_(rehearsed.JOB, distillation={"quantized_epochs": 1, "epochs": 1, "views": 1})
    with workbench(
        job, beside=tmp_path, name="small", out=tmp_path, teacher=rehearsed.teacher(), data=rehearsed.digits()
    ) as made:
        yield made


def test_a_finalist_s_int8_file_is_distilled_written_and_run_on_the_device(bench: Workbench):
    checkpoint = distilled(bench, SPEC, 1)
    model = distilled_int8(bench, SPEC, checkpoint, "rehearsal")
    kinds = {node.op_type for node in onnx.load(model.file.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert distilled_int8(bench, SPEC, checkpoint, "rehearsal") == model
    engine = engine_of(bench, model, "rehearsal", Precision.INT8)
    assert 0 <= accuracy_of(bench, engine, SPEC, "validation") <= 1


def test_each_runtime_has_what_its_kernels_fuse():
    vnni, old, arm = (
        hardware("x86_64", "avx512_vnni"),
        hardware("x86_64", "avx2"),
        hardware("aarch64", "asimddp"),
    )
    assert scheme_for("onnxruntime", vnni).everywhere
    assert not scheme_for("openvino", vnni).everywhere
    for runtime in ("tensorrt", "tensorrt-dla", "tensorrt-graph", "trtexec"):
        scheme = scheme_for(runtime, arm)
        assert (scheme.symmetric, scheme.everywhere, scheme.weight_bits) == (True, False, 8)
    bits = [scheme_for("onnxruntime", one).weight_bits for one in (vnni, old, arm)]
    assert bits == [8, 7, 8]


def found(**parts: object) -> Any:
    """What came of looking for an int8 form."""
    return cast(
        "Any", SimpleNamespace(**{"best": None, "fastest": None, "quickest": None, "exchange": None, **parts})
    )


def form(bench: Workbench) -> Any:
    model = SimpleNamespace(file=SimpleNamespace(sha256="1"))
    engine = engine_of(bench, cast("Any", model), "rehearsal", Precision.INT8)
    return SimpleNamespace(engine=engine)


def test_it_is_tried_only_where_int8_is_faster_and_no_whole_file_keeps_the_accuracy(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(shrinking, "distilled_int8", lambda *given: asked.append(given) or "model")
    one = form(bench)
    for parts, tried in (
        ({}, False),
        ({"quickest": one}, False),
        ({"fastest": one, "best": one}, False),
        ({"fastest": one, "best": one, "exchange": "two layers"}, True),
        ({"fastest": one}, True),
    ):
        asked.clear()
        made = shrinking._distilled(bench, SPEC, cast("Any", None), found(**parts))
        assert bool(asked) == bool(made) == tried
    assert made[0].model == "model"


def test_no_epochs_are_no_attempt_and_the_float_student_is_the_same_whatever_they_are(bench: Workbench):
    never = dataclasses.replace(bench, job=rehearsed.with_(bench.job, distillation={"quantized_epochs": 0}))
    assert shrinking._distilled(never, SPEC, cast("Any", None), found(fastest=form(bench))) == []
    assert training_of(never, SPEC, 1) == training_of(bench, SPEC, 1)
    with pytest.raises(ConfigError, match="quantized_epochs must be at least 0"):
        DistillationSection(quantized_epochs=-1)


def test_a_training_that_diverges_leaves_the_other_files(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise TrainingError("it diverged")

    monkeypatch.setattr(shrinking, "distilled_int8", fail)
    assert shrinking._distilled(bench, SPEC, cast("Any", None), found(fastest=form(bench))) == []


def test_its_trial_says_how_the_file_was_made(bench: Workbench):
    engine = form(bench).engine
    proposal = Proposal(spec=SPEC, runtime="rehearsal", precision=Precision.INT8)
    trial = Trial(proposal=proposal, verdict=Verdict.FITS, engine=engine)
    labelled = shrinking.Shrunk(drafts=(), failed=(), found=(), distilled=(engine,)).labelled(trial)
    assert labelled.quantization is not None
    assert labelled.quantization.method is Method.DISTILLED
