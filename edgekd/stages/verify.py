"""Check a bundle: its digests, names and models, and that every file still computes what it did."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.devices import Device
from edgekd.errors import BackendMissing, ConfigError, IntegrityError
from edgekd.runner import from_features, from_image, from_spectrogram, from_text
from edgekd.stages.bundle import SAMPLES, STEP, read_manifest, unlisted
from edgekd.values.artifact import Artifact
from edgekd.values.bundle import Bundle, Check, Deployment, Manifest, Parity, VerifyReport
from edgekd.values.codec import decode
from edgekd.values.job import CLASSIFYING
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec
from edgekd.values.preprocess import Features, Preprocess, Recipe, Spectrogram, Text

log = logging.getLogger(__name__)

FP32_RELATIVE_ERROR = 1e-5  # of the largest output
# int8 and bf16 may change a close call. Losing a fifth of the labels is no rounding: it is, for one, what U8S8
# kernels do that saturate on a CPU without VNNI.
LEAST_AGREEMENT = 0.8
MOST_ERROR = 0.5  # of the largest output, in place of it where outputs name no class
_RANDOM_INPUTS = 16
_MOST_SAMPLES_BYTES = 256 << 20
UNREADABLE = (KeyError, ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
_MEND = "take the bundle from its source again, or make it again with `edgekd run`"

Floats = NDArray[np.float32]
_RECIPE: Any = Recipe  # of a kind that the data says
_PREPARE: dict[str, Callable[[NDArray[Any], object], NDArray[Any]]] = {  # by the kind of the recipe
    "image": from_image.prepare,
    "spectrogram": from_spectrogram.prepare,
    "features": from_features.prepare,
    "text": from_text.prepare,
}


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Real inputs, of which the reference's outputs were recorded, and random ones after them."""

    tensors: dict[str, NDArray[Any]]  # by input: (n, *whole shape)
    recorded: Floats  # (m, outputs), m <= n


def verify_bundle(bundle_folder: Path, device: Device, scratch: Path) -> VerifyReport:
    """Check a bundle from its bytes to its outputs.

    Args:
        bundle_folder: what `stages.bundle` wrote, here or elsewhere.
        device: runs the models; a runtime that is missing there is reported, and not held against the bundle.
        scratch: for inputs and outputs of the models.

    Raises:
        IntegrityError: a digest, a name or an unlisted file.
        ModelError: a model is malformed or hostile.
        BackendMissing: the device has none of the bundle's runtimes.

    """
    bundle = Bundle(folder=bundle_folder, manifest=read_manifest(bundle_folder))
    checks = _files(bundle)
    recipe = read_recipe(bundle_folder)
    signatures, missing = _signatures(bundle, device)
    checks += [*missing, *(_shape(name, signature, recipe) for name, signature in signatures.items())]
    if all(check.passed is not False for check in checks):  # a model of another shape cannot be run
        checks += _numerics(bundle, device, recipe, signatures, scratch)
    return VerifyReport(folder=bundle_folder, checks=tuple(checks))


def parity(
    reference: NDArray[np.floating], outputs: NDArray[np.floating], *, labelled: bool = True
) -> Parity:
    """Compare outputs with the reference's, both (n, ...); anything not finite is an infinite error.

    Labels, the places of the largest of (n, classes), are compared where `labelled` says that outputs name some.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.

    """
    if reference.shape != outputs.shape or not reference.size:
        raise ValueError(f"outputs of shape {outputs.shape} cannot be compared with {reference.shape}")
    error = float(np.abs(outputs.astype(np.float64) - reference.astype(np.float64)).max())
    return Parity(
        max_error=error if math.isfinite(error) else math.inf,
        scale=float(np.abs(reference).max()),
        changed_labels=int((outputs.argmax(axis=-1) != reference.argmax(axis=-1)).sum()) if labelled else 0,
        samples=len(reference),
    )


def _files(bundle: Bundle) -> list[Check]:
    folder, manifest = bundle.folder, bundle.manifest
    if extra := unlisted(folder, manifest):
        raise IntegrityError(
            f"{folder} holds {extra[0]!r}, which its manifest does not list",
            cause=f"one of {len(extra)} such files" if len(extra) > 1 else "",
            mend="delete it if you know where it comes from (Python makes __pycache__ anew); else " + _MEND,
        )
    try:
        for name, sha256 in manifest.files.items():
            runner.read_verified(folder, name, sha256)
    except runner.Refusal as refusal:
        raise IntegrityError(str(refusal), mend=_MEND) from None
    own = runner.script(manifest.task) if manifest.task in runner.KINDS else ""
    ours = manifest.files.get("run.py") == hashlib.sha256(own.encode()).hexdigest()
    word = "is this edgekd's runner" if ours else "is not this edgekd's runner: another version's, or edited"
    return [
        Check(name="digests", passed=True, detail=f"{len(manifest.files)} files are those that were bundled"),
        Check(name="run.py", passed=ours or None, detail=f"run.py {word}"),
    ]


def read_recipe(folder: Path) -> Recipe:
    """Read a bundle's pre-processing.

    Raises:
        IntegrityError: it is missing or malformed.

    """
    path = folder / "preprocess.json"
    try:
        found: Recipe = decode(_RECIPE, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, ConfigError) as error:
        raise IntegrityError(f"{path} cannot be used", cause=str(error), mend=_MEND) from None
    return found


def _signatures(bundle: Bundle, device: Device) -> tuple[dict[str, Signature], list[Check]]:
    signatures: dict[str, Signature] = {}
    missing: list[Check] = []
    for name in bundle.manifest.files:
        if name.endswith((".onnx", ".xml")):
            try:
                signatures[name] = device.inspect(_artifact(bundle, name))
            except BackendMissing as error:
                missing.append(Check(name=f"input of {name}", passed=None, detail=f"not read: {error.what}"))
    return signatures, missing


def _artifact(bundle: Bundle, name: str) -> Artifact:
    return Artifact(path=bundle.folder / name, sha256=bundle.manifest.files[name])


def _shape(name: str, signature: Signature, recipe: Recipe) -> Check:
    takes = [tensor.shape for tensor in signature.inputs]
    made = _made(recipe, signature.inputs[0]) if takes else ()
    alone = len(takes) == 1 or isinstance(recipe, Text)  # beside a letter there is a state
    fits = (
        alone and len(takes[0]) == len(made) and all(None in {a, b} or a == b for a, b in zip(takes[0], made))
    )
    detail = f"{name} takes {' and '.join(map(_sizes, takes))}"
    if not fits:
        detail += f", but preprocess.json makes {_sizes(made)}"
    return Check(name=f"input of {name}", passed=fits, detail=detail)


def _made(recipe: Recipe, spec: TensorSpec) -> tuple[int | None, ...]:
    """Return the whole shape that pre-processing makes for an input; None where the model decides."""
    if isinstance(recipe, Preprocess):
        return (1, recipe.channels, recipe.height, recipe.width)
    if isinstance(recipe, Spectrogram):
        return (1, 1, recipe.bins, recipe.frames)
    if isinstance(recipe, Features):
        return (1, *(None,) * (len(spec.shape) - 2), len(recipe.names))
    whole = (None,) * len(spec.shape)
    return whole if "int" in spec.dtype else (*whole[:-1], len(recipe.alphabet))


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _inputs(bundle: Bundle, recipe: Recipe, signature: Signature) -> _Inputs:
    """Return the bundle's own samples as the models take them, and random tensors after them."""
    names = [spec.name for spec in signature.inputs]
    random = {spec.name: _random(spec, _made(recipe, spec), at) for at, spec in enumerate(signature.inputs)}
    path, width = bundle.folder / SAMPLES, len(bundle.manifest.classes)
    if SAMPLES not in bundle.manifest.files:
        return _Inputs(tensors=random, recorded=np.empty((0, width), np.float32))
    try:
        real, recorded = _real(bundle, recipe, signature)
        tensors = {name: np.concatenate([real[name], random[name]]) for name in names}
    except UNREADABLE as error:
        raise IntegrityError(f"{path} cannot be used", cause=str(error), mend=_MEND) from None
    return _Inputs(tensors=tensors, recorded=recorded.reshape(len(recorded), -1))


def _random(spec: TensorSpec, made: tuple[int | None, ...], seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    shape = (_RANDOM_INPUTS, *(own or other or 1 for own, other in zip(spec.shape, made)))
    return rng.integers(0, 2, shape) if "int" in spec.dtype else rng.standard_normal(shape, dtype=np.float32)


def _real(bundle: Bundle, recipe: Recipe, signature: Signature) -> tuple[dict[str, NDArray[Any]], Floats]:
    """Return inputs by name, (n, *whole shape), and what the reference said of them: of samples, or of single steps."""
    path, manifest = bundle.folder / SAMPLES, bundle.manifest
    samples, recorded = read_samples(path)
    if steps := read_steps(path):
        return {spec.name: steps[spec.name] for spec in signature.inputs}, steps[signature.outputs[0].name]
    fits = recorded.shape[1:] == (len(manifest.classes),) or manifest.task not in CLASSIFYING
    if len(recorded) != len(samples) or not fits:
        raise ValueError(f"logits of shape {recorded.shape} for {len(samples)} images")
    (name,) = (spec.name for spec in signature.inputs)
    return {name: _PREPARE[recipe.kind](samples, recipe)[:, None]}, recorded


def read_samples(path: Path) -> tuple[NDArray[Any], Floats]:
    """Read a bundle's samples and the reference's outputs for them; a damaged file raises what numpy does."""
    kept = _arrays(path)
    first, last = ("images", "logits") if "images" in kept else ("samples", "outputs")
    return kept[first], kept[last]


def read_steps(path: Path) -> dict[str, NDArray[Any]]:
    """Read what went in and out of a stepwise student's single steps, by name; none where it is no such student."""
    return {name.removeprefix(STEP): array for name, array in _arrays(path).items() if name.startswith(STEP)}


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:  # what it unpacks to, before any of it is unpacked
        if sum(member.file_size for member in archive.infolist()) > _MOST_SAMPLES_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_SAMPLES_BYTES >> 20} MiB")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        return dict(kept)


def _numerics(
    bundle: Bundle, device: Device, recipe: Recipe, signatures: dict[str, Signature], scratch: Path
) -> list[Check]:
    """Hold every file against the recorded outputs on real inputs, and against fp32 on random ones."""
    checks: list[Check] = []
    outputs: list[tuple[Deployment, Floats]] = []
    inputs = _Inputs(tensors={}, recorded=np.empty((0, 0), np.float32))
    for at, deployment in enumerate(bundle.manifest.deployments):
        if deployment.files[0] not in signatures:
            continue
        signature = signatures[deployment.files[0]]
        inputs = _inputs(bundle, recipe, signature)
        count = len(next(iter(inputs.tensors.values())))
        log.info("running %s on %d inputs", deployment.name, count)
        try:
            given = {
                name: _saved(scratch / f"{at}-{name}.npy", rows) for name, rows in inputs.tensors.items()
            }
            found = device.infer(_engine(bundle, deployment), given, scratch / str(at))
            answer = found.get(signature.outputs[0].name, next(iter(found.values())))
            outputs.append((deployment, _rows(answer, count)))
        except BackendMissing as error:
            checks.append(Check(name=deployment.name, passed=None, detail=f"not run: {error.what}"))
    if not outputs:
        raise BackendMissing(
            f"none of the runtimes of {bundle.folder} is on this device",
            cause=", ".join(deployment.name for deployment in bundle.manifest.deployments),
            mend=f"pip install {bundle.manifest.accepted.runtime}",
        )
    return checks + list(_judged(outputs, inputs, bundle.manifest))


def _saved(path: Path, rows: NDArray[Any]) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return Artifact.of(path)


def _judged(outputs: list[tuple[Deployment, Floats]], inputs: _Inputs, manifest: Manifest) -> Iterator[Check]:
    real, labelled = len(inputs.recorded), manifest.task in CLASSIFYING
    exact = next((o[real:] for one, o in outputs if one.precision is Precision.FP32), None)
    for deployment, found in outputs:
        if labelled and found.shape[1] != len(manifest.classes):
            detail = f"{found.shape[1]} outputs for {len(manifest.classes)} classes"
            yield Check(name=deployment.name, passed=False, detail=detail)
        elif real and found.shape[1] != inputs.recorded.shape[1]:
            detail = f"{found.shape[1]} outputs where the reference gave {inputs.recorded.shape[1]}"
            yield Check(name=deployment.name, passed=False, detail=detail)
        elif not np.isfinite(found).all():
            yield Check(name=deployment.name, passed=False, detail="some outputs are not finite numbers")
        else:
            if real:
                compared = parity(inputs.recorded, found[:real], labelled=labelled)
                yield _on_real(deployment, compared, labelled=labelled)
            if exact is not None and exact.shape == found[real:].shape:
                compared = parity(exact, found[real:], labelled=labelled)
                yield _on_random(deployment, compared, labelled=labelled)


def _on_real(deployment: Deployment, found: Parity, *, labelled: bool) -> Check:
    if deployment.precision is Precision.FP32:
        passed = found.relative_error <= FP32_RELATIVE_ERROR
    else:
        passed = found.agreement >= LEAST_AGREEMENT if labelled else found.relative_error <= MOST_ERROR
    detail = _words(found, "torch", labelled=labelled)
    return Check(name=f"{deployment.name}, real inputs", passed=passed, detail=detail, parity=found)


def _on_random(deployment: Deployment, found: Parity, *, labelled: bool) -> Check:
    exact = deployment.precision is Precision.FP32
    # Noise lies nowhere near the data that int8 was calibrated on: there its error is only reported.
    passed = found.relative_error <= FP32_RELATIVE_ERROR if exact else None
    detail = _words(found, "fp32", labelled=labelled)
    return Check(name=f"{deployment.name}, random inputs", passed=passed, detail=detail, parity=found)


def _words(found: Parity, reference: str, *, labelled: bool) -> str:
    labels = f"{found.changed_labels} of {found.samples} labels differ from {reference}'s, "
    of_what = "" if labelled else f" against {reference} on {found.samples} inputs"
    error = f"largest error {found.relative_error:.1e} of the output scale"
    return f"{labels}{error}" if labelled else f"{error}{of_what}"


def _engine(bundle: Bundle, deployment: Deployment) -> Engine:
    file, *weights = (_artifact(bundle, name) for name in deployment.files)
    return Engine(
        model=Model(file=file, weights=weights[0] if weights else None, precision=deployment.precision),
        runtime=deployment.runtime,
        precision=deployment.precision,
        threads=deployment.threads,
    )


def _rows(output: Artifact, count: int) -> Floats:
    rows: Floats = np.load(output.verified(), allow_pickle=False)
    return rows.reshape(count, -1)
