"""Check a bundle: its digests, names and models, and that every file still computes what it did."""

from __future__ import annotations

import json
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.devices import Device
from edgekd.errors import BackendMissing, ConfigError, IntegrityError
from edgekd.stages.bundle import SAMPLES, read_manifest, unlisted
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle, Check, Deployment, Parity, VerifyReport
from edgekd.values.codec import decode
from edgekd.values.model import Engine, Model, Precision, Signature
from edgekd.values.preprocess import Preprocess

log = logging.getLogger(__name__)

FP32_RELATIVE_ERROR = 1e-5  # of the largest output
# int8 and bf16 may change a close call. Losing a fifth of the labels is no rounding: it is, for one, what U8S8
# kernels do that saturate on a CPU without VNNI.
LEAST_AGREEMENT = 0.8
_RANDOM_INPUTS = 16
_MOST_SAMPLES_BYTES = 256 << 20
UNREADABLE = (KeyError, ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
_MEND = "take the bundle from its source again, or make it again with `edgekd run`"

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Real inputs, on which the reference's logits were recorded, and random ones after them."""

    tensors: Floats  # (n, 1, C, h, w)
    recorded: Floats  # (m, classes), m <= n


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
        checks += _numerics(bundle, device, _inputs(bundle, recipe), signatures, scratch)
    return VerifyReport(folder=bundle_folder, checks=tuple(checks))


def parity(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> Parity:
    """Compare outputs with the reference's, both (n, classes); anything not finite is an infinite error.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.

    """
    if reference.shape != outputs.shape or not reference.size:
        raise ValueError(f"outputs of shape {outputs.shape} cannot be compared with {reference.shape}")
    error = float(np.abs(outputs.astype(np.float64) - reference.astype(np.float64)).max())
    return Parity(
        max_error=error if math.isfinite(error) else math.inf,
        scale=float(np.abs(reference).max()),
        changed_labels=int((outputs.argmax(axis=-1) != reference.argmax(axis=-1)).sum()),
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
    ours = manifest.files.get("run.py") == sha256_of(Path(runner.__file__))
    word = "is this edgekd's runner" if ours else "is not this edgekd's runner: another version's, or edited"
    return [
        Check(name="digests", passed=True, detail=f"{len(manifest.files)} files are those that were bundled"),
        Check(name="run.py", passed=ours or None, detail=f"run.py {word}"),
    ]


def read_recipe(folder: Path) -> Preprocess:
    """Read a bundle's pre-processing.

    Raises:
        IntegrityError: it is missing or malformed.

    """
    path = folder / "preprocess.json"
    try:
        return decode(Preprocess, json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, ConfigError) as error:
        raise IntegrityError(f"{path} cannot be used", cause=str(error), mend=_MEND) from None


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


def _shape(name: str, signature: Signature, recipe: Preprocess) -> Check:
    made = (1, recipe.channels, recipe.height, recipe.width)
    takes = [tensor.shape for tensor in signature.inputs]
    fits = (
        len(takes) == 1 and len(takes[0]) == len(made) and all(a in (None, b) for a, b in zip(takes[0], made))
    )
    shapes = " and ".join("x".join("?" if size is None else str(size) for size in shape) for shape in takes)
    detail = f"{name} takes {shapes}"
    if not fits:
        detail += f", but preprocess.json makes {'x'.join(str(size) for size in made)}"
    return Check(name=f"input of {name}", passed=fits, detail=detail)


def _inputs(bundle: Bundle, recipe: Preprocess) -> _Inputs:
    folder, manifest = bundle.folder, bundle.manifest
    shape = (_RANDOM_INPUTS, recipe.channels, recipe.height, recipe.width)
    random = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    if SAMPLES not in manifest.files:
        return _Inputs(tensors=random[:, None], recorded=np.empty((0, len(manifest.classes)), np.float32))
    try:
        images, recorded = read_samples(folder / SAMPLES)
        if recorded.shape != (len(images), len(manifest.classes)):
            raise ValueError(f"logits of shape {recorded.shape} for {len(images)} images")
        real = runner.preprocess(images, recipe)
    except UNREADABLE as error:
        raise IntegrityError(f"{folder / SAMPLES} cannot be used", cause=str(error), mend=_MEND) from None
    return _Inputs(tensors=np.concatenate([real, random])[:, None], recorded=recorded)


def read_samples(path: Path) -> tuple[NDArray[np.uint8], Floats]:
    """Read a bundle's sample images and the reference's logits for them; a damaged file raises what numpy does."""
    with zipfile.ZipFile(path) as archive:  # what it unpacks to, before any of it is unpacked
        if sum(member.file_size for member in archive.infolist()) > _MOST_SAMPLES_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_SAMPLES_BYTES >> 20} MiB")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
        return kept["images"], kept["logits"]


def _numerics(
    bundle: Bundle, device: Device, inputs: _Inputs, signatures: dict[str, Signature], scratch: Path
) -> list[Check]:
    """Hold every file against the recorded logits on real inputs, and against fp32 on random ones."""
    scratch.mkdir(parents=True, exist_ok=True)
    np.save(scratch / "inputs.npy", inputs.tensors)
    tensors = Artifact.of(scratch / "inputs.npy")
    checks: list[Check] = []
    outputs: list[tuple[Deployment, Floats]] = []
    for at, deployment in enumerate(bundle.manifest.deployments):
        if deployment.files[0] not in signatures:
            continue
        name = signatures[deployment.files[0]].inputs[0].name
        log.info("running %s on %d inputs", deployment.name, len(inputs.tensors))
        try:
            found = device.infer(_engine(bundle, deployment), {name: tensors}, scratch / str(at))
            outputs.append((deployment, _rows(next(iter(found.values())), len(inputs.tensors))))
        except BackendMissing as error:
            checks.append(Check(name=deployment.name, passed=None, detail=f"not run: {error.what}"))
    if not outputs:
        raise BackendMissing(
            f"none of the runtimes of {bundle.folder} is on this device",
            cause=", ".join(deployment.name for deployment in bundle.manifest.deployments),
            mend=f"pip install {bundle.manifest.accepted.runtime}",
        )
    return checks + list(_judged(outputs, inputs, len(bundle.manifest.classes)))


def _judged(outputs: list[tuple[Deployment, Floats]], inputs: _Inputs, classes: int) -> Iterator[Check]:
    real = len(inputs.recorded)
    exact = next((o[real:] for one, o in outputs if one.precision is Precision.FP32), None)
    for deployment, found in outputs:
        if found.shape[1] != classes:
            detail = f"{found.shape[1]} outputs for {classes} classes"
            yield Check(name=deployment.name, passed=False, detail=detail)
        elif not np.isfinite(found).all():
            yield Check(name=deployment.name, passed=False, detail="some outputs are not finite numbers")
        else:
            if real:
                yield _on_real(deployment, parity(inputs.recorded, found[:real]))
            if exact is not None and exact.shape == found[real:].shape:
                yield _on_random(deployment, parity(exact, found[real:]))


def _on_real(deployment: Deployment, found: Parity) -> Check:
    exact = deployment.precision is Precision.FP32
    passed = found.relative_error <= FP32_RELATIVE_ERROR if exact else found.agreement >= LEAST_AGREEMENT
    return Check(
        name=f"{deployment.name}, real inputs", passed=passed, detail=_words(found, "torch"), parity=found
    )


def _on_random(deployment: Deployment, found: Parity) -> Check:
    exact = deployment.precision is Precision.FP32
    # Noise lies nowhere near the data that int8 was calibrated on: there its error is only reported.
    passed = found.relative_error <= FP32_RELATIVE_ERROR if exact else None
    return Check(
        name=f"{deployment.name}, random inputs", passed=passed, detail=_words(found, "fp32"), parity=found
    )


def _words(found: Parity, reference: str) -> str:
    return (
        f"{found.changed_labels} of {found.samples} labels differ from {reference}'s, "
        f"largest error {found.relative_error:.1e} of the output scale"
    )


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
