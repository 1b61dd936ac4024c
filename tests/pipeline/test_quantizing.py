"""`edgekd quantize` on the rehearsal backend: what ships, why int8 does not, and that the float file always does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edgekd import pipeline
from edgekd.errors import DataError, ModelError, UsageError
from edgekd.pipeline import single
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.outcome import Quantized
from edgekd.values.target import Profile, Target
from tests.contracts import models
from tests.pipeline.rehearsed import WorkerHere

FP32, INT8, BF16 = Precision.FP32, Precision.INT8, Precision.BF16


def target(*runtimes: str, precisions: tuple[Precision, ...] = (FP32, INT8)) -> Target:
    profile = Profile(name="test", description="", runtimes=dict.fromkeys(runtimes, precisions))
    return Target(profile=profile, device="local", runtimes=runtimes, threads=1)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    monkeypatch.setattr("edgekd.stages.quantize.Child", WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Heavy enough that the rehearsal's int8 pays."""
    return models.conv_net(tmp_path / "net.onnx", width=64)


def images(folder: Path, count: int = 24, labels: int = 0) -> Path:
    """Pictures of noise, 8 x 8; in folders named after classes where there are labels."""
    rng = np.random.default_rng(0)
    for at in range(count):
        where = folder / f"class_{at % labels}" if labels else folder
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(where / f"{at:02d}.png")
    return folder


def light(path: Path) -> Path:
    """One convolution whose arithmetic is nothing beside the call."""
    nodes = [onnx.helper.make_node("Conv", ["image", "w"], ["maps"], kernel_shape=[1, 1])]
    inputs = {"image": (models.FLOAT, (1, 3, 8, 8))}
    return models.save(path, nodes, inputs, {"maps": (1, 2, 8, 8)}, {"w": models.weights(2, 3, 1, 1)})


def quantized(
    net: Path, tmp_path: Path, calibrate: Path | None, where: Target | None = None, **wish: object
) -> Quantized:
    return pipeline.quantize(
        net,
        target=where or target("rehearsal"),
        calibrate=calibrate,
        out=tmp_path / "out",
        **wish,  # type: ignore[arg-type]
    )


def is_delivered(files: dict[str, str]) -> bool:
    return bool(files) and all(
        Artifact(path=Path(path), sha256=sha256).verified() for path, sha256 in files.items()
    )


def test_int8_that_is_faster_and_loses_nothing_ships_with_the_float_file_beside(net: Path, tmp_path: Path):
    made = quantized(net, tmp_path, images(tmp_path / "images"))
    assert (made.precision, made.why) == (INT8, "")
    assert made.quantization is not None
    assert made.speedup > 1.03
    assert made.calibration_sha256
    assert made.samples == 24
    assert 0 < made.max_error < 0.1 * made.scale
    assert is_delivered(made.files)
    assert is_delivered(made.float_files)
    assert set(made.files) & set(made.float_files) == set()
    assert onnx.load(next(iter(made.float_files))).graph.node[0].op_type == "Conv"
    assert [one.precision for one in made.variants][:2] == [FP32, INT8]
    assert made.loss is not None


def test_int8_that_gains_nothing_stays_at_home_and_the_report_says_why(tmp_path: Path):
    net = light(tmp_path / "net.onnx")
    made = quantized(net, tmp_path, images(tmp_path / "images"))
    assert made.precision is FP32
    assert "faster" in made.why
    assert made.files == made.float_files
    assert is_delivered(made.files)
    tried = [one for one in made.variants if one.precision is INT8]
    assert tried
    assert all(one.p50_ms for one in tried)


def test_it_ships_anyway_where_that_is_asked_for_and_is_said(tmp_path: Path):
    net = light(tmp_path / "net.onnx")
    made = quantized(net, tmp_path, images(tmp_path / "images"), anyway=True)
    assert made.precision is INT8
    assert any("asked for" in problem for problem in made.problems)


def test_random_inputs_show_the_speed_and_ship_nothing(net: Path, tmp_path: Path):
    made = quantized(net, tmp_path, None)
    assert made.calibration_sha256 == ""
    assert made.precision is FP32
    assert "random" in made.why
    assert any("random" in problem for problem in made.problems)
    assert any(one.precision is INT8 and one.p50_ms for one in made.variants)


def test_one_image_tells_no_range(net: Path, tmp_path: Path):
    made = quantized(net, tmp_path, images(tmp_path / "images", count=1))
    assert made.precision is FP32
    assert "1 calibration input tells no range" in made.why
    assert is_delivered(made.files)


def test_a_few_images_are_warned_of(net: Path, tmp_path: Path):
    made = quantized(net, tmp_path, images(tmp_path / "images", count=20))
    assert any("20 calibration inputs" in problem for problem in made.problems)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.full((32, 1, 3, 8, 8), 0.5, np.float32), "constant"),
        (np.where(np.arange(32 * 192).reshape(32, 1, 3, 8, 8) == 5, np.nan, 0.1).astype(np.float32), "NaN"),
    ],
)
def test_worthless_rows_leave_the_float_file(net: Path, tmp_path: Path, rows: np.ndarray, says: str):
    np.save(tmp_path / "rows.npy", rows)
    made = quantized(net, tmp_path, tmp_path / "rows.npy")
    assert made.precision is FP32
    assert says in made.why
    assert is_delivered(made.files)


def test_rows_that_others_leave_far_behind_are_called_unrepresentative(net: Path, tmp_path: Path):
    rows = np.random.default_rng(0).random((80, 1, 3, 8, 8)).astype(np.float32)
    rows[3::4] *= 4.0  # those that are kept aside
    np.save(tmp_path / "rows.npy", rows)
    made = quantized(net, tmp_path, tmp_path / "rows.npy")
    assert any("leave the calibrated ranges" in problem for problem in made.problems)


def test_labelled_images_judge_where_they_are_given(net: Path, tmp_path: Path):
    data = images(tmp_path / "labelled", count=40, labels=5)
    made = quantized(net, tmp_path, images(tmp_path / "images"), data=str(data))
    judged = [one.loss for one in made.variants if one.loss]
    assert judged
    assert all(loss.drop is not None for loss in judged)
    assert all(loss.samples == 40 for loss in judged)


def test_other_float_precisions_are_variants_too(net: Path, tmp_path: Path):
    where = target("rehearsal", precisions=(FP32, BF16, INT8))
    made = quantized(net, tmp_path, images(tmp_path / "images"), where)
    (half,) = (one for one in made.variants if one.precision is BF16)
    assert half.p50_ms is not None
    assert half.parent_ms is not None
    assert half.p50_ms < half.parent_ms


def test_a_dynamic_batch_is_quantised_at_the_shape_given(tmp_path: Path):
    net = models.conv_net(tmp_path / "net.onnx", width=64, batch="n")
    made = quantized(net, tmp_path, images(tmp_path / "images"), shapes={"image": (2, 3, 8, 8)})
    assert made.samples == 12
    assert made.precision is INT8


def test_a_model_with_nothing_to_quantise_is_delivered_as_it_is(tmp_path: Path):
    nodes = [onnx.helper.make_node("Sin", ["image"], ["maps"])]
    inputs = {"image": (models.FLOAT, (1, 3, 8, 8))}
    net = models.save(tmp_path / "net.onnx", nodes, inputs, {"maps": (1, 3, 8, 8)})
    made = quantized(net, tmp_path, images(tmp_path / "images"))
    assert made.precision is FP32
    assert "nothing to quantise" in made.why


def test_what_cannot_be_quantised_at_all_is_refused_before_anything_runs(tmp_path: Path):
    pictures = images(tmp_path / "images")
    with pytest.raises(ModelError, match="int8 already"):
        quantized(models.quantized_net(tmp_path / "int8.onnx"), tmp_path, pictures)
    with pytest.raises(DataError, match="int64"):
        quantized(models.embedding(tmp_path / "tokens.onnx"), tmp_path, pictures)
    (tmp_path / "net.xml").write_text("<net/>")
    with pytest.raises((UsageError, ModelError)):
        quantized(tmp_path / "net.xml", tmp_path, pictures)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_real_runtimes_are_served_by_the_same_code(runtime: str, net: Path, tmp_path: Path):
    made = quantized(net, tmp_path, images(tmp_path / "images"), target(runtime), seconds=20.0)
    assert is_delivered(made.float_files)
    assert any(one.precision is INT8 and one.p50_ms for one in made.variants)
    assert (made.precision is INT8) == (made.why == "")
