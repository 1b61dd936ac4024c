from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd import pipeline
from edgekd.errors import IntegrityError, UsageError
from edgekd.pipeline import single
from edgekd.pipeline.profiling import layer_table
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Bundle
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

FP32 = Precision.FP32
REAL = ("onnxruntime", "openvino")


def target(*narrowed: str, runtimes: tuple[str, ...] = REAL) -> Target:
    profile = Profile(name="test", description="", runtimes=dict.fromkeys(runtimes, (FP32,)))
    return Target(profile=profile, device="local", runtimes=narrowed or runtimes, threads=2)


def rehearse(bundle: Bundle, threads: int = 1) -> Path:
    """Let the bundle's accepted deployment be one of the portable model on the rehearsal backend."""
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    own = {**manifest["deployments"][-1], "runtime": "rehearsal", "threads": threads}
    manifest["deployments"].insert(0, own)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return bundle.folder


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))


def test_a_bundle_is_measured_as_it_ships_with_the_ledger_of_a_request(made_bundle: Bundle):
    (only,) = pipeline.profile(made_bundle.folder, target()).results
    accepted = made_bundle.manifest.accepted
    assert (only.runtime, only.precision, only.problem) == (accepted.runtime, accepted.precision, "")
    assert only.model_sha256 == made_bundle.manifest.files[accepted.files[0]]
    assert only.latency_ms is not None
    assert only.latency_ms.p50 > 0
    assert only.ledger is not None
    assert all(ms > 0 for ms in only.ledger.parts_ms.values())
    assert only.ledger.whole_ms > 0


def test_the_target_may_name_another_of_its_runtimes(made_bundle: Bundle):
    (only,) = pipeline.profile(made_bundle.folder, target("onnxruntime")).results
    assert only.runtime == "onnxruntime"
    assert only.ledger is not None


def test_a_runtime_that_the_bundle_has_nothing_for_is_named_with_its_own(made_bundle: Bundle):
    narrowed = target("rehearsal", runtimes=(*REAL, "rehearsal"))
    with pytest.raises(UsageError, match=r"rehearsal.*\n.*openvino"):
        pipeline.profile(made_bundle.folder, narrowed)


def test_its_own_runtime_and_threads_are_used_whatever_the_target_has(made_bundle: Bundle):
    one = pipeline.profile(rehearse(made_bundle), target()).results[0]
    four = pipeline.profile(rehearse(made_bundle, threads=4), target()).results[0]
    assert one.runtime == four.runtime == "rehearsal"
    assert one.ledger is not None
    assert four.ledger is not None
    assert four.ledger.compute_ms < one.ledger.compute_ms  # on its clock threads help


def test_on_the_rehearsals_clock_the_ledger_is_the_latency(made_bundle: Bundle):
    (only,) = pipeline.profile(rehearse(made_bundle), target()).results
    assert only.ledger is not None
    assert only.latency_ms is not None
    assert only.ledger.beside_ms == 0
    assert only.ledger.compute_ms == pytest.approx(only.latency_ms.p50, rel=0.02)


def test_a_model_file_has_no_ledger(made_bundle: Bundle):
    results = pipeline.profile(made_bundle.folder / "model.onnx", target("onnxruntime")).results
    assert [one.ledger for one in results] == [None]


def test_a_precision_or_a_shape_is_refused(made_bundle: Bundle):
    with pytest.raises(UsageError, match="as it ships"):
        pipeline.profile(made_bundle.folder, target(), precisions=(FP32,))
    with pytest.raises(UsageError, match="as it ships"):
        pipeline.profile(made_bundle.folder, target(), shapes={"images": (1, 1, 8, 8)})


def test_a_folder_that_is_no_bundle_is_a_usage_error_that_says_what_to_give(tmp_path: Path):
    with pytest.raises(UsageError, match="neither a model nor a bundle") as caught:
        pipeline.profile(tmp_path, target())
    assert "bundle" in caught.value.mend


@pytest.mark.parametrize(
    "name", ["model.xml", "model.bin", "model.onnx", "preprocess.json", "samples.npz", "run.py"]
)
def test_a_bundle_that_was_tampered_with_is_not_measured(
    made_bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
):
    with (made_bundle.folder / name).open("ab") as file:
        file.write(b"\n")
    monkeypatch.setattr("edgekd.devices.local.LocalDevice.time", None)
    with pytest.raises(IntegrityError, match=name):
        pipeline.profile(made_bundle.folder, target())


def test_a_bundle_without_an_accepted_deployment_is_refused(made_bundle: Bundle):
    path = made_bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**manifest, "deployments": []}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="no accepted deployment"):
        pipeline.profile(made_bundle.folder, target())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "rehearsal"])
def test_layers_are_listed_beside_the_latency_of_the_file_itself(tmp_path: Path, runtime: str):
    path = models.conv_net(tmp_path / "m.onnx", width=64)
    table = layer_table(path, target(runtimes=(runtime,)), passes=3)
    assert (table.runtime, table.precision, table.passes) == (runtime, FP32, 3)
    assert table.model_sha256 == Artifact.of(path).sha256
    assert any("conv" in layer.kind.lower() for layer in table.layers)
    assert sum(share or 0.0 for share in table.shares) == pytest.approx(1.0)
    assert table.sum_of_layers_ms == pytest.approx(sum(layer.time_ms or 0.0 for layer in table.layers))
    assert table.latency.percentile(50) > 0
    assert table.latency.percentile(50) != table.sum_of_layers_ms


def test_the_layers_of_a_bundle_are_those_of_what_it_ships(made_bundle: Bundle):
    table = layer_table(made_bundle.folder, target(), passes=2)
    accepted = made_bundle.manifest.accepted
    assert (table.runtime, table.precision) == (accepted.runtime, accepted.precision)
    assert table.model_sha256 == made_bundle.manifest.files[accepted.files[0]]


@pytest.mark.parametrize("passes", [0, -1, 1001])
def test_so_many_passes_are_refused(tmp_path: Path, passes: int):
    with pytest.raises(UsageError, match="passes"):
        layer_table(models.conv_net(tmp_path / "m.onnx"), target(), passes=passes)
