from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekd import runner
from edgekd.runner import Refusal, Student, classify, from_image, load_image, preprocess
from edgekd.values.bundle import Bundle
from edgekd.values.codec import plain
from edgekd.values.preprocess import Preprocess

SPEC = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
FILES = ("MODEL_CARD.md", "model.bin", "model.onnx", "model.xml", "preprocess.json", "run.py", "samples.npz")

# Only these may be imported: what a bare virtual environment with numpy, onnxruntime and Pillow has.
BARE = """
import runpy, sys
class OnlyBare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {"numpy", "onnxruntime", "PIL"}:
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, OnlyBare())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pixels(count: int, channels: int = 3, size: int = 8) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture
def picture(made: Any, tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(made.images[0, ..., 0]).save(path)
    return path


def run(bundle: Bundle, picture: Path, *more: str) -> int:
    return runner.main(["--bundle", str(bundle.folder), "--image", str(picture), *more])


def edit_manifest(bundle: Bundle, edit: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_preprocessing_is_the_formula_on_every_pixel():
    images = pixels(3)
    expected = ((images / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)).transpose(0, 3, 1, 2)
    found = preprocess(images, SPEC)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_mapping_and_a_value_mean_the_same():
    np.testing.assert_array_equal(preprocess(pixels(2), SPEC), preprocess(pixels(2), plain(SPEC)))


@given(size=st.integers(1, 20), count=st.integers(1, 4), channels=st.sampled_from([1, 3]))
def test_an_image_is_prepared_alike_alone_and_in_a_batch(size: int, count: int, channels: int):
    spec = Preprocess(height=8, width=8, mean=(0.5,) * channels, std=(0.25,) * channels)
    images = pixels(count, channels, size)
    together = preprocess(images, spec)
    assert together.shape == (count, channels, 8, 8)
    for at in range(count):
        np.testing.assert_array_equal(together[at : at + 1], preprocess(images[at : at + 1], spec))


def test_resizing_is_pillows_bilinear():
    image = pixels(1, 3, 13)
    small = np.asarray(Image.fromarray(image[0]).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocess(image, SPEC), preprocess(small[None], SPEC))


@pytest.mark.parametrize(
    "images", [pixels(1, 1), pixels(1)[0], pixels(1).astype(np.float32)], ids=["grey", "no batch", "float"]
)
def test_other_images_are_refused(images: np.ndarray):
    with pytest.raises(ValueError, match=r"uint8 of shape \(N, H, W, 3\)"):
        preprocess(images, SPEC)


def test_the_runner_needs_only_numpy_one_runtime_and_pillow(made_bundle: Bundle, picture: Path, made: Any):
    command = [
        sys.executable,
        "-I",
        "-c",
        BARE,
        str(made_bundle.folder / "run.py"),
        "--image",
        str(picture),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    with np.load(made_bundle.folder / "samples.npz") as samples:
        assert answer["label"] == made.content.classes[samples["labels"][0]]
    assert answer["deployment"] == "onnxruntime/fp32"
    assert "openvino is not installed" in done.stderr


def test_a_module_laid_beside_the_runner_is_not_imported(made_bundle: Bundle, picture: Path):
    for name in ("numpy", "json", "__future__", "PIL", "onnxruntime"):
        (made_bundle.folder / f"{name}.py").write_text("raise SystemExit('hijacked')")
    command = [sys.executable, "run.py", "--image", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=made_bundle.folder)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_each_runtime_gives_the_recorded_logits(made_bundle: Bundle, made: Any, runtime: str):
    student = Student(made_bundle.folder, runtime)
    with np.load(made_bundle.folder / "samples.npz") as samples:
        given = preprocess(made.images, student.recipe)
        np.testing.assert_allclose(student.rows(given), samples["logits"], atol=1e-5)
        labels, probabilities = classify(student, made.images)
        assert labels == tuple(made.content.classes[at] for at in samples["labels"])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_the_top_classes_are_printed_with_their_probabilities(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(made_bundle, picture, "--top", "3", "--benchmark", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split("\t")[1]) for line in lines[:3]]
    assert shares == sorted(shares, reverse=True)
    assert lines[3].startswith("here: p50 ")
    assert lines[4].startswith("when bundled: p50 ")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_in_any_file_is_refused(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str], name: str
):
    assert set(FILES) == set(made_bundle.manifest.files)
    path = made_bundle.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(made_bundle, picture) == 6
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert name in message


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "./a",
        "",
        "..",
        "C:\\x",
        "C:/x",
        "..\\x",
        "a\x00b",
        "a\nb",
    ],
)
def test_a_name_that_may_lead_out_of_the_bundle_is_refused(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str], name: str
):
    edit_manifest(made_bundle, lambda manifest: manifest["files"].update({name: "0" * 64}))
    assert run(made_bundle, picture) == 6
    assert "may lead out of the bundle" in capsys.readouterr().err


def test_a_link_is_refused_even_to_the_right_bytes(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    moved = tmp_path / "elsewhere.onnx"
    (made_bundle.folder / "model.onnx").rename(moved)
    (made_bundle.folder / "model.onnx").symlink_to(moved)
    assert run(made_bundle, picture) == 6
    assert "symbolic link" in capsys.readouterr().err


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(schema_version=99),
        lambda manifest: manifest.update(deployments=3),
        lambda manifest: manifest.update(deployments=[{}]),
        lambda manifest: manifest["deployments"][0].update(files=["unlisted.onnx"]),
        lambda manifest: manifest["deployments"][0].pop("latency"),
        lambda manifest: manifest["files"].pop("preprocess.json"),
        lambda manifest: manifest["files"].update({"Model.onnx": "0" * 64}),
    ],
)
def test_a_malformed_manifest_is_refused_in_one_line(
    made_bundle: Bundle,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
):
    edit_manifest(made_bundle, edit)
    assert run(made_bundle, picture) == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_the_manifest_cannot_name_a_module_to_import(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
):
    edit_manifest(made_bundle, lambda m: [one.update(runtime="antigravity") for one in m["deployments"]])
    assert run(made_bundle, picture) == 4
    assert "antigravity" not in sys.modules
    message = capsys.readouterr().err
    assert "antigravity is none that this runner opens (onnxruntime, openvino, tensorrt" in message
    assert "pip install" not in message


def test_another_machine_is_a_warning_and_strictly_a_refusal(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(made_bundle, picture, "--strict") == 0
    assert capsys.readouterr().err == ""

    def elsewhere(manifest: dict[str, Any]) -> None:
        manifest["deployments"][0]["latency"]["conditions"]["hardware"]["features"] = ["avx4096"]

    edit_manifest(made_bundle, elsewhere)
    assert run(made_bundle, picture) == 0
    assert "measured on another machine (it had avx4096)" in capsys.readouterr().err
    assert run(made_bundle, picture, "--strict") == 4


def test_control_characters_of_a_class_name_never_reach_the_terminal(
    made_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
):
    edit_manifest(made_bundle, lambda manifest: manifest.update(classes=["\x1b[2Jx"] * 4))
    assert run(made_bundle, picture) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path):
    with pytest.raises(Refusal, match=r"it has no manifest\.json"):
        Student(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_a_broken_image_is_a_usage_error(
    made_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert run(made_bundle, path) == 2
    assert "cannot read the image" in capsys.readouterr().err


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "large.png"
    Image.new("L", (200, 100)).save(path)
    monkeypatch.setattr(from_image, "_IMAGE_LIMIT_PIXELS", 19_999)
    with pytest.raises(Refusal, match="200 x 100 pixels"):
        load_image(path, 1)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("RGB", 1), ("RGBA", 3), ("P", 3), ("L", 3), ("LA", 1)]
)
def test_images_of_every_mode_become_what_the_model_takes(tmp_path: Path, mode: str, channels: int):
    path = tmp_path / "image.png"
    Image.new(mode, (5, 7)).save(path)
    assert load_image(path, channels).shape == (1, 7, 5, channels)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path: Path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)).save(path)
    assert load_image(path, 1)[0, 0, :, 0].tolist() == [0, 1, 128, 255]
