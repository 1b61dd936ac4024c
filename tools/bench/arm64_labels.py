"""Compare the labels that a student's files give on another device with those they give here, image by image.

    tools/arm64-board DIR                            and the `edgekd devices add arm64 ...` that it prints
    python tools/bench/arm64_labels.py runs/digits/bundle --target arm64
    python tools/bench/arm64_labels.py runs/cifar10/bundle --target arm64 --data cifar10.npz --images 200

Takes the fp32 and the int8 file for ONNX Runtime from a bundle; one without int8 is quantised here first, on images
that are not compared. Prints JSON. Exit code 1: fp32 changes a label, or int8 more than one of 200.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.devices import Device, connect
from edgekd.runner import preprocess
from edgekd.stages.bundle import read_manifest
from edgekd.stages.configure import profile_of, target_from
from edgekd.stages.quantize import Quantizers, quantize
from edgekd.stages.verify import parity, read_recipe
from edgekd.tasks.datasets import arrange, open_source
from edgekd.values.artifact import Artifact
from edgekd.values.job import TargetSection
from edgekd.values.model import Engine, Model, Precision

RUNTIME = "onnxruntime"
BARS = {Precision.FP32: 1.0, Precision.INT8: 0.995}  # share of labels that must be the same
CALIBRATION = 256

Logits = NDArray[np.float32]  # (n, classes)


def main() -> int:
    arguments = _arguments()
    section = TargetSection(
        profile=profile_of(arguments.target), device=arguments.target, runtimes=(RUNTIME,)
    )
    target = target_from(section, Path())
    with TemporaryDirectory() as scratch:
        inputs, labels, held_back = _inputs(arguments, Path(scratch))
        models = _models(arguments.bundle, held_back, Path(scratch))
        here = connect(replace(target, device="local"))
        with here, connect(target) as there:
            results = {
                precision.value: _compared(model, precision, inputs, labels, (here, there), Path(scratch))
                for precision, model in models.items()
            }
            machines = [device.probe().conditions for device in (here, there)]
    passed = all(result["passed"] for result in results.values())
    print(
        json.dumps(
            {
                "passed": passed,
                "images": len(labels),
                "here": f"{machines[0].hardware.machine}, {machines[0].hardware.processor}",
                "there": f"{machines[1].hardware.machine}, {machines[1].hardware.processor}",
                RUNTIME: [one.software.runtimes.get(RUNTIME) for one in machines],
                **results,
            },
            indent=1,
        )
    )
    return 0 if passed else 1


def _compared(  # noqa: PLR0917 - what the two have in common
    model: Model,
    precision: Precision,
    inputs: Artifact,
    labels: NDArray[np.int64],
    devices: tuple[Device, Device],
    scratch: Path,
) -> dict[str, Any]:
    engine = Engine(model=model, runtime=RUNTIME, precision=precision)
    outputs, seconds = [], []
    for side, device in enumerate(devices):
        name = device.inspect(model.file).inputs[0].name
        start = time.monotonic()
        found = device.infer(engine, {name: inputs}, scratch / f"{precision.value}-{side}")
        seconds.append(round(time.monotonic() - start, 1))
        outputs.append(np.load(next(iter(found.values())).verified()).reshape(len(labels), -1))
    found = parity(*outputs)
    agreement = 1 - found.changed_labels / found.samples
    return {
        "passed": agreement >= BARS[precision],
        "agreement": agreement,
        "bar": BARS[precision],
        "changed_labels": found.changed_labels,
        "largest_error": found.max_error / found.scale,  # of the largest logit
        "accuracy": [float((one.argmax(axis=1) == labels).mean()) for one in outputs],
        "seconds": seconds,
    }


def _inputs(
    arguments: argparse.Namespace, scratch: Path
) -> tuple[Artifact, NDArray[np.int64], NDArray[np.float32]]:
    """Return what is compared, its labels, and other images for calibration; float32, (n, 1, C, h, w)."""
    source = open_source(arguments.data, Path())
    every = np.arange(len(source.labels)) if source.test is None else np.flatnonzero(source.test)
    chosen = every[
        np.arange(min(arguments.images, len(every))) * len(every) // min(arguments.images, len(every))
    ]
    others = np.setdiff1d(np.arange(len(source.labels)), chosen)
    others = others[np.arange(CALIBRATION) * len(others) // CALIBRATION]
    recipe = read_recipe(arguments.bundle)
    pixels = arrange(source, np.concatenate([chosen, others]), scratch, None)
    rows = preprocess(np.asarray(pixels), recipe)[:, None]
    np.save(scratch / "images.npy", rows[: len(chosen)])
    return Artifact.of(scratch / "images.npy"), source.labels[chosen], rows[len(chosen) :]


def _models(bundle: Path, held_back: NDArray[np.float32], scratch: Path) -> dict[Precision, Model]:
    manifest = read_manifest(bundle)
    whole = Model(file=Artifact.of(bundle / "model.onnx"))
    for one in manifest.deployments:
        if one.runtime == RUNTIME and one.precision is Precision.INT8:
            small = Model(file=Artifact.of(bundle / one.files[0]), precision=Precision.INT8)
            return {Precision.FP32: whole, Precision.INT8: small}
    with (
        connect(target_from(TargetSection(runtimes=(RUNTIME,)), Path())) as device,
        Quantizers() as quantizers,
    ):
        name = device.inspect(whole.file).inputs[0].name
        np.save(scratch / "calibration.npy", held_back)
        calibration = {name: Artifact.of(scratch / "calibration.npy")}
        folder = scratch / "int8"
        folder.mkdir()
        return {
            Precision.FP32: whole,
            Precision.INT8: quantize(folder, whole, RUNTIME, calibration, quantizers),
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", required=True, help="a board of `edgekd devices`")
    parser.add_argument("--data", default="digits", help="class folders, an .npz, or digits")
    parser.add_argument("--images", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
