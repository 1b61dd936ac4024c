"""Teachers that are files."""

from __future__ import annotations

import copy
import gc
import warnings
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.distillation.foreign import OnnxTeacher, program
from edgekd.errors import TeacherError


def saved(path: Path, *, batch: int | str = 1, inputs: int = 1) -> np.ndarray:
    """Write a linear layer of 4 features and 3 classes; return its weights."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    names = [f"x{at}" for at in range(inputs)]
    nodes = [helper.make_node("Sum", names, ["sum"]), helper.make_node("MatMul", ["sum", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "teacher",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


@pytest.mark.parametrize("batch", [1, "batch"])
def test_an_onnx_file_answers_batches_as_a_module_does(tmp_path: Path, batch: int | str):
    weights = saved(tmp_path / "teacher.onnx", batch=batch)
    teacher = OnnxTeacher(tmp_path / "teacher.onnx", threads=1).eval()
    given = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(teacher(given).numpy(), given.numpy() @ weights, rtol=1e-5, atol=1e-6)
    assert teacher(given[:1]).shape == (1, 3)
    assert not list(teacher.parameters())
    teacher.close()


def test_it_is_known_by_its_content(tmp_path: Path):
    saved(tmp_path / "teacher.onnx")
    teacher = OnnxTeacher(tmp_path / "teacher.onnx", threads=1)
    assert teacher.file.sha256 in repr(teacher)


def test_a_copy_has_a_child_of_its_own_and_each_ends_with_its_module(tmp_path: Path):
    saved(tmp_path / "teacher.onnx")
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    teacher = OnnxTeacher(tmp_path / "teacher.onnx", threads=1)
    twin = copy.deepcopy(teacher)
    given = torch.ones(2, 4)
    torch.testing.assert_close(teacher(given), twin(given))
    living = {one.pid for one in psutil.Process().children(recursive=True)} - before
    assert len(living) == 2
    del teacher, twin
    gc.collect()
    assert not {one.pid for one in psutil.Process().children(recursive=True) if one.pid in living}


def test_what_does_not_fit_is_said_with_a_mend(tmp_path: Path):
    saved(tmp_path / "teacher.onnx")
    teacher = OnnxTeacher(tmp_path / "teacher.onnx", threads=1)
    with pytest.raises(TeacherError, match="does not answer") as caught:
        teacher(torch.ones(2, 5))
    assert "one sample of the task" in caught.value.mend
    torch.testing.assert_close(teacher(torch.zeros(1, 4)), torch.zeros(1, 3))  # it goes on with another child
    teacher.close()


def test_a_file_of_two_inputs_or_of_nonsense_is_refused(tmp_path: Path):
    saved(tmp_path / "two.onnx", inputs=2)
    (tmp_path / "nonsense.onnx").write_bytes(b"no model")
    for name, word in (("two.onnx", "this one has 2"), ("nonsense.onnx", "")):
        with pytest.raises(TeacherError, match=f"the teacher {name} does not answer") as caught:
            OnnxTeacher(tmp_path / name, threads=1)(torch.ones(1, 4))
        assert word in caught.value.cause
    with pytest.raises(TeacherError, match="does not exist"):
        OnnxTeacher(tmp_path / "none.onnx", threads=1)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, nn.Module]:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=512)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        torch.export.save(
            torch.export.export(module, (torch.ones(2, 4),), dynamic_shapes=shapes), tmp_path / "m.pt2"
        )
    return tmp_path / "m.pt2", module


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch, at itself
def test_a_program_answers_as_the_module_it_was_made_of(archive: tuple[Path, nn.Module]):
    path, module = archive
    teacher = program(path, trusted=True).eval().requires_grad_(False)
    given = torch.randn(7, 4)
    torch.testing.assert_close(teacher(given), module(given))
    torch.testing.assert_close(copy.deepcopy(teacher)(given), module(given))


def test_a_program_is_not_even_opened_unless_its_author_is_trusted(archive: tuple[Path, nn.Module]):
    path, _ = archive
    with pytest.raises(TeacherError, match="was not opened") as caught:
        program(path, trusted=False)
    assert "trusted = true" in caught.value.mend


def test_another_archive_is_refused_in_our_words(tmp_path: Path):
    (tmp_path / "m.pt2").write_bytes(b"PK no archive")
    with pytest.raises(TeacherError, match="no program of torch"):
        program(tmp_path / "m.pt2", trusted=True)
