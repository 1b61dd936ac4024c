"""The reference models are what they claim: fixed, small, static, finite, and never folded away."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from edgekd.devices.local import LocalDevice
from edgekd.errors import IntegrityError, UsageError
from edgekd.stages import references
from edgekd.stages.references import FOLDER, REFERENCES, reference
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.model import Engine, Precision
from edgekd.values.target import Profile, Target
from tests.pipeline.rehearsed import WorkerHere

NAMES = tuple(one.name for one in REFERENCES)
SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "references.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("references_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(values: Any) -> list[list[int]]:
    return [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]


def test_there_is_one_for_each_way_to_be_slow():
    assert NAMES == ("compute", "memory", "launch")
    assert reference().file.sha256 == REFERENCES[0].sha256


def test_the_folder_holds_the_models_that_are_listed_and_no_other():
    assert {path.name for path in FOLDER.glob("*.onnx")} == {one.file for one in REFERENCES}
    assert sum(path.stat().st_size for path in FOLDER.glob("*.onnx")) <= 400_000


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_is_static_and_of_an_opset_that_every_runtime_reads(name: str):
    model = onnx.load(str(reference(name).file.path))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 13)]
    for shape in shapes([*model.graph.input, *model.graph.output]):
        assert all(size > 0 for size in shape)


def test_the_launch_bound_one_is_a_chain_of_200_nodes_that_each_need_the_one_before():
    nodes = onnx.load(str(reference("launch").file.path)).graph.node
    assert len(nodes) == 200
    assert all(before.output[0] in after.input for before, after in itertools.pairwise(nodes))


def test_the_memory_bound_one_passes_over_more_than_a_cores_own_caches(script: ModuleType):
    assert script.PLANES * script.EDGE**2 * 4 == 4 << 20


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuilt_reference_is_the_shipped_one(name: str, script: ModuleType):
    shipped = reference(name).file.path
    rebuilt = script.MODELS[name]()
    assert rebuilt == onnx.load(str(shipped))  # the content, whatever this onnx writes it as
    assert rebuilt.SerializeToString(deterministic=True) == shipped.read_bytes()


def test_the_script_writes_every_model_where_it_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["references.py", str(tmp_path)])
    script.main()
    printed = capsys.readouterr().out
    for one in REFERENCES:
        assert sha256_of(tmp_path / one.file) == one.sha256
        assert one.sha256 in printed


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        *(("onnxruntime", name) for name in NAMES),
        *(("openvino", name) for name in NAMES),
        ("rehearsal", "compute"),
        ("rehearsal", "launch"),
    ],
)
def test_every_runtime_runs_it_and_its_answer_is_finite_and_hangs_on_the_input(
    runtime: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    profile = Profile(name="here", description="", runtimes={runtime: (Precision.FP32,)})
    device = LocalDevice(Target(profile=profile, device="local", runtimes=(runtime,), threads=1))
    model = reference(name)
    (taken,) = device.inspect(model.file).inputs
    shape = [size or 1 for size in taken.shape]
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((2, *shape), dtype=np.float32))
    engine = Engine(model=model, runtime=runtime, precision=Precision.FP32)
    rows = {taken.name: Artifact.of(tmp_path / "inputs.npy")}
    (found,) = device.infer(engine, rows, tmp_path / "outputs").values()
    one, other = np.load(found.verified())
    assert np.isfinite([one, other]).all()
    assert np.abs(one - other).max() > 1e-4 * np.abs(one).max()


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_so_small_that_a_processor_slows_down_over_it(name: str):
    import onnxruntime

    model = onnx.load(str(reference(name).file.path))
    for node in list(model.graph.node):  # every intermediate becomes an output
        if node.output[0] not in {one.name for one in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (shape,) = shapes(model.graph.input)
    inputs = np.random.default_rng(1).random(shape, dtype=np.float32)
    values = np.concatenate(
        [array.ravel() for array in session.run(None, {model.graph.input[0].name: inputs})]
    )
    least = np.finfo(np.float32).tiny
    assert not ((np.abs(values) < least) & (values != 0)).any()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="compute"):
        reference("compite")


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"x"), Path.unlink])
def test_a_reference_that_is_not_the_shipped_one_is_refused(
    spoil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(FOLDER / "compute.onnx", tmp_path)
    monkeypatch.setattr(references, "FOLDER", tmp_path)
    assert reference("compute").file.path.parent == tmp_path
    spoil(tmp_path / "compute.onnx")
    with pytest.raises(IntegrityError, match=r"compute\.onnx") as caught:
        reference("compute")
    assert "install edgekd again" in caught.value.mend
