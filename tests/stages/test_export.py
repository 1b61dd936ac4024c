"""Export: the file on disk answers what the torch module does."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekd import students
from edgekd.errors import IntegrityError, ModelError
from edgekd.stages.export import export, export_module
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Model
from edgekd.values.student import Space, StageSpec, StudentSpec

CLASSES = 10
STAGE = StageSpec(width=8, depth=1, kernel=3, expansion=1.0)
TINY = StudentSpec(family="residual", resolution=8, stem=8, stages=(STAGE, STAGE))


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret depends on it


def shrunk(space: Space) -> Space:
    """Keep the narrow students, for speed; depth, kernels and expansions stay."""
    narrow = tuple(widths[:2] for widths in space.widths)
    return dataclasses.replace(space, widths=narrow, stems=space.stems[:2], resolutions=space.resolutions[:1])


def lived(module: nn.Module) -> nn.Module:
    """Give a fresh module the weights and statistics of one that was trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_(0.0, 0.5, generator=generator)
                one.running_var.uniform_(0.3, 2.0, generator=generator)
                one.weight.uniform_(0.5, 1.5, generator=generator)
                one.bias.normal_(0.0, 0.3, generator=generator)
        for name, parameter in module.named_parameters():
            if name.endswith("_scale"):
                parameter.uniform_(-1.5, 1.5, generator=generator)
    return module.eval()


def checkpoint_of(module: nn.Module, folder: Path) -> Checkpoint:
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    return Checkpoint(
        weights=Artifact.of(path), accuracy=0.5, epochs=1, seconds=1.0, images_per_second=1.0, losses=(1.0,)
    )


def answers(model: Model, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.file.path), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(1, 8), (3, 16), (3, 68)]),
    family=st.sampled_from(students.IMAGES),
    seed=st.integers(0, 2**32),
)
def test_every_student_exports_and_answers_what_torch_does(shape: tuple[int, int], family: str, seed: int):
    channels, resolution = shape
    space = students.space_for(resolution=resolution, channels=channels, classes=CLASSES, families=(family,))
    spec = students.sample(shrunk(space), chance(seed))
    student = lived(students.build(spec, channels=channels, classes=CLASSES))
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(1, channels, spec.resolution, spec.resolution, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint_of(student, Path(folder))
        model = export(Path(folder), spec, channels, CLASSES, checkpoint)
        (got,) = answers(model, images=images.numpy())
        graph = onnx.load(model.file.path).graph
    with torch.no_grad():
        wanted = student(images).numpy()
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()

    layers = students.layers(spec, channels=channels, classes=CLASSES)
    computing = [node.name for node in graph.node if node.op_type in {"Conv", "Gemm"}]
    assert computing == [layer.name for layer in layers]  # no branch is left, and blame finds its layer
    weights = sum(int(np.prod(one.dims)) for one in graph.initializer)
    assert weights == sum(layer.params for layer in layers)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)


def test_an_export_names_its_tensors_and_fixes_the_batch(tmp_path: Path):
    model = onnx.load(export(tmp_path, TINY, 1, CLASSES, None).file.path)
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sizes == {"images": [1, 1, 8, 8], "logits": [1, CLASSES]}
    assert {one.data_type for one in model.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_the_same_student_exports_to_the_same_bytes(tmp_path: Path):
    first = export(tmp_path / "a", TINY, 1, CLASSES, None, seed=4)
    same = export(tmp_path / "b", TINY, 1, CLASSES, None, seed=4)
    other = export(tmp_path / "c", TINY, 1, CLASSES, None, seed=5)
    assert first.file.sha256 == same.file.sha256 != other.file.sha256


def test_an_untrained_student_has_no_kernel_of_zeros(tmp_path: Path):
    model = onnx.load(export(tmp_path, TINY, 1, CLASSES, None).file.path)
    kernels = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if len(one.dims) == 4]
    assert all(np.abs(kernel).max() > 1e-3 for kernel in kernels)


def test_a_checkpoint_of_another_student_is_refused(tmp_path: Path):
    wider = dataclasses.replace(TINY, stem=16)
    checkpoint = checkpoint_of(students.build(wider, channels=1, classes=CLASSES), tmp_path)
    with pytest.raises(ModelError, match="does not hold this student's weights"):
        export(tmp_path, TINY, 1, CLASSES, checkpoint)


def test_a_checkpoint_that_is_no_safetensors_file_is_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x80\x04N.")
    checkpoint = Checkpoint(
        weights=Artifact.of(path), accuracy=0.5, epochs=1, seconds=1.0, images_per_second=1.0, losses=()
    )
    with pytest.raises(ModelError, match="does not hold this student's weights"):
        export(tmp_path, TINY, 1, CLASSES, checkpoint)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    student = students.build(TINY, channels=1, classes=CLASSES)
    student.get_submodule("classifier").bias.data[0] = float("nan")
    with pytest.raises(ModelError, match=r"not finite.*classifier\.bias"):
        export(tmp_path, TINY, 1, CLASSES, checkpoint_of(student, tmp_path))


def test_a_checkpoint_that_was_changed_is_refused(tmp_path: Path):
    checkpoint = checkpoint_of(students.build(TINY, channels=1, classes=CLASSES), tmp_path)
    checkpoint.weights.path.write_bytes(b"other")
    with pytest.raises(IntegrityError):
        export(tmp_path, TINY, 1, CLASSES, checkpoint)


class Pair(nn.Module):
    """Two inputs of different ranks, and a dropout that must not reach the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4 + 5, 2)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        pooled = self.dropout(self.conv(image)).mean(dim=(2, 3))
        return self.linear(torch.cat([pooled, vector], dim=1))


def test_any_module_exports_with_named_inputs_and_an_open_batch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    module = Pair().train()
    shapes = {"vector": (1, 5), "image": (1, 3, 8, 8)}  # in another order than forward's
    model = export_module(tmp_path, module, shapes, dynamic_batch=True, outputs=("scores",))
    assert all(one.training for one in module.modules())
    image, vector = torch.randn(3, 3, 8, 8), torch.randn(3, 5)
    (got,) = answers(model, image=image.numpy(), vector=vector.numpy())
    with torch.no_grad():
        wanted = module.eval()(image, vector).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert [one.name for one in onnx.load(model.file.path).graph.output] == ["scores"]
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_inputs_of_other_names_are_passed_in_order(tmp_path: Path):
    module = Pair().eval()
    model = export_module(tmp_path, module, {"photo": (1, 3, 8, 8), "extra": (1, 5)})
    image, vector = torch.randn(1, 3, 8, 8), torch.randn(1, 5)
    (got,) = answers(model, photo=image.numpy(), extra=vector.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, module(image, vector).numpy(), atol=1e-5)


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def test_a_module_that_cannot_be_traced_says_why_and_leaves_no_file(tmp_path: Path):
    with pytest.raises(ModelError, match="make forward traceable"):
        export_module(tmp_path, Untraceable(), {"x": (1, 3)})
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_the_wrong_shape_say_so(tmp_path: Path):
    with pytest.raises(ModelError, match="Pair cannot be exported"):
        export_module(tmp_path, Pair(), {"image": (1, 7, 8, 8), "vector": (1, 5)})


class Spoken(nn.Module):
    """Letters and numbers in, two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)

    def forward(self, letters: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        found = self.embedding(letters) * scale
        return found, found.sum(dim=1)


def test_whole_numbers_and_several_outputs_go_through_torchs_exporter(tmp_path: Path):
    module = Spoken()
    shapes = {"letters": (1, 3), "scale": (1, 1, 4)}
    model = export_module(tmp_path, module, shapes, outputs=("each", "sum"), integers=("letters",))
    letters, scale = torch.tensor([[4, 0, 2]]), torch.randn(1, 1, 4)
    got = answers(model, letters=letters.numpy(), scale=scale.numpy())
    with torch.no_grad():
        for ours, theirs in zip(got, module(letters, scale)):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    graph = onnx.load(model.file.path).graph
    assert [one.name for one in graph.output] == ["each", "sum"]
    assert [one.type.tensor_type.elem_type for one in graph.input] == [
        onnx.TensorProto.INT64,
        onnx.TensorProto.FLOAT,
    ]


def test_a_student_that_our_emitter_does_not_know_goes_through_torchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise ModelError("there is no ONNX for this here")

    monkeypatch.setattr("edgekd.stages.export.emit", refuse)
    model = export(tmp_path, TINY, 1, CLASSES, None, 3)
    student = students.build(TINY, channels=1, classes=CLASSES, seed=3).eval()
    image = torch.randn(1, 1, 8, 8)
    (got,) = answers(model, images=image.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, student(image).numpy(), atol=1e-5)
    assert [one.name for one in onnx.load(model.file.path).graph.output] == ["logits"]
