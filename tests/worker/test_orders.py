from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.errors import BuildError, DataError, EdgekdError, IntegrityError, ModelError, UsageError
from edgekd.timing.sampling import RING, Answers
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.order import (
    InferOrder,
    InspectOrder,
    LedgerOrder,
    OpenOrder,
    ProbeOrder,
    SampleOrder,
    WarmUpOrder,
)
from edgekd.values.preprocess import Preprocess
from edgekd.worker.orders import Worker
from tests.contracts import models

RECIPE = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def opened(worker: Worker, path: Path) -> Worker:
    worker.open(OpenOrder(engine=models.engine(path)))
    return worker


def rows(path: Path, array: np.ndarray) -> Artifact:
    np.save(path, array)
    return Artifact.of(path)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 10, 9, 3), dtype=np.uint8)


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, 3, 8, 8)).astype(np.float32)


def test_opening_says_what_the_model_takes_and_costs(worker: Worker, tmp_path: Path):
    reply = worker.open(OpenOrder(engine=models.engine(models.conv_net(tmp_path / "m.onnx", batch="n"))))
    assert reply.signature.inputs[0].shape == (1, 3, 8, 8)
    assert reply.open_ms > 0
    assert reply.memory_mib == (tmp_path / "m.onnx").stat().st_size / (1 << 20)  # what a rehearsal takes


def test_sampling_goes_on_round_the_ring(worker: Worker, tmp_path: Path):
    opened(worker, models.conv_net(tmp_path / "m.onnx")).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    replies = [worker.sample(SampleOrder(samples=5)) for _ in range(2)]
    assert all(len(reply.wall_ns) == len(reply.cpu_ns) == 5 for reply in replies)
    assert all(ns > 0 for reply in replies for ns in reply.wall_ns)


def test_the_machines_load_says_nothing_about_a_clock_of_its_own(worker: Worker, tmp_path: Path):
    opened(worker, models.conv_net(tmp_path / "m.onnx")).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    load = worker.sample(SampleOrder(samples=2)).conditions.load
    assert (load.load_average, load.others_percent, load.involuntary_switches) == (0, 0, 0)


@pytest.mark.parametrize("early", ["warm_up", "sample", "ledger", "infer"])
def test_an_order_before_open_is_refused(worker: Worker, tmp_path: Path, early: str):
    orders = {
        "warm_up": WarmUpOrder(least_ms=1.0, seed=0),
        "sample": SampleOrder(samples=1),
        "ledger": LedgerOrder(images=Artifact(path=tmp_path / "x.npy", sha256=""), recipe=RECIPE),
        "infer": InferOrder(inputs={}, folder=tmp_path),
    }
    with pytest.raises(UsageError, match="open"):
        getattr(worker, early)(orders[early])


def test_sampling_a_cold_engine_is_refused(worker: Worker, tmp_path: Path):
    with pytest.raises(UsageError, match="warm"):
        opened(worker, models.conv_net(tmp_path / "m.onnx")).sample(SampleOrder(samples=1))


def test_requests_of_a_cold_engine_are_refused(worker: Worker, tmp_path: Path):
    order = LedgerOrder(images=rows(tmp_path / "x.npy", pictures()), recipe=RECIPE)
    with pytest.raises(UsageError, match="warm"):
        opened(worker, models.conv_net(tmp_path / "m.onnx")).ledger(order)


def test_requests_of_a_warm_engine_are_itemised(worker: Worker, tmp_path: Path):
    order = LedgerOrder(images=rows(tmp_path / "x.npy", pictures()), recipe=RECIPE, requests=6)
    opened(worker, models.conv_net(tmp_path / "m.onnx")).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    found = worker.ledger(order)
    assert found.samples == 6
    assert found.compute_ms > 0
    assert found.beside_ms == 0  # a rehearsal's clock stands still for all but computing


def test_a_failed_open_leaves_nothing_open(worker: Worker, tmp_path: Path):
    opened(worker, models.conv_net(tmp_path / "m.onnx"))
    with pytest.raises(ModelError):
        opened(worker, models.conv_without_weights(tmp_path / "bad.onnx"))
    with pytest.raises(UsageError):
        worker.warm_up(WarmUpOrder(least_ms=1.0, seed=0))


def test_a_file_changed_since_it_was_named_is_refused(worker: Worker, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    engine = models.engine(path)
    models.conv_net(path, width=4)
    with pytest.raises(IntegrityError):
        worker.open(OpenOrder(engine=engine))


def test_weights_of_another_model_are_refused(worker: Worker, tmp_path: Path):
    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "other.bin").write_bytes(b"0")
    model = Model(file=Artifact.of(tmp_path / "m.xml"), weights=Artifact.of(tmp_path / "other.bin"))
    with pytest.raises(ModelError, match="does not belong"):
        worker.open(OpenOrder(engine=Engine(model=model, runtime="openvino", precision=Precision.FP32)))


def test_a_model_that_compiles_but_cannot_run_is_a_build_error(worker: Worker, tmp_path: Path):
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])]
    path = models.save(
        tmp_path / "m.onnx",
        nodes,
        {"x": (models.FLOAT, ("n", 4))},
        {"y": (3, 5)},
        {"shape": np.array([3, 5], dtype=np.int64)},
    )
    with pytest.raises(BuildError, match="rehearsal/fp32"):
        opened(worker, path)


def test_inference_writes_a_row_an_input_row(worker: Worker, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    given = images()
    order = InferOrder(inputs={"image": rows(tmp_path / "x.npy", given)}, folder=tmp_path / "out")
    reply = opened(worker, path).infer(order)
    found = np.load(reply.outputs["logits"].verified(), allow_pickle=False)
    reference = ReferenceEvaluator(onnx.load(str(path)))
    assert found.shape == (4, 1, 5)
    for row, image in zip(found, given, strict=True):
        np.testing.assert_allclose(row, reference.run(None, {"image": image})[0], atol=1e-6)


def test_several_outputs_with_any_names_get_a_file_each(worker: Worker, tmp_path: Path):
    path = models.recurrent_cell(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.output[1].name = model.graph.node[4].output[0] = "../score/of:it"
    onnx.save(model, str(path))
    inputs = {
        "frame": rows(tmp_path / "f.npy", np.ones((2, 1, 4), dtype=np.float32)),
        "state": rows(tmp_path / "s.npy", np.ones((2, 1, 6), dtype=np.float32)),
    }
    outputs = opened(worker, path).infer(InferOrder(inputs=inputs, folder=tmp_path / "out")).outputs
    assert set(outputs) == {"state_next", "../score/of:it"}
    assert {file.path.parent for file in outputs.values()} == {tmp_path / "out"}


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("image", np.zeros((2, 1, 3, 9, 9), dtype=np.float32), "holds float32 rows"),
        ("image", np.zeros((2, 1, 3, 8, 8), dtype=np.float64), "float64"),
        ("image", np.zeros((0, 1, 3, 8, 8), dtype=np.float32), "at least one"),
        ("image", np.float32(1.0), "float32"),
        ("picture", np.zeros((2, 1, 3, 8, 8), dtype=np.float32), "picture|image"),
    ],
)
def test_inputs_that_do_not_fit_are_data_errors(
    worker: Worker, tmp_path: Path, name: str, array: object, says: str
):
    order = InferOrder(inputs={name: rows(tmp_path / "x.npy", np.asarray(array))}, folder=tmp_path / "out")
    with pytest.raises(DataError, match=says):
        opened(worker, models.conv_net(tmp_path / "m.onnx")).infer(order)


def test_inputs_that_carry_a_pickle_are_refused_unopened(worker: Worker, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    order = InferOrder(inputs={"image": Artifact.of(tmp_path / "x.npy")}, folder=tmp_path / "out")
    with pytest.raises(DataError, match="not a readable"):
        opened(worker, models.conv_net(tmp_path / "m.onnx")).infer(order)


def test_inspecting_reads_the_signature_with_dynamic_dimensions(worker: Worker, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx", batch="n")
    found = worker.inspect(InspectOrder(model=Artifact.of(path)))
    assert found.inputs[0].shape == (None, 3, 8, 8)
    assert (found.inputs[0].dtype, found.outputs[0].name) == ("float32", "logits")


def test_inspecting_refuses_what_onnx_itself_refuses(worker: Worker, tmp_path: Path):
    nodes = [onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])]
    path = models.save(tmp_path / "m.onnx", nodes, {"x": (models.FLOAT, (1,))}, {"y": (1,)}, checked=False)
    with pytest.raises(ModelError, match="NoSuchOperator"):
        worker.inspect(InspectOrder(model=Artifact.of(path)))


def test_inspecting_works_without_onnx(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artifact = Artifact.of(models.conv_net(tmp_path / "m.onnx"))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert worker.inspect(InspectOrder(model=artifact)).outputs[0].shape == (1, 5)


def test_inspecting_an_ir_file_reads_its_signature(worker: Worker, tmp_path: Path):
    import openvino as ov

    path = tmp_path / "m.xml"
    ov.save_model(ov.Core().read_model(str(models.conv_net(tmp_path / "m.onnx"))), str(path))
    assert worker.inspect(InspectOrder(model=Artifact.of(path))).inputs[0].shape == (1, 3, 8, 8)


def test_probing_reports_machine_and_runtimes(worker: Worker):
    reply = worker.probe(ProbeOrder(runtimes=("rehearsal",)))
    assert reply.conditions.hardware.cores >= 1
    assert reply.runtimes[0].works


@pytest.mark.parametrize("kind", ["directory", "absent"])
def test_a_model_that_is_no_file_is_an_error_of_ours(worker: Worker, tmp_path: Path, kind: str):
    path = tmp_path if kind == "directory" else tmp_path / "absent.onnx"
    with pytest.raises(EdgekdError):
        worker.inspect(InspectOrder(model=Artifact(path=path, sha256="0" * 64)))


def test_a_steady_model_is_said_to_be_steady_and_another_not(worker: Worker, tmp_path: Path):
    opened(worker, models.conv_net(tmp_path / "m.onnx")).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    assert worker.sample(SampleOrder(samples=5)).steady
    worker._answers = Answers()
    for at in range(RING):
        worker._answers.keep(at, {"logits": np.zeros((1, 5), dtype=np.float32)})
    assert not worker.sample(SampleOrder(samples=5)).steady


def test_an_answer_that_becomes_no_number_between_blocks_is_a_build_error(worker: Worker, tmp_path: Path):
    path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), nan_after=100)
    opened(worker, path).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    with pytest.raises(BuildError, match="NaN"):
        [worker.sample(SampleOrder(samples=20)) for _ in range(10)]


def test_throttling_that_a_session_counts_is_in_the_load_of_its_block(worker: Worker, tmp_path: Path):
    path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), throttle="4:1.5")
    opened(worker, path).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    counts = [worker.sample(SampleOrder(samples=42)).conditions.load.throttled for _ in range(16)]
    assert sum(counts) == 4
    assert max(counts) == 1


def test_a_period_and_a_soak_are_kept_without_sleeping_by_a_clock_of_its_own(worker: Worker, tmp_path: Path):
    opened(worker, models.conv_net(tmp_path / "m.onnx")).warm_up(WarmUpOrder(least_ms=0.1, seed=0))
    reply = worker.sample(SampleOrder(samples=5, period_ms=3_600_000.0, soak_s=3600.0))
    assert len(reply.wall_ns) == 5
