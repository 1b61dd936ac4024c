"""Bundles of networks that tell no classes of images: what they hold, what verifies them, and what refuses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd import pipeline
from edgekd.devices.local import LocalDevice
from edgekd.distillation.checkpoints import save_module
from edgekd.errors import IntegrityError, ModelError
from edgekd.stages.bundle import STEP, bundle, save_samples
from edgekd.stages.card import model_card
from edgekd.stages.evaluate import prepare, recorded_steps, reference, reference_answers
from edgekd.stages.export import export
from edgekd.stages.itemise import itemise
from edgekd.stages.score import labelled, score
from edgekd.stages.subject import Subject
from edgekd.stages.verify import parity, read_samples, read_steps, verify_bundle
from edgekd.students import build, smallest, space_for
from edgekd.tasks import Stepwise, Task
from edgekd.tasks.generation import from_text
from edgekd.tasks.keywords import from_recordings
from edgekd.tasks.regression import from_table
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle, BundleContent, Shipped
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.job import TaskSection
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.target import Profile, Target
from tests.pipeline.rehearsed import WorkerHere
from tests.tasks import sine_words, tables

TARGET = Target(
    profile=Profile(name="here", description="", runtimes={"rehearsal": (Precision.FP32,)}),
    device="local",
    runtimes=("rehearsal",),
    threads=1,
)


def table() -> Task:
    return from_table(tables.table(), section=TaskSection(data="drawn", kind="regression"))


def text() -> Task:
    section = TaskSection(data="text", kind="generation", resolution=6)
    return from_text("the quick brown fox jumps over the lazy dog\n" * 12, section=section)


def words() -> Task:
    section = TaskSection(data="sine words", kind="keywords", resolution=16)
    return from_recordings(sine_words.recordings(), section=section)


KINDS = pytest.mark.parametrize("make", [table, text, words], ids=["rows", "letters", "sound"])


@pytest.fixture(autouse=True)
def _workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)


def bundled(task: Task, folder: Path, like: BundleContent) -> Bundle:
    """Ship an untrained student of a task."""
    space = space_for(
        resolution=task.resolution, channels=task.channels, classes=task.outputs, families=task.families
    )
    spec = smallest(space, task.families[0])
    module = build(spec, channels=task.channels, classes=task.outputs)
    folder.mkdir()
    weights = save_module(folder / "weights.safetensors", module)
    checkpoint = Checkpoint(
        weights=weights, accuracy=0.5, epochs=1, seconds=1.0, images_per_second=1.0, losses=(1.0,)
    )
    model = export(folder, spec, task.channels, task.outputs, checkpoint)
    engine = Engine(model=model, runtime="rehearsal", precision=Precision.FP32)
    content = replace(
        like,
        task=task.kind,
        classes=task.classes,
        spec=spec,
        source=model,
        shipped=(Shipped(engine=engine, latency=like.shipped[0].latency, accuracy=0.5),),
        preprocess=task.preprocess(spec.resolution),
        samples=_samples(task, folder, spec, checkpoint),
        decoding=task.decoding(spec.resolution),
    )
    return bundle(folder / "bundle", content)


def _samples(task: Task, folder: Path, spec: Any, checkpoint: Checkpoint) -> Artifact:
    few, steps = task.test.spread(4), {}
    if isinstance(task, Stepwise):
        outputs = reference_answers(folder, spec, task, checkpoint, "test", 4)
        kept = recorded_steps(folder, spec, task, checkpoint, "test", 16)
        steps = {name: np.load(one.path) for name, one in kept.items()}
    else:
        inputs = prepare(folder, task, "test", spec.resolution, 4)
        outputs = reference(folder, spec, task.channels, task.outputs, checkpoint, inputs)
    path, found = folder / "samples.npz", np.load(outputs.path)
    return save_samples(path, np.asarray(few.samples), few.labels, found, kind=task.kind, steps=steps)


def spoil(made: Bundle, name: str, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change arrays of the samples, and the manifest with them."""
    path = made.folder / name
    with np.load(path, allow_pickle=False) as kept:
        arrays = dict(kept)
    change(arrays)
    np.savez(path, **arrays)
    manifest = json.loads((made.folder / "manifest.json").read_text())
    manifest["files"][name] = sha256_of(path)
    (made.folder / "manifest.json").write_text(json.dumps(manifest))


@KINDS
def test_a_bundle_of_any_kind_passes_and_says_how_it_is_decoded(make: Any, made: Any, tmp_path: Path):
    task = make()
    found = bundled(task, tmp_path / "made", made.content)
    report = verify_bundle(found.folder, LocalDevice(TARGET), tmp_path / "scratch")
    assert report.passed, report.checks
    real = next(check for check in report.checks if check.name.endswith("real inputs"))
    assert real.parity is not None
    assert real.parity.samples >= 4
    assert ("labels differ" in real.detail) == (task.kind == "keywords")
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["decoding"] == task.decoding(task.resolution)
    assert manifest["task"] == task.kind
    kept = json.loads((found.folder / "preprocess.json").read_text())
    assert next(iter(kept)) == "kind"
    samples, outputs = read_samples(found.folder / "samples.npz")
    np.testing.assert_array_equal(samples, task.test.spread(4).samples)
    assert outputs.shape[1:] == task.answer_shape(found.manifest.spec.resolution)


@KINDS
def test_outputs_that_are_not_the_references_fail(make: Any, made: Any, tmp_path: Path):
    found = bundled(make(), tmp_path / "made", made.content)
    last = f"{STEP}logits" if f"{STEP}logits" in np.load(found.folder / "samples.npz") else "outputs"

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[last] = arrays[last] * np.float32(1.01)

    spoil(found, "samples.npz", change)
    report = verify_bundle(found.folder, LocalDevice(TARGET), tmp_path / "scratch")
    assert [check.name for check in report.checks if check.passed is False] == ["rehearsal/fp32, real inputs"]


def test_steps_without_one_of_the_inputs_are_refused(made: Any, tmp_path: Path):
    found = bundled(text(), tmp_path / "made", made.content)
    assert set(read_steps(found.folder / "samples.npz")) == {"letter", "state", "logits", "next_state"}
    spoil(found, "samples.npz", lambda arrays: arrays.pop(f"{STEP}state"))
    with pytest.raises(IntegrityError, match=r"samples\.npz cannot be used"):
        verify_bundle(found.folder, LocalDevice(TARGET), tmp_path / "scratch")


@KINDS
def test_a_model_of_another_input_than_the_recipe_makes_fails(make: Any, made: Any, tmp_path: Path):
    found = bundled(make(), tmp_path / "made", made.content)
    path = found.folder / "preprocess.json"
    recipe = json.loads(path.read_text())
    other = {"features": {"names": ["a", "b"]}, "text": {"alphabet": "ab"}, "spectrogram": {"frames": 9}}
    change = other[recipe["kind"]]
    path.write_text(json.dumps({**recipe, **change}))
    manifest = json.loads((found.folder / "manifest.json").read_text())
    manifest["files"]["preprocess.json"] = sha256_of(path)
    (found.folder / "manifest.json").write_text(json.dumps(manifest))
    report = verify_bundle(found.folder, LocalDevice(TARGET), tmp_path / "scratch")
    assert [check.name for check in report.checks if check.passed is False] == ["input of model.onnx"]


def test_labels_are_compared_only_where_outputs_name_some():
    reference, other = np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]])
    assert parity(reference, other).changed_labels == 1
    assert parity(reference, other, labelled=False).changed_labels == 0
    maps = np.ones((2, 3, 4, 4), np.float32)
    assert parity(maps, maps * 1.5, labelled=False).relative_error == pytest.approx(0.5)


def test_int8_that_is_far_off_fails_where_there_are_no_labels(made: Any, tmp_path: Path):
    found = bundled(table(), tmp_path / "made", made.content)
    manifest = json.loads((found.folder / "manifest.json").read_text())
    manifest["deployments"][0]["precision"] = "int8"
    (found.folder / "manifest.json").write_text(json.dumps(manifest))

    class Bent(LocalDevice):
        share = 1.0

        def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
            fp32 = replace(
                engine, precision=Precision.FP32, model=replace(engine.model, precision=Precision.FP32)
            )
            (outputs,) = super().infer(fp32, inputs, folder).values()
            np.save(folder / "bent.npy", np.load(outputs.path) * np.float32(self.share))
            return {"logits": Artifact.of(folder / "bent.npy")}

    for share, wanted in ((1.1, True), (2.0, False)):
        device = Bent(TARGET)
        device.share = share
        checks = verify_bundle(found.folder, device, tmp_path / f"scratch{share}").checks
        assert [one.passed for one in checks if one.name.endswith("real inputs")] == [wanted]


@KINDS
def test_the_card_speaks_of_no_classes_and_no_images_where_there_are_none(
    make: Any, made: Any, tmp_path: Path
):
    task = make()
    card = model_card(bundled(task, tmp_path / "made", made.content).manifest)
    assert f"A {task.kind} model" in card
    assert ("classes" in card) == bool(task.classes)
    assert "--image" not in card
    assert "Pillow" not in card
    assert "python run.py --help" in card


def test_requests_to_a_bundle_without_images_are_not_timed_in_parts(made: Any, tmp_path: Path):
    found = bundled(table(), tmp_path / "made", made.content)
    (only,) = pipeline.profile(found.folder, TARGET).results
    assert only.latency_ms is not None
    assert only.ledger is None
    model = Model(file=Artifact.of(found.folder / "model.onnx"))
    engine = Engine(model=model, runtime="rehearsal", precision=Precision.FP32)
    with pytest.raises(ModelError, match="takes no images"):
        itemise(found.folder, engine, LocalDevice(TARGET), tmp_path / "scratch")


def test_labelled_images_are_not_given_to_a_bundle_that_takes_none(made: Any, tmp_path: Path):
    found = bundled(table(), tmp_path / "made", made.content)
    model = Model(file=Artifact.of(found.folder / "model.onnx"))
    engine = Engine(model=model, runtime="rehearsal", precision=Precision.FP32)
    device = LocalDevice(TARGET)
    one = Subject(
        path=found.folder, engine=engine, signature=device.inspect(model.file), recipe=made.content.preprocess
    )
    data = labelled("digits", tmp_path)
    with pytest.raises(ModelError, match="cannot be given"):
        score(tmp_path / "scores", device, replace(one, recipe=table().preprocess(1)), data, None)
