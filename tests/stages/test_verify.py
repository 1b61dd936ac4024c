from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.devices.local import LocalDevice
from edgekd.errors import BackendMissing, IntegrityError, ModelError
from edgekd.runner import Student
from edgekd.stages.bundle import bundle
from edgekd.stages.verify import parity, verify_bundle
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle
from edgekd.values.model import Engine, Precision, Signature, TensorSpec
from edgekd.values.target import Profile, Target

Outputs = Callable[[Engine, np.ndarray], np.ndarray]


@dataclass
class ScriptedDevice:
    """Runs a bundle through its own runner, and lets a test bend what comes out."""

    folder: Path
    bend: Outputs = lambda _, logits: logits
    shape: tuple[int | None, ...] = (1, 1, 8, 8)
    missing: tuple[str, ...] = ()
    inspected: list[str] = field(default_factory=list)

    def inspect(self, model: Artifact) -> Signature:
        self.inspected.append(model.path.name)
        images, logits = (
            TensorSpec(name=name, dtype="float32", shape=shape)
            for name, shape in (("images", self.shape), ("logits", (1, 4)))
        )
        return Signature(inputs=(images,), outputs=(logits,))

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        if engine.runtime in self.missing:
            raise BackendMissing(f"{engine.runtime} is not installed")
        rows = np.load(inputs["images"].verified())
        run = Student(self.folder, engine.runtime).rows
        folder.mkdir(parents=True)
        np.save(folder / "logits.npy", self.bend(engine, np.stack([run(row) for row in rows])))
        return {"logits": Artifact.of(folder / "logits.npy")}


def rewrite(made: Bundle, name: str, content: bytes) -> None:
    """Change a file and its digest in the manifest, as somebody would who knows the format."""
    (made.folder / name).write_bytes(content)
    path = made.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = sha256_of(made.folder / name)
    path.write_text(json.dumps(manifest))


def failed(report: Any) -> list[str]:
    return [check.name for check in report.checks if check.passed is False]


def test_a_bundle_passes_on_the_real_runtimes(made_bundle: Bundle, tmp_path: Path):
    runtimes = {"onnxruntime": (Precision.FP32,), "openvino": (Precision.FP32,)}
    profile = Profile(name="here", description="this machine", runtimes=runtimes)
    target = Target(profile=profile, device="local", runtimes=tuple(runtimes), threads=1)
    report = verify_bundle(made_bundle.folder, LocalDevice(target), tmp_path / "scratch")
    assert report.passed, report.checks
    compared = {check.name for check in report.checks if check.parity is not None}
    assert compared >= {"openvino/fp32, real inputs", "onnxruntime/fp32, real inputs"}


def test_every_model_is_inspected_and_everything_passes(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(made_bundle.folder)
    report = verify_bundle(made_bundle.folder, device, tmp_path / "scratch")
    assert sorted(device.inspected) == ["model.onnx", "model.xml"]
    assert report.passed, report.checks


@pytest.mark.parametrize(
    "name",
    ["MODEL_CARD.md", "model.bin", "model.onnx", "model.xml", "preprocess.json", "run.py", "samples.npz"],
)
def test_one_changed_byte_is_refused_before_anything_is_parsed(
    made_bundle: Bundle, tmp_path: Path, name: str
):
    path = made_bundle.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    device = ScriptedDevice(made_bundle.folder)
    with pytest.raises(IntegrityError, match=name):
        verify_bundle(made_bundle.folder, device, tmp_path / "scratch")
    assert device.inspected == []


@pytest.mark.parametrize("name", ["extra.bin", "numpy.py", "deep/er.txt", "__pycache__/run.cpython-311.pyc"])
def test_a_file_that_is_not_listed_is_refused(made_bundle: Bundle, tmp_path: Path, name: str):
    path = made_bundle.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="does not list"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")


def test_a_linked_folder_is_refused(made_bundle: Bundle, tmp_path: Path):
    (made_bundle.folder / "more").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="does not list"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a\\..\\b"])
def test_a_name_that_leads_out_is_refused(made_bundle: Bundle, tmp_path: Path, name: str):
    path = made_bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="lead out of the bundle"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")


def test_a_model_that_breaks_its_parser_is_a_model_error(made_bundle: Bundle, tmp_path: Path):
    rewrite(made_bundle, "model.onnx", b"\x08\xff" * 40)
    profile = Profile(name="here", description="", runtimes={"onnxruntime": (Precision.FP32,)})
    device = LocalDevice(Target(profile=profile, device="local", runtimes=("onnxruntime",), threads=1))
    with pytest.raises(ModelError):
        verify_bundle(made_bundle.folder, device, tmp_path / "scratch")


def test_an_fp32_file_that_drifted_fails(made_bundle: Bundle, tmp_path: Path):
    def drift(engine: Engine, logits: np.ndarray) -> np.ndarray:
        return logits * (1.001 if engine.runtime == "openvino" else 1.0)

    report = verify_bundle(
        made_bundle.folder, ScriptedDevice(made_bundle.folder, drift), tmp_path / "scratch"
    )
    assert "openvino/fp32, real inputs" in failed(report)
    assert not report.passed


def test_an_int8_file_may_change_a_close_call_but_not_a_fifth_of_the_labels(made: Any, tmp_path: Path):
    first, second = made.content.shipped
    int8 = replace(first, engine=replace(first.engine, precision=Precision.INT8))
    shipped = bundle(tmp_path / "bundle", replace(made.content, shipped=(int8, second)))

    def changing(count: int) -> Outputs:
        def bend(engine: Engine, logits: np.ndarray) -> np.ndarray:
            if engine.precision is Precision.INT8:
                logits = np.concatenate([np.roll(logits[:count], 1, axis=-1), logits[count:]])
            return logits

        return bend

    for count, passes in ((0, True), (2, True), (3, False)):
        device = ScriptedDevice(shipped.folder, changing(count))
        report = verify_bundle(shipped.folder, device, tmp_path / f"scratch{count}")
        assert report.passed is passes, (count, report.checks)


def test_outputs_that_are_not_finite_fail(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(made_bundle.folder, lambda _, logits: logits * np.nan)
    report = verify_bundle(made_bundle.folder, device, tmp_path / "scratch")
    assert failed(report) == ["openvino/fp32", "onnxruntime/fp32"]


def test_a_runtime_that_is_missing_is_said_and_not_held_against_the_bundle(
    made_bundle: Bundle, tmp_path: Path
):
    device = ScriptedDevice(made_bundle.folder, missing=("openvino",))
    report = verify_bundle(made_bundle.folder, device, tmp_path / "scratch")
    assert report.passed
    assert [check.name for check in report.checks if check.passed is None] == ["openvino/fp32"]


def test_a_device_with_none_of_the_runtimes_cannot_verify(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(made_bundle.folder, missing=("openvino", "onnxruntime"))
    with pytest.raises(BackendMissing, match="none of the runtimes"):
        verify_bundle(made_bundle.folder, device, tmp_path / "scratch")


def test_a_model_of_another_shape_fails_and_is_not_run(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(made_bundle.folder, shape=(1, 3, 8, 8))
    report = verify_bundle(made_bundle.folder, device, tmp_path / "scratch")
    assert failed(report) == ["input of model.onnx", "input of model.xml"]


def test_an_edited_runner_is_said_even_with_a_right_digest(made_bundle: Bundle, tmp_path: Path):
    rewrite(made_bundle, "run.py", b"print('other')")
    report = verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")
    (runner,) = (check for check in report.checks if check.name == "run.py")
    assert runner.passed is None
    assert "edited" in runner.detail


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive"])
def test_samples_that_are_no_arrays_are_an_integrity_error(
    made_bundle: Bundle, tmp_path: Path, content: bytes
):
    rewrite(made_bundle, "samples.npz", content)
    with pytest.raises(IntegrityError, match=r"samples\.npz"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")


def test_pickled_samples_are_never_unpickled(made_bundle: Bundle, tmp_path: Path):
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    path = tmp_path / "samples.npz"
    trap = np.array([Trap()], dtype=object)
    np.savez(path, images=trap, labels=trap, logits=trap)
    rewrite(made_bundle, "samples.npz", path.read_bytes())
    with pytest.raises(IntegrityError, match=r"samples\.npz"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")
    assert not canary.exists()


def test_samples_that_unpack_to_too_much_are_not_unpacked(made_bundle: Bundle, tmp_path: Path):
    path = tmp_path / "samples.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w") as member,
    ):
        for _ in range(257):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    rewrite(made_bundle, "samples.npz", path.read_bytes())
    with pytest.raises(IntegrityError, match="more than 256 MiB"):
        verify_bundle(made_bundle.folder, ScriptedDevice(made_bundle.folder), tmp_path / "scratch")


def test_parity_counts_labels_and_measures_against_the_scale():
    reference = np.array([[1.0, -4.0], [0.0, 2.0]])
    found = parity(reference, np.array([[1.0, -4.0], [2.5, 2.0]]))
    assert (found.max_error, found.scale, found.changed_labels, found.samples) == (2.5, 4.0, 1, 2)
    assert found.relative_error == 0.625
    assert found.agreement == 0.5


def test_parity_of_anything_not_finite_is_infinite():
    assert parity(np.ones((2, 3)), np.full((2, 3), np.nan)).max_error == float("inf")


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (0, 3)])
def test_parity_refuses_other_shapes(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="cannot be compared"):
        parity(np.ones((2, 3)) if shape[0] else np.ones(shape), np.ones(shape))
