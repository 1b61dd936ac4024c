"""Say where a bundle that fails its check goes wrong: in which layer of a file, or in its pre-processing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.devices import Device
from edgekd.errors import EdgekdError
from edgekd.runner import from_image
from edgekd.stages.bisect import first_bad
from edgekd.stages.bundle import SAMPLES, read_manifest
from edgekd.stages.looking import Form, Workshop, on_device
from edgekd.stages.match import FP32_RELATIVE_ERROR
from edgekd.stages.rungs import LAYER_LIMITS
from edgekd.stages.verify import read_recipe, read_samples
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Bundle, Check, Deployment, VerifyReport
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.preprocess import Preprocess

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Ask = Callable[
    [Floats], Floats
]  # images as the model takes them, (n, C, h, w), to its first output, (n, ...)

_STEP = 1e-2  # of a scale or shift, for its slope; inputs are of the order of 1
_MENDED = 1e-4  # of the outputs' scale: float32 steps come no nearer
_STEPS = 8  # of Gauss and Newton's
_SAMPLES = 16
_REAL, _RANDOM = ", real inputs", ", random inputs"


def explain(report: VerifyReport, device: Device, workshop: Workshop, scratch: Path) -> VerifyReport:
    """Return the report with what can be found out about its failures; no further failure is added.

    A file that departs from one that does not is looked into, down to the layer. Where every fp32 file departs from what
    was recorded on real inputs, but not from one another, what they are given is wrong: the pre-processing is
    tried with its channels reversed, without its normalisation, and with another mean.
    """
    failed = {one.name for one in report.checks if one.passed is False and one.parity is not None}
    if not failed:
        return report
    bundle = Bundle(folder=report.folder, manifest=read_manifest(report.folder))
    try:
        found = list(_explained(bundle, failed, device, workshop, scratch))
    except (EdgekdError, ValueError, KeyError) as error:
        found = [f"it could not be found out: {error}".splitlines()[0][:300]]
    told = tuple(Check(name="where it departs", passed=None, detail=text) for text in found)
    return replace(report, checks=(*report.checks, *told))


def _explained(
    bundle: Bundle, failed: set[str], device: Device, workshop: Workshop, scratch: Path
) -> Iterator[str]:
    names = {name.removesuffix(_REAL).removesuffix(_RANDOM) for name in failed}
    deployments = bundle.manifest.deployments
    exact = [one for one in deployments if one.precision is Precision.FP32]
    bad = [one for one in deployments if one.name in names]
    if exact and all(
        f"{one.name}{_REAL}" in failed and f"{one.name}{_RANDOM}" not in failed for one in exact
    ):
        yield _of_inputs(bundle, _engine(bundle, exact[0]), device, scratch)
        return
    for at, deployment in enumerate(bad):
        own = _form(bundle, deployment, device)
        # The portable file by definition where no other file is sound.
        sound = next((one for one in exact if one.name not in names), None)
        reference = _defined(bundle, device, workshop) if sound is None else _form(bundle, sound, device)
        yield _of_layers(own, reference, deployment.precision, workshop, scratch / f"explained{at}")


def _of_layers(own: Form, reference: Form, precision: Precision, workshop: Workshop, scratch: Path) -> str:
    rows = {}
    for side, form in (("reference", reference), ("other", own)):
        rng = np.random.default_rng(0)
        rows[side] = {
            name: _kept(scratch / f"{side}{at}.npy", rng.standard_normal((2, *form.shapes[name]), np.float32))
            for at, name in enumerate(form.shapes)
        }
    log.info("looking for the first layer at which %s departs", own.name)
    found = first_bad(workshop, reference, own, rows, scratch, limit=LAYER_LIMITS[precision])
    if not found.blames:
        return f"{own.name}: no layer can be named: {found.problem}"
    first = found.blames[0]
    if not first.stands_out:
        return f"{own.name}: no layer stands out against {reference.name}; most comes from {first.layer}"
    return (
        f"{own.name}: the first bad layer against {reference.name} is {first.layer} ({first.operator}), "
        f"which departs by {first.own_error:.1e} by itself"
    )


def _of_inputs(bundle: Bundle, engine: Engine, device: Device, scratch: Path) -> str:
    """Say what would make the recorded outputs of the recorded samples."""
    recipe = read_recipe(bundle.folder)
    if not isinstance(recipe, Preprocess) or SAMPLES not in bundle.manifest.files:
        return "every file departs from the recorded outputs alike: what they are given is wrong, or all their weights are"
    held, recorded = read_samples(bundle.folder / SAMPLES)
    images, wanted = held[:_SAMPLES], recorded[:_SAMPLES].reshape(len(held[:_SAMPLES]), -1)
    ask = _asking(engine, device, bundle.manifest.accepted.name, scratch)
    for said, tensors in _otherwise(images, recipe):
        if _error(wanted, ask(tensors)) <= FP32_RELATIVE_ERROR:
            return f"preprocess.json does not say what was done: {said}, the files give what was recorded"
    fitted = _fitted(ask, from_image.prepare(images, recipe), wanted)
    if fitted is None:
        return "every file departs from the recorded outputs alike, and no other mean, std or order of channels mends it"
    scales, shifts = fitted
    stds = [std / scale for std, scale in zip(recipe.std, scales)]
    means = [mean - std * shift for mean, std, shift in zip(recipe.mean, stds, shifts)]
    return (
        f"mean or std in preprocess.json is wrong: with mean {_numbers(means)} and std {_numbers(stds)} "
        "the files give what was recorded"
    )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _otherwise(images: NDArray[np.uint8], recipe: Preprocess) -> Iterator[tuple[str, Floats]]:
    """Give what is most often wrong, put right."""
    zeros, ones = (0.0,) * recipe.channels, (1.0,) * recipe.channels
    plainly = replace(recipe, mean=zeros, std=ones)
    yield "with the channels the other way round", from_image.prepare(images[..., ::-1], recipe)
    yield "without mean and std", from_image.prepare(images, plainly)
    yield "with pixels up to 255 and no mean", 255 * from_image.prepare(images, plainly)
    other = "nearest" if recipe.resize != "nearest" else "bilinear"
    yield f"resized by {other}", from_image.prepare(images, replace(recipe, resize=other))


def _fitted(ask: Ask, tensors: Floats, wanted: Floats) -> tuple[list[float], list[float]] | None:
    """Return by what each channel is to be multiplied, and what is then added, for the recorded outputs; None: by nothing.

    Gauss and Newton's method; slopes are differences, all asked for at once.
    """
    channels = tensors.shape[1]
    now = np.concatenate([np.ones(channels), np.zeros(channels)])
    for _ in range(_STEPS):
        tries = [now, *(now + _STEP * unit for unit in np.eye(2 * channels))]
        scaled = [tensors * one[:channels, None, None] + one[channels:, None, None] for one in tries]
        base, *moved = np.split(ask(np.concatenate(scaled).astype(np.float32)).astype(np.float64), len(tries))
        if _error(wanted, base) <= _MENDED:
            return now[:channels].tolist(), now[channels:].tolist()
        slopes = np.stack([(one - base).ravel() / _STEP for one in moved], axis=1)
        now += np.linalg.lstsq(slopes, (wanted - base).ravel(), rcond=None)[0]
        if not np.isfinite(now).all() or not now[:channels].all():
            return None
    return None


def _asking(engine: Engine, device: Device, name: str, scratch: Path) -> Ask:
    count = 0

    def ask(tensors: Floats) -> Floats:
        nonlocal count
        count += 1
        log.info("running %s on other inputs", name)
        signature = device.inspect(engine.model.file)
        given = {signature.inputs[0].name: _kept(scratch / f"asked{count}.npy", tensors[:, None])}
        found = device.infer(engine, given, scratch / f"answered{count}")
        rows: Floats = np.load(next(iter(found.values())).verified(), allow_pickle=False)
        return rows.reshape(len(tensors), -1)

    return ask


def _error(wanted: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return np.inf
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-9))


def _form(bundle: Bundle, deployment: Deployment, device: Device) -> Form:
    engine = _engine(bundle, deployment)
    shapes = _shapes(device, engine.model)
    return Form(name=deployment.name, model=engine.model, run=on_device(device, engine), shapes=shapes)


def _defined(bundle: Bundle, device: Device, workshop: Workshop) -> Form:
    model = Model(file=_artifact(bundle, "model.onnx"))
    shapes = _shapes(device, model)
    return Form(name="model.onnx by definition", model=model, run=workshop.define, shapes=shapes)


def _shapes(device: Device, model: Model) -> dict[str, tuple[int, ...]]:
    inputs = device.inspect(model.file).inputs
    return {spec.name: tuple(size or 1 for size in spec.shape) for spec in inputs}


def _engine(bundle: Bundle, deployment: Deployment) -> Engine:
    file, *rest = (_artifact(bundle, name) for name in deployment.files)
    model = Model(file=file, weights=rest[0] if rest else None, precision=deployment.precision)
    return Engine(
        model=model,
        runtime=deployment.runtime,
        precision=deployment.precision,
        threads=deployment.threads,
    )


def _artifact(bundle: Bundle, name: str) -> Artifact:
    return Artifact(path=bundle.folder / name, sha256=bundle.manifest.files[name])


def _kept(path: Path, rows: NDArray[np.floating]) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(rows, dtype=np.float32))
    return Artifact.of(path)
