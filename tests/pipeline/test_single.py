from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekd import pipeline
from edgekd.devices import connect
from edgekd.errors import BackendMissing, BuildError, DataError, IntegrityError, ModelError, UsageError
from edgekd.pipeline import single
from edgekd.stages.gather import MOST_SAMPLES, gather
from edgekd.stages.match import match
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision, Signature, TensorSpec
from edgekd.values.order import ProbeReply, RuntimeHealth
from edgekd.values.preprocess import Normalisation
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.conftest import Finished
from tests.pipeline.rehearsed import WorkerHere

FP32, INT8 = Precision.FP32, Precision.INT8
IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 8))


def target(*runtimes: str) -> Target:
    profile = Profile(name="test", description="", runtimes=dict.fromkeys(runtimes, (FP32, INT8)))
    return Target(profile=profile, device="local", runtimes=runtimes, threads=1)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr("edgekd.stages.quantize.Child", WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty pictures of noise, 10 x 12 pixels."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for at in range(20):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{at:02d}.png")
    return folder


def test_a_profile_says_what_was_measured_and_how(tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx")
    found = pipeline.profile(path, target("rehearsal"))
    (only,) = found.results
    assert (only.runtime, only.precision, only.problem) == ("rehearsal", FP32, "")
    assert only.model_sha256 == Artifact.of(path).sha256
    assert only.latency_ms is not None
    assert only.latency_ms.samples == 40
    assert only.latency_ms.p50 <= only.latency_ms.p99


@pytest.mark.parametrize("make", [models.recurrent_cell, models.embedding, models.fused_outputs])
def test_models_of_several_inputs_states_and_integers_are_profiled(make: Any, tmp_path: Path):
    found = pipeline.profile(make(tmp_path / "model.onnx"), target("onnxruntime", "openvino"))
    assert [one.problem for one in found.results] == ["", ""]


def test_dynamic_dimensions_default_to_one_and_can_be_given(tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx", batch="n")
    one = pipeline.profile(path, target("rehearsal")).results[0].latency_ms
    many = pipeline.profile(path, target("rehearsal"), shapes={"image": (64, 3, 8, 8)}).results[0].latency_ms
    assert one is not None
    assert many is not None
    assert many.p50 > 5 * one.p50


@pytest.mark.parametrize(
    ("shapes", "word"),
    [({"imgae": (1, 3, 8, 8)}, "did you mean 'image'"), ({"image": (1, 3, 9, 8)}, "1x3x8x8")],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], word: str, tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx")
    with pytest.raises(UsageError) as caught:
        pipeline.profile(path, target("rehearsal"), shapes=shapes)
    assert word in str(caught.value)


def test_int8_of_a_float_model_is_refused_with_the_command_that_makes_one(tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="edgekd quantize"):
        pipeline.profile(path, target("rehearsal"), precisions=(INT8,))


def test_an_int8_model_is_profiled_as_int8_and_not_as_float(tmp_path: Path):
    path = models.quantized_net(tmp_path / "net.onnx")
    found = pipeline.profile(path, target("rehearsal", "onnxruntime"))
    assert [one.precision for one in found.results] == [INT8, INT8]
    with pytest.raises(ModelError, match="int8 model"):
        pipeline.profile(path, target("rehearsal"), precisions=(FP32,))


def test_a_precision_that_one_runtime_lacks_is_a_problem_of_that_runtime_alone(tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx")
    found = pipeline.profile(path, target("rehearsal", "onnxruntime"), precisions=(Precision.BF16,))
    assert [bool(one.problem) for one in found.results] == [False, True]
    with pytest.raises(BuildError, match="onnxruntime/bf16"):
        pipeline.profile(path, target("onnxruntime"), precisions=(Precision.BF16,))


def test_a_hostile_model_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError):
        pipeline.profile(models.conv_without_weights(tmp_path / "net.onnx"), target("rehearsal"))


def test_no_working_runtime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with connect(target("rehearsal")) as device:
        machine = device.probe().conditions
    broken = RuntimeHealth(
        name="rehearsal", version="", works=False, problem="it is gone", mend="pip install onnx"
    )
    reply = ProbeReply(conditions=machine, runtimes=(broken,))
    monkeypatch.setattr("edgekd.devices.local.LocalDevice.probe", lambda _: reply)
    with pytest.raises(BackendMissing, match=r"it is gone.*\n.*pip install onnx"):
        pipeline.profile(models.conv_net(tmp_path / "net.onnx"), target("rehearsal"))


def test_an_ir_without_openvino_says_that_openvino_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = pipeline.compile_(
        models.conv_net(tmp_path / "net.onnx"), runtime="openvino", target=target("openvino"), out=tmp_path
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "edgekd.backends.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendMissing, match="pip install openvino"):
        pipeline.profile(Path(next(iter(made.files))), target("openvino"))


def test_profiling_imports_no_torch():
    code = (
        "import sys, edgekd.pipeline, edgekd.pipeline.single, edgekd.cli.models, edgekd.cli.tables;"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_slow_models_get_fewer_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = models.conv_net(tmp_path / "net.onnx")
    monkeypatch.setattr(single, "_MOST_MS", 0.0)
    latency = pipeline.profile(path, target("rehearsal")).results[0].latency_ms
    assert latency is not None
    assert latency.samples == 2 * 5  # two blocks of the least


@pytest.mark.parametrize(("runtime", "ends"), [("onnxruntime", [".onnx"]), ("openvino", [".xml", ".bin"])])
def test_a_compiled_file_computes_what_its_source_does(runtime: str, ends: list[str], tmp_path: Path):
    path = models.conv_net(tmp_path / "net.onnx")
    made = pipeline.compile_(path, runtime=runtime, target=target(runtime), out=tmp_path / "out")
    assert [Path(file).suffix for file in made.files] == ends
    assert all(Artifact(path=Path(file), sha256=sha256).verified() for file, sha256 in made.files.items())
    assert made.max_error <= 1e-5 * made.scale
    assert made.problems == ()


def test_images_are_resized_scaled_and_normalised(images: Path, tmp_path: Path):
    normalisation = Normalisation(mean=(0.5,), std=(0.25, 0.5, 1.0))
    signature = Signature(inputs=(IMAGE,), outputs=())
    plain, normalised = (
        np.load(gather(tmp_path / str(at), signature, images, how)["image"].path)
        for at, how in enumerate((None, normalisation))
    )
    assert plain.shape == (20, 1, 3, 8, 8)
    assert 0 <= plain.min() < plain.max() <= 1
    scale = np.array([0.25, 0.5, 1.0]).reshape(3, 1, 1)
    np.testing.assert_allclose(normalised, (plain - 0.5) / scale, atol=1e-5)


def test_images_fit_inputs_with_channels_last_and_with_a_batch(images: Path, tmp_path: Path):
    last = TensorSpec(name="image", dtype="float32", shape=(6, 8, 8, 3))
    rows = gather(tmp_path / "rows", Signature(inputs=(last,), outputs=()), images)
    assert np.load(rows["image"].path).shape == (4, 6, 8, 8, 3)  # 20 images in rows of 6


def test_arrays_may_come_with_or_without_a_batch_dimension(tmp_path: Path):
    signature = Signature(inputs=(IMAGE,), outputs=())
    array = np.random.default_rng(0).random((5, 3, 8, 8))
    for name, given in (("with", array[:, None]), ("without", array)):
        np.savez(tmp_path / f"{name}.npz", image=given)
        rows = gather(tmp_path / name, signature, tmp_path / f"{name}.npz")
        np.testing.assert_array_equal(np.load(rows["image"].path), array[:, None].astype(np.float32))


def test_at_most_so_many_rows_are_taken_from_all_over(tmp_path: Path):
    np.save(tmp_path / "all.npy", np.arange(1000, dtype=np.float32).reshape(1000, 1))
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 1))
    rows = np.load(
        gather(tmp_path / "rows", Signature(inputs=(spec,), outputs=()), tmp_path / "all.npy")["x"].path
    )
    assert len(rows) == MOST_SAMPLES
    assert (rows[0].item(), rows[-1].item()) == (0, 999)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"imag": np.zeros((2, 3, 8, 8), np.float32)}, "'imag' is no input"),
        ({"image": np.zeros((2, 3, 9, 8), np.float32)}, "nx1x3x8x8"),
        ({"image": np.zeros((2, 3, 8, 8), np.uint8)}, "uint8"),
        ({"image": np.zeros((0, 3, 8, 8), np.float32)}, "rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], word: str, tmp_path: Path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError) as caught:
        gather(tmp_path / "rows", Signature(inputs=(IMAGE,), outputs=()), tmp_path / "data.npz")
    assert word in str(caught.value)


def test_pickled_arrays_and_other_files_are_refused(tmp_path: Path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "notes.txt").write_text("no inputs")
    for name in ("objects.npy", "notes.txt", "absent.npz"):
        with pytest.raises(DataError):
            gather(tmp_path / "rows", Signature(inputs=(IMAGE,), outputs=()), tmp_path / name)


def test_a_match_names_the_worst_output_and_counts_changed_labels():
    logits = np.array([[[1.0, 2.0]], [[4.0, 3.0]]], np.float32)
    other = np.array([[[1.0, 2.0]], [[2.5, 3.0]]], np.float32)
    maps = np.ones((2, 1, 3, 3), np.float32)
    found = match({"maps": maps, "logits": logits}, {"maps": maps + 1e-6, "logits": other})
    assert (found.output, found.max_error, found.scale, found.changed_labels) == ("logits", 1.5, 4.0, 1)


def test_what_is_not_finite_or_of_another_shape_never_matches():
    wanted = {"a": np.ones((2, 1, 4), np.float32)}
    assert match(wanted, {"a": np.full((2, 1, 4), np.nan, np.float32)}).max_error == float("inf")
    with pytest.raises(ModelError, match="another shape"):
        match(wanted, {"a": np.ones((2, 1, 5), np.float32)})


def test_the_smallest_outputs_are_held_against_the_spacing_of_floats():
    faint = {"score": np.full((1, 1, 4), 1e-6, np.float32)}
    assert match(faint, {"score": faint["score"] + np.float32(1e-7)}).relative_error < 1e-5


def test_a_report_is_written_again_to_the_same_bytes(finished: Finished, tmp_path: Path):
    for name in ("run.json", "trials.sqlite"):
        shutil.copyfile(finished.out / name, tmp_path / name)
    page = pipeline.report(tmp_path)
    assert page.read_bytes() == finished.outcome.report.read_bytes()


def test_a_folder_without_a_run_has_no_report(tmp_path: Path):
    with pytest.raises(UsageError, match=r"run\.json"):
        pipeline.report(tmp_path)
    (tmp_path / "trials.sqlite").touch()
    (tmp_path / "run.json").write_text(json.dumps({"job": {}}))
    with pytest.raises(IntegrityError, match="damaged"):
        pipeline.report(tmp_path)


def test_a_model_is_placed_with_the_weights_that_it_looks_for(tmp_path: Path):
    model = models.spread_engine(models.spread_net(tmp_path / "m.onnx")).model
    placed = single.place(tmp_path / "out", model, "m.onnxruntime")
    assert list(placed) == [str(tmp_path / "out" / name) for name in ("m.onnxruntime.onnx", *models.SPREAD)]
    assert all(Artifact.of(Path(path)).sha256 == sha256 for path, sha256 in placed.items())
