"""Fixtures that more than one folder of tests uses: a small real bundle and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgekd import runner
from edgekd.stages.bundle import bundle, save_samples
from edgekd.timing.conditions import conditions
from edgekd.values.artifact import Artifact
from edgekd.values.budget import Limits
from edgekd.values.bundle import Accuracies, Bundle, BundleContent, Shipped
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.preprocess import Preprocess
from edgekd.values.student import StageSpec, StudentSpec

_CLASSES = ("zero", "one", "two", "three")
_SPEC = StudentSpec(
    family="residual", resolution=8, stem=8, stages=(StageSpec(width=8, depth=1, kernel=3, expansion=1.0),)
)


@dataclass(frozen=True)
class BundleMaker:
    """What a bundle is made of, from a network that is a real convolution with fixed random weights."""

    content: BundleContent
    images: np.ndarray  # (n, 8, 8, 1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> BundleMaker:
    """Give bundle content: one network as ONNX and as OpenVINO IR, sample images and their logits."""
    import openvino

    folder = tmp_path_factory.mktemp("content")
    source = Model(file=Artifact.of(_network(folder / "student.onnx")))
    compiled = openvino.convert_model(str(source.file.path))
    openvino.save_model(compiled, folder / "student.xml", compress_to_fp16=False)
    xml, weights = (Artifact.of(folder / f"student.{suffix}") for suffix in ("xml", "bin"))
    intermediate = Model(file=xml, weights=weights)
    recipe = Preprocess(height=8, width=8, mean=(0.4,), std=(0.3,))
    images = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    logits = _logits(source.file.path, runner.preprocess(images, recipe))
    samples = save_samples(folder / "samples.npz", images, logits.argmax(axis=1), logits)
    shipped = (
        Shipped(engine=_engine(intermediate, "openvino"), latency=_latency(0.2), accuracy=0.97),
        Shipped(engine=_engine(source, "onnxruntime"), latency=_latency(0.4), accuracy=0.97),
    )
    return BundleMaker(content=_content(source, shipped, recipe, samples), images=images)


@pytest.fixture
def made_bundle(made: BundleMaker, tmp_path: Path) -> Bundle:
    """Give a bundle on disk that the test may spoil."""
    return bundle(tmp_path / "bundle", made.content)


def _network(path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(6, 1, 3, 3)), "bias": rng.normal(size=6), "dense": rng.normal(size=(6, 4)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "kernel", "bias"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "dense"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def _logits(path: Path, tensors: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": tensor[None]})[0] for tensor in tensors])


def _engine(model: Model, runtime: str) -> Engine:
    return Engine(model=model, runtime=runtime, precision=Precision.FP32)


def _latency(p50_ms: float) -> Latency:
    protocol = Protocol(launches=2, blocks=2, samples=100)
    samples_ms = tuple(p50_ms * (1 + 0.001 * (at % 37)) for at in range(400))
    quiet = Load(load_average=0.1, others_percent=0.5, steal_percent=0.0, involuntary_switches=0)
    return Latency(
        samples_ms=samples_ms,
        cpu_ms=samples_ms,
        protocol=protocol,
        conditions=conditions(quiet),
        trust=Trust(verdict=TrustVerdict.GOOD),
    )


def _content(
    source: Model, shipped: tuple[Shipped, ...], recipe: Preprocess, samples: Artifact
) -> BundleContent:
    return BundleContent(
        name="small",
        task="classification",
        classes=_CLASSES,
        spec=_SPEC,
        source=source,
        shipped=shipped,
        preprocess=recipe,
        limits=Limits(latency_ms={"p99": 1.0}, confidence=0.95),
        accuracy=Accuracies(
            metric="accuracy",
            teacher=0.98,
            student=0.97,
            validation_teacher=0.98,
            validation_student=0.97,
            test_samples=12,
        ),
        teacher_sha256="1" * 64,
        data_sha256="2" * 64,
        job_sha256="3" * 64,
        calibration_sha256="",
        tools={"edgekd": "0.1.0"},
        seed=0,
        samples=samples,
        command="edgekd run small.toml",
        teacher_latency=_latency(0.8),
    )
