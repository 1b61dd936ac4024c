"""A bundle's own runner with TensorRT, on fakes of TensorRT and of the CUDA driver: no GPU, and no figure of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekd.backends import tensorrt
from edgekd.runner import Refusal, Student, preprocess, trt_engine
from edgekd.timing.sampling import varied_inputs
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Bundle
from edgekd.values.model import Engine, Model, Precision
from tests.backends import fake_tensorrt
from tests.backends.faked import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make the fake CUDA driver with")
RUNTIMES = ("tensorrt", "tensorrt-graph", "tensorrt-dla")


@pytest.fixture
def on_gpu(made_bundle: Bundle) -> Bundle:
    """Give a bundle accepted on TensorRT, with its other runtimes behind it."""
    path = made_bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    portable = next(one for one in manifest["deployments"] if one["runtime"] == "onnxruntime")
    manifest["deployments"] = [{**portable, "runtime": name} for name in (*RUNTIMES, "onnxruntime")]
    path.write_text(json.dumps(manifest))
    return made_bundle


@pytest.fixture
def builds(
    faked: Callable[[], int], driver: Path, monkeypatch: pytest.MonkeyPatch
) -> list[fake_tensorrt.IBuilderConfig]:
    """Put the fakes in place; gives the settings of every engine that is built."""
    made: list[fake_tensorrt.IBuilderConfig] = []
    build = fake_tensorrt.Builder.build_serialized_network

    def counted(
        self: fake_tensorrt.Builder,
        network: fake_tensorrt.INetworkDefinition,
        config: fake_tensorrt.IBuilderConfig,
    ) -> fake_tensorrt.IHostMemory | None:
        made.append(config)
        return build(self, network, config)

    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", counted)
    monkeypatch.setattr(trt_engine, "_DRIVER", str(driver))
    monkeypatch.setenv("FAKE_TRT", "dla")
    return made


def store() -> Path:
    return Path(os.environ["EDGEKD_CACHE"]) / "tensorrt"


def measured(bundle: Bundle, runtime: str = "tensorrt") -> dict[str, np.ndarray]:
    """Open the bundle's file as the device's own worker does, and run it once."""
    model = Model(file=Artifact.of(bundle.folder / "model.onnx"))
    with tensorrt.open(Engine(model=model, runtime=runtime, precision=Precision.FP32)) as session:
        return session.run(varied_inputs(session.signature, seed=0, count=1)[0])


def test_the_command_gives_the_label_that_onnx_runtime_gives(
    on_gpu: Bundle, driver: Path, made: Any, tmp_path: Path
):
    shutil.copyfile(fake_tensorrt.__file__, tmp_path / "tensorrt.py")
    Image.fromarray(made.images[0, ..., 0]).save(tmp_path / "picture.png")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver.parent),
        "PYTHONPATH": str(tmp_path),
        "EDGEKD_CACHE": str(tmp_path / "cache"),
    }
    answers = {}
    for runtime in ("tensorrt", "onnxruntime"):
        command = [sys.executable, str(on_gpu.folder / "run.py"), "--image", str(tmp_path / "picture.png")]
        command += ["--json", "--top", "4", *(() if runtime == "tensorrt" else ("--runtime", runtime))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        answers[runtime] = json.loads(done.stdout)
        assert answers[runtime]["deployment"] == f"{runtime}/fp32"
    labels = {name: [one["label"] for one in answer["top"]] for name, answer in answers.items()}
    assert labels["tensorrt"] == labels["onnxruntime"]
    assert list((tmp_path / "cache" / "tensorrt").glob("plan-*"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_way_of_running_tensorrt_gives_the_recorded_logits(
    on_gpu: Bundle, made: Any, builds: list[Any], runtime: str
):
    student = Student(on_gpu.folder, runtime)
    with np.load(on_gpu.folder / "samples.npz") as samples:
        np.testing.assert_allclose(
            student.rows(preprocess(made.images, student.recipe)), samples["logits"], atol=1e-5
        )
    (config,) = builds
    assert (config.default_device_type is fake_tensorrt.DeviceType.DLA) == (runtime == "tensorrt-dla")
    assert fake_tensorrt.BuilderFlag.TF32 not in config._flags
    assert student.name == f"{runtime}/fp32"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_build_that_was_measured_here_is_the_one_that_runs(
    on_gpu: Bundle, builds: list[Any], monkeypatch: pytest.MonkeyPatch, runtime: str
):
    monkeypatch.setattr(fake_tensorrt.IBuilderConfig, "can_run_on_DLA", lambda self, layer: True)
    measured(on_gpu, runtime)
    assert len(builds) == 1
    Student(on_gpu.folder, runtime)
    assert len(builds) == 1


def test_what_the_runner_built_is_kept_for_the_next_process_and_for_a_measurement(
    on_gpu: Bundle, builds: list[Any]
):
    for _ in range(2):
        Student(on_gpu.folder)
    measured(on_gpu)
    assert len(builds) == 1


def test_an_engine_that_was_changed_is_never_loaded(
    on_gpu: Bundle, builds: list[Any], monkeypatch: pytest.MonkeyPatch
):
    Student(on_gpu.folder)
    (path,) = store().glob("plan-*")
    honest = path.read_bytes()
    path.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    loaded: list[bytes] = []
    load = fake_tensorrt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        fake_tensorrt.Runtime,
        "deserialize_cuda_engine",
        lambda self, plan: (loaded.append(bytes(plan)), load(self, plan))[1],
    )
    Student(on_gpu.folder)
    assert len(builds) == 2
    assert loaded == [path.read_bytes()[-len(loaded[0]) :]]


def test_a_key_that_others_can_read_is_refused(on_gpu: Bundle, builds: list[Any]):
    Student(on_gpu.folder)
    (store() / "key").chmod(0o644)
    with pytest.raises(Refusal, match="only you can read") as refusal:
        Student(on_gpu.folder)
    assert refusal.value.exit_code == 6


def test_a_store_that_is_a_link_is_refused(on_gpu: Bundle, builds: list[Any], tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    store().parent.mkdir(parents=True)
    store().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match="not a folder of yours"):
        Student(on_gpu.folder)


@pytest.mark.parametrize(
    ("fake", "cause"),
    [
        ("no-plan", "Could not find any implementation"),
        ("no-context", "no memory for it"),
        ("", "no DLA core"),
    ],
)
def test_what_tensorrt_refuses_is_told_in_one_line(
    on_gpu: Bundle, builds: list[Any], monkeypatch: pytest.MonkeyPatch, fake: str, cause: str
):
    monkeypatch.setenv("FAKE_TRT", fake)
    with pytest.raises(Refusal, match=cause) as refusal:
        Student(on_gpu.folder, "tensorrt" if fake else "tensorrt-dla")
    assert refusal.value.exit_code == 4


def test_a_failing_driver_is_told(on_gpu: Bundle, builds: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuMemAlloc_v2:2")
    with pytest.raises(Refusal, match="cuMemAlloc_v2 failed with 2"):
        Student(on_gpu.folder)


def test_without_a_driver_another_runtime_runs_and_the_reason_is_told(
    on_gpu: Bundle, builds: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trt_engine, "_DRIVER", "libcuda-that-is-none.so.1")
    student = Student(on_gpu.folder)
    assert student.name == "onnxruntime/fp32"
    assert "tensorrt/fp32 was accepted, but tensorrt does not load here" in student.notes[0]
    assert "libcuda-that-is-none" in student.notes[0]
    with pytest.raises(Refusal, match=r"works here: tensorrt does not load.*Jetson"):
        Student(on_gpu.folder, "tensorrt")
