"""Compare an accepted student with what its user would have done instead, in one interleaved measurement.

    python tools/bench/deploy.py tools/jobs/cifar10.toml --run runs/cifar10

Peers, from the same teacher, data, threads and training time: (a) the teacher's own architecture scaled down in
depth until it is no slower, trained with plain distillation and compiled as the student is; (b) the teacher in
NNCF int8 on OpenVINO; (c) the teacher in static int8 on ONNX Runtime; and the teacher itself. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from edgekd.distillation.checkpoints import load_module
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, train
from edgekd.pipeline.measuring import teacher_engine
from edgekd.pipeline.trials import distilled, labels
from edgekd.pipeline.workbench import Workbench, workbench
from edgekd.stages.bundle import read_manifest
from edgekd.stages.configure import configure
from edgekd.stages.distill import lesson_from
from edgekd.stages.evaluate import prepare
from edgekd.stages.export import export_module
from edgekd.stages.quantize import calibrate, quantize
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Manifest
from edgekd.values.job import DistillationSection
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.student import StudentSpec

DEPTHS = range(9, 0, -1)  # blocks a stage of the teacher's architecture, 9 in ResNet-56
TIMING = Protocol(launches=4, blocks=5, samples=100)
QUICK = Protocol(launches=1, blocks=4, samples=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="the folder that `edgekd run` wrote")
    parser.add_argument("--epochs", type=int, help="of the scaled teacher; default: equal training time")
    arguments = parser.parse_args()
    configured = configure(arguments.job)
    with workbench(configured.job, beside=configured.beside, name="deploy", out=arguments.run) as bench:
        make = _network(configured.beside / "models.py")
        arms = _arms(bench, arguments.run, make, arguments.epochs)
        engines = {name: engine for name, (engine, _) in arms.items()}
        latencies = bench.device.time(list(engines.values()), TIMING)
        results = {
            name: _result(bench, engine, resolution, latency)
            for (name, (engine, resolution)), latency in zip(arms.items(), latencies)
        }
    print(json.dumps({"protocol": dataclasses.asdict(TIMING), "arms": results}, indent=1))


Arm = tuple[Engine, int]  # and the side of its input


def _arms(
    bench: Workbench, run: Path, make: Callable[[int], nn.Module], epochs: int | None
) -> dict[str, Arm]:
    manifest = read_manifest(run / "bundle")
    student = _student(run / "bundle", manifest)
    side = bench.teacher.resolution
    teacher = teacher_engine(bench, "onnxruntime")
    return {
        "edgekd": (student, manifest.spec.resolution),
        "teacher fp32, ONNX Runtime": (teacher, side),
        "teacher fp32, OpenVINO": (teacher_engine(bench, "openvino"), side),
        "(a) scaled-down teacher, plain KD": (
            _scaled(bench, run, student, manifest.spec, make, epochs),
            side,
        ),
        "(b) teacher int8, NNCF on OpenVINO": (_int8(bench, teacher.model, "openvino"), side),
        "(c) teacher int8, ONNX Runtime static": (_int8(bench, teacher.model, "onnxruntime"), side),
    }


def _student(bundle: Path, manifest: Manifest) -> Engine:
    accepted = manifest.accepted
    file, *rest = (Artifact.of(bundle / name) for name in accepted.files)
    model = Model(file=file, weights=rest[0] if rest else None, precision=accepted.precision)
    return Engine(
        model=model, runtime=accepted.runtime, precision=accepted.precision, threads=accepted.threads
    )


def _int8(bench: Workbench, model: Model, runtime: str) -> Engine:
    inputs = bench.store.run(calibrate, bench.task, bench.teacher.resolution, 256)
    made = bench.store.run(quantize, model, runtime, {"images": inputs}, bench.quantizers)
    return Engine(model=made, runtime=runtime, precision=Precision.INT8, threads=bench.target.threads)


def _scaled(  # noqa: PLR0917 - what the two have in common
    bench: Workbench,
    run: Path,
    student: Engine,
    spec: StudentSpec,
    make: Callable[[int], nn.Module],
    epochs: int | None,
) -> Engine:
    """Find the deepest scaled teacher that is no slower than the student, and train it as long."""
    folder = run / "deploy-peer"
    for blocks in DEPTHS:
        engine = _compiled(bench, folder / f"untrained-{blocks}", make(blocks), student)
        own, peer = bench.device.time([student, engine], QUICK)
        if peer.percentile(50) <= 1.02 * own.percentile(50) or blocks == DEPTHS[-1]:
            break
    seconds = distilled(bench, spec, bench.job.distillation.epochs).seconds  # kept: nothing is trained here
    module = make(blocks)
    recipe = dataclasses.replace(
        bench.job.distillation, losses={"ce": 0.1, "kd": 0.9}, temperature=4.0, mixup=0.0
    )
    if epochs is None:
        epochs = _epochs_in(bench, folder, make(blocks), recipe, seconds)
    checkpoint = train(folder / f"trained-{blocks}-{epochs}", module, _course(bench, recipe, epochs))
    return _compiled(bench, folder / "compiled", load_module(make(blocks), checkpoint.weights), student)


def _epochs_in(
    bench: Workbench, folder: Path, module: nn.Module, recipe: DistillationSection, seconds: float
) -> int:
    one = train(folder / "one-epoch", module, _course(bench, recipe, 1))
    return max(1, round(seconds / one.seconds))


def _course(bench: Workbench, recipe: DistillationSection, epochs: int) -> Course:
    views = labels(bench, epochs)
    return Course(
        task=bench.task,
        knowledge=knowledge_for(recipe, bench.task),
        lesson=lambda epoch: lesson_from(views[epoch % len(views)], bench.task),
        recipe=recipe,
        resolution=bench.teacher.resolution,
        epochs=epochs,
        seed=bench.seed,
    )


def _compiled(bench: Workbench, folder: Path, module: nn.Module, like: Engine) -> Engine:
    folder.mkdir(parents=True, exist_ok=True)
    side = bench.teacher.resolution
    model = export_module(folder, module.eval(), {"images": (1, bench.task.channels, side, side)})
    if like.precision is Precision.INT8:
        return _int8(bench, model, like.runtime)
    return dataclasses.replace(like, model=model)


def _result(bench: Workbench, engine: Engine, resolution: int, latency: Latency) -> dict[str, object]:
    inputs = bench.store.run(prepare, bench.task, "test", resolution, None)
    folder = bench.store.root / "bench" / engine.model.file.sha256[:16] / engine.runtime
    logits = np.load(bench.device.infer(engine, {"images": inputs}, folder).popitem()[1].path)
    return {
        "runtime": engine.runtime,
        "precision": engine.precision.value,
        "accuracy": bench.task.score(logits, bench.task.test.labels),
        "p50_ms": latency.percentile(50),
        "p99_ms": latency.percentile(99),
        "p99_upper_ms": latency.upper_bound(99),
        "size_mb": engine.model.size_bytes / 1e6,
        "trust": latency.trust.verdict.value,
    }


def _network(path: Path) -> Callable[[int], nn.Module]:
    spec = importlib.util.spec_from_file_location("job_models", path)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    network: Callable[[int], nn.Module] = code.CifarResNet
    return network


if __name__ == "__main__":
    main()
