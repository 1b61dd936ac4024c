"""The whole path of the TensorRT backend on fakes of TensorRT and of the CUDA driver: no GPU, and no figure of one."""

from __future__ import annotations

import gc
import json
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import backends
from edgekd.backends import draws, rehearsal, tensorrt, trt_cuda
from edgekd.devices.local import LocalDevice
from edgekd.errors import BackendMissing, BuildError, DeviceError, ResourcesExhausted
from edgekd.timing import conditions
from edgekd.timing.sampling import varied_inputs
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Profile, Target
from edgekd.worker import health
from tests.backends import fake_tensorrt
from tests.backends.faked import COMPILER
from tests.contracts import models
from tests.contracts.backend import BackendContract

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make the fake CUDA driver with")


def engine_of(path: Path, runtime: str = "tensorrt", **shapes: tuple[int, ...]) -> Engine:
    return models.engine(path, runtime, shapes=shapes or None)


def symmetric_net(path: Path) -> Path:
    """A Conv between Q/DQ as TensorRT takes them: int8 with zero points of zero."""
    model = onnx.load(str(models.quantized_net(path)))
    for tensor in model.graph.initializer:
        if tensor.name in {"z", "s"}:
            value = np.int8(0) if tensor.name == "z" else np.float32(1 / 127)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value), tensor.name))
    onnx.save(model, str(path))
    return path


def half_net(path: Path) -> Path:
    """A conv_net whose graph was cast to fp16, with fp32 inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(str(models.conv_net(path))), keep_io_types=True)
    onnx.save(model, str(path))
    return path


def of_precision(path: Path, precision: Precision, runtime: str = "tensorrt") -> Engine:
    model = Model(file=Artifact.of(path), precision=precision)
    return Engine(model=model, runtime=runtime, precision=precision)


def plans(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tensorrt").glob("plan-*"))


@pytest.mark.usefixtures("faked")
class TestTensorRt(BackendContract):
    runtime = "tensorrt"

    def test_int8_from_explicit_quantization_gives_the_reference_answers(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = symmetric_net(tmp_path / "m.onnx")
        with backend.open(self.engine(path, Precision.INT8)) as session:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            right = rehearsal.reference(onnx.load(str(path))).run(None, dict(feeds))[0]
            assert np.abs(session.run(feeds)["maps"] - right).max() <= 0.02 * np.abs(right).max()

    def test_leaving_the_context_frees_what_it_took(
        self, backend: backends.Backend, tmp_path: Path, faked: Callable[[], int]
    ):
        """Count what the driver gave; what the fake's own onnx and ONNX Runtime keep comes and goes by 30 MiB."""
        path, sizes = models.conv_net(tmp_path / "m.onnx", width=384), []
        for _ in range(16):
            with backend.open(self.engine(path)):
                pass
            assert faked() == 0
            gc.collect()
            sizes.append(conditions.memory_mib())
        assert min(sizes[10:]) - min(sizes[1:6]) < 30


@pytest.mark.usefixtures("faked")
class TestTensorRtAsOneGraph(TestTensorRt):
    runtime = "tensorrt-graph"

    def test_it_is_listed_and_says_its_version(self, backend: backends.Backend):
        assert self.runtime in backends.PACKAGES
        assert backend.version()[0].isdigit()


def test_fp16_comes_from_the_graph_and_needs_a_model_made_for_it(faked: Callable[[], int], tmp_path: Path):
    path = half_net(tmp_path / "h.onnx")
    with tensorrt.open(of_precision(path, Precision.FP16)) as session:
        assert {spec.dtype for spec in (*session.signature.inputs, *session.signature.outputs)} == {"float32"}
        assert np.isfinite(session.run(varied_inputs(session.signature, seed=0)[0])["logits"]).all()
    mislabelled = replace(of_precision(path, Precision.FP16), precision=Precision.FP32)
    with pytest.raises(BuildError, match="cannot be made of") as caught, tensorrt.open(mislabelled):
        pass
    assert "fp16" in caught.value.cause


def test_unsigned_quantization_is_refused_with_the_parsers_words(faked: Callable[[], int], tmp_path: Path):
    engine = of_precision(models.quantized_net(tmp_path / "m.onnx"), Precision.INT8)
    with pytest.raises(BuildError, match="cannot read") as caught, tensorrt.open(engine):
        pass
    assert "UINT8" in caught.value.cause
    assert "QuantizeLinear" in caught.value.cause


def test_leaving_a_session_frees_every_stream_event_and_block(faked: Callable[[], int], tmp_path: Path):
    for runtime in ("tensorrt", "tensorrt-graph"):
        engine = engine_of(models.recurrent_cell(tmp_path / "m.onnx"), runtime)
        with tensorrt.open(engine) as session:
            assert faked() > 8
            session.run_in_parts(varied_inputs(session.signature, seed=0)[0])
        assert faked() == 0


def test_a_failure_half_way_frees_what_was_taken(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuMemAlloc_v2:2")
    with (
        pytest.raises(BuildError, match="no memory left") as caught,
        tensorrt.open(engine_of(models.conv_net(tmp_path / "m.onnx"))),
    ):
        pass
    assert "CUDA_ERROR_OUT_OF_MEMORY (2)" in caught.value.cause
    assert faked() == 0


@pytest.mark.parametrize("call", ["cuInit:100", "cuStreamSynchronize:700", "cuMemHostAlloc:1"])
def test_every_return_code_of_cuda_is_looked_at(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    monkeypatch.setenv("FAKE_CUDA_FAIL", call)
    name, code = call.split(":")
    with (
        pytest.raises(DeviceError, match=name) as caught,
        tensorrt.open(engine_of(models.conv_net(tmp_path / "m.onnx"))) as session,
    ):
        session.run(varied_inputs(session.signature, seed=0)[0])
    assert f"({code})" in caught.value.cause


def test_the_parts_are_cudas_time_and_close_to_the_whole(faked: Callable[[], int], tmp_path: Path):
    with tensorrt.open(engine_of(models.conv_net(tmp_path / "m.onnx", width=64, side=32))) as session:
        feeds = varied_inputs(session.signature, seed=0)[0]
        session.run_in_parts(feeds)
        start = session.clock_ns()
        parts = session.run_in_parts(feeds)
        whole_ns = session.clock_ns() - start
    assert 0 < parts.compute_ns < parts.copy_in_ns + parts.compute_ns + parts.copy_out_ns <= whole_ns


def test_a_second_opening_finds_what_the_first_built(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    with tensorrt.open(engine):
        pass
    (plan,) = plans(tmp_path)
    monkeypatch.setenv("FAKE_TRT", "no-plan")  # it could not be built again
    with tensorrt.open(engine) as session:
        session.run(varied_inputs(session.signature, seed=0)[0])
    assert plans(tmp_path) == [plan]


def test_a_plan_that_the_runtime_refuses_is_built_again(faked: Callable[[], int], tmp_path: Path):
    from edgekd.backends.trt_store import private_store

    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    with tensorrt.open(engine):
        pass
    (plan,) = plans(tmp_path)
    private_store().write(plan.name, b"sealed here, but of another TensorRT")
    with tensorrt.open(engine) as session:
        session.run(varied_inputs(session.signature, seed=0)[0])
    assert b"fake-plan" in plan.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": Precision.INT8},
        {"shapes": {"image": (2, 3, 8, 8)}},
        {"runtime": "tensorrt-dla"},
    ],
)
def test_what_goes_into_a_plan_is_in_its_name(
    faked: Callable[[], int], tmp_path: Path, change: dict[str, object]
):
    gpu = trt_cuda.Gpu(name="Orin", capability="8.7", driver=12060, memory_mib=7620, integrated=True)
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    assert tensorrt._plan_name(engine, gpu) != tensorrt._plan_name(replace(engine, **change), gpu)
    graph = replace(engine, runtime="tensorrt-graph")  # the same plan, launched otherwise
    assert tensorrt._plan_name(engine, gpu) == tensorrt._plan_name(graph, gpu)


@pytest.mark.parametrize(
    "change", [{"name": "Thor"}, {"capability": "11.0"}, {"driver": 13020}, {"memory_mib": 15290}]
)
def test_another_gpu_or_driver_builds_anew(faked: Callable[[], int], change: dict[str, object]):
    gpu = trt_cuda.Gpu(name="Orin", capability="8.7", driver=12060, memory_mib=7620, integrated=True)
    assert tensorrt.fingerprint(gpu) != tensorrt.fingerprint(replace(gpu, **change))


def test_another_tensorrt_builds_anew(faked: Callable[[], int], monkeypatch: pytest.MonkeyPatch):
    gpu = trt_cuda.Gpu(name="Orin", capability="8.7", driver=12060, memory_mib=7620, integrated=True)
    before = tensorrt.fingerprint(gpu)
    monkeypatch.setattr(fake_tensorrt, "__version__", "11.4.0.106")
    assert tensorrt.fingerprint(gpu) != before


def build_of(engine: Engine, timings: bytes = b"") -> dict[str, object]:
    """Build with the fake and return what it wrote down of its configuration."""
    from edgekd.backends.trt_build import build

    gpu = trt_cuda.Gpu(name="Orin", capability="8.7", driver=12060, memory_mib=4096, integrated=True)
    plan = build(engine, tensorrt.settings_of(engine), gpu, timings).plan
    return dict(json.loads(plan.split(b"\n", 2)[1]))


def test_a_build_profits_from_the_last_and_a_draw_does_not(faked: Callable[[], int], tmp_path: Path):
    from edgekd.backends.trt_build import build

    path = models.conv_net(tmp_path / "m.onnx")
    engine, gpu = (
        engine_of(path),
        trt_cuda.Gpu(name="Orin", capability="8.7", driver=12060, memory_mib=4096, integrated=True),
    )
    first = build(engine, tensorrt.settings_of(engine), gpu, b"")
    assert build(engine, tensorrt.settings_of(engine), gpu, first.timings).plan == first.plan
    copies = []
    for draw in (1, 2):
        copy = tmp_path / f"{draw}.onnx"
        copy.write_bytes(draws.numbered(path.read_bytes(), draw))
        copies.append(engine_of(copy))
    names = {tensorrt._timings_name(one, gpu) for one in (engine, *copies)}
    assert len(names) == 3  # so that no draw knows what another measured
    assert len({build(one, tensorrt.settings_of(one), gpu, b"").plan for one in copies}) == 2


def test_a_spoilt_timing_cache_is_no_reason_to_fail(faked: Callable[[], int], tmp_path: Path):
    assert build_of(engine_of(models.conv_net(tmp_path / "m.onnx")), timings=b"not a cache")["detailed"]


def test_fp32_is_not_rounded_to_tf32(faked: Callable[[], int], tmp_path: Path):
    assert build_of(engine_of(models.conv_net(tmp_path / "m.onnx")))["tf32"] is False


def test_a_build_keeps_within_the_memory_of_the_profile(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 << 30, resource.RLIM_INFINITY))
    assert build_of(engine)["limits"] == {"WORKSPACE": 1 << 30, "TACTIC_DRAM": 2 << 30}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64 << 30, resource.RLIM_INFINITY))
    assert build_of(engine)["limits"] == {"WORKSPACE": 4 << 30, "TACTIC_DRAM": 3 << 30}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert build_of(engine)["limits"] == {}


def test_a_dla_is_used_where_there_is_one_and_the_fallback_is_said(
    faked: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    engine = of_precision(half_net(tmp_path / "h.onnx"), Precision.FP16, "tensorrt-dla")
    with pytest.raises(BuildError, match="needs a DLA") as caught:
        build_of(engine)
    assert "runtime tensorrt" in caught.value.mend
    monkeypatch.setenv("FAKE_TRT", "dla")
    assert build_of(engine)["dla"] is True
    assert "fall back to the GPU" in caplog.text
    with tensorrt.open(engine) as session:
        session.run(varied_inputs(session.signature, seed=0)[0])
    idle = engine_of(models.conv_net(tmp_path / "m.onnx"), "tensorrt-dla")
    with pytest.raises(BuildError, match="leave the DLA idle"):
        build_of(idle)


@pytest.mark.parametrize(
    "case",
    [
        ("no-plan", "cannot compile", "Could not find any implementation"),
        ("no-memory", "too little memory", "out of memory"),
        ("old-engine", "cannot compile", "Version tag does not match"),
        ("no-context", "cannot compile", ""),
    ],
    ids=lambda case: case[0],
)
def test_what_tensorrt_said_is_the_cause_and_nothing_is_printed(
    faked: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: tuple[str, str, str],
):
    ask, what, cause = case
    monkeypatch.setenv("FAKE_TRT", ask)
    with (
        pytest.raises(BuildError, match=what) as caught,
        tensorrt.open(engine_of(models.conv_net(tmp_path / "m.onnx"))),
    ):
        pass
    assert cause in caught.value.cause
    assert "no error" not in caught.value.cause
    assert capfd.readouterr() == ("", "")
    assert faked() == 0


def test_an_inference_that_fails_says_why(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with tensorrt.open(engine_of(models.conv_net(tmp_path / "m.onnx"))) as session:
        monkeypatch.setenv("FAKE_TRT", "no-run")
        with pytest.raises(DeviceError, match="cannot run") as caught:
            session.run(varied_inputs(session.signature, seed=0)[0])
    assert "Neither address" in caught.value.cause


def test_a_graph_that_cannot_be_captured_says_which_runtime_can(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuStreamEndCapture:901")
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"), "tensorrt-graph")
    with pytest.raises(BuildError, match="CUDA graph") as caught, tensorrt.open(engine):
        pass
    assert "tensorrt-graph" in caught.value.mend


def test_a_tensor_whose_size_the_data_decides_is_refused(faked: Callable[[], int], tmp_path: Path):
    nodes = [
        helper.make_node("NonZero", ["image"], ["where"]),
        helper.make_node("Cast", ["where"], ["out"], to=1),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, {"image": (TensorProto.FLOAT, (2, 3))}, {"out": (2, "n")})
    with pytest.raises(BuildError, match="depends on what goes in"), tensorrt.open(engine_of(path)):
        pass


def test_layers_are_listed_and_their_times_are_not_the_engines(faked: Callable[[], int], tmp_path: Path):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    found = tensorrt.layers(engine, passes=3)
    assert [layer.kind for layer in found][:2] == ["CaskConvolution", "Relu"]
    assert all(layer.time_ms is not None and layer.time_ms > 0 for layer in found)
    assert found[0].tactic == "fake_kernel"
    assert tensorrt.layers(engine, 0)[0].time_ms is None


def test_compiling_fills_the_devices_store_and_gives_the_onnx(
    faked: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    (tmp_path / "out").mkdir()
    model = tensorrt.compile(engine, tmp_path / "out")
    assert model.file.sha256 == engine.model.file.sha256
    monkeypatch.setenv("FAKE_TRT", "no-plan")
    with tensorrt.open(replace(engine, model=model)):  # nothing is built
        pass


@pytest.fixture
def faked_worker(
    faked: Callable[[], int], driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalDevice:
    """Give a device whose workers import the fake."""
    place = tmp_path / "python"
    place.mkdir()
    shutil.copyfile(fake_tensorrt.__file__, place / "tensorrt.py")
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.parent))
    profile = Profile(
        name="fake", description="", runtimes={"tensorrt": (Precision.FP32,)}, build_timeout_s=60.0
    )
    return LocalDevice(Target(profile=profile, device="local", runtimes=("tensorrt",), threads=1))


def test_a_device_builds_times_infers_and_itemises(faked_worker: LocalDevice, tmp_path: Path):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    opened = faked_worker.build(engine)
    assert opened.signature.outputs[0].name == "logits"
    (latency,) = faked_worker.time([engine], Protocol(launches=2, blocks=2, samples=20, warmup_ms=5))
    assert len(latency.samples_ms) >= 80  # more where some lost the core
    assert len(plans(tmp_path)) == 1  # built once, in three processes
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    recipe = Preprocess(height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ledger = faked_worker.ledger(engine, Artifact.of(tmp_path / "images.npy"), recipe)
    assert 0 < ledger.compute_ms < ledger.whole_ms
    assert faked_worker.probe().runtimes[0].works


def test_a_build_without_memory_is_a_result_and_not_a_crash(
    faked_worker: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
    monkeypatch.setenv("FAKE_TRT", "no-memory")
    with pytest.raises(BuildError, match="too little memory"):
        faked_worker.build(engine)
    monkeypatch.setenv("FAKE_TRT", "killed")  # as the kernel does where memory is short
    with pytest.raises((ResourcesExhausted, BuildError)) as caught:
        faked_worker.build(engine)
    assert "memory" in str(caught.value)
    monkeypatch.delenv("FAKE_TRT")
    assert faked_worker.build(engine).open_ms > 0
    assert plans(tmp_path)
    assert stat.S_IMODE((tmp_path / "cache" / "tensorrt").stat().st_mode) == 0o700


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("absent")
class TestAbsent:
    def test_the_backend_loads_and_says_what_to_install(self, tmp_path: Path):
        backend = backends.load("tensorrt")
        engine = engine_of(models.conv_net(tmp_path / "m.onnx"))
        for use in (backend.version, lambda: backend.open(engine).__enter__()):
            with pytest.raises(BackendMissing) as caught:
                use()
            assert "python3-libnvinfer" in caught.value.mend
            assert "pip install tensorrt" in caught.value.mend
            assert caught.value.exit_code == 4

    def test_the_doctor_sees_that_it_is_not_there(self):
        found = health.health("tensorrt")
        assert (found.works, found.version) == (False, "")
        assert "python3-libnvinfer" in found.mend


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-graph", "tensorrt-dla"])
def test_the_doctor_sees_that_it_works(faked: Callable[[], int], name: str):
    assert health.health(name).works
    assert faked() == 0


def test_a_tensorrt_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(trt_cuda, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    found = health.health("tensorrt")
    assert (found.works, found.version) == (False, fake_tensorrt.__version__)
    assert "no NVIDIA driver" in found.problem
    assert "driver" in found.mend


def test_a_tensorrt_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt, "__version__", "8.6.2")
    with pytest.raises(BackendMissing, match="too old"):
        tensorrt.version()
