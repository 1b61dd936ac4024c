"""Put the accepted student in a folder that runs by itself and says what it was measured to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.errors import ConfigError, IntegrityError, UsageError
from edgekd.stages.card import model_card
from edgekd.store.files import disk_full_is_an_error, replacing
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import (
    SCHEMA_VERSION,
    Bundle,
    BundleContent,
    Deployment,
    Manifest,
    Shipped,
    summarise,
)
from edgekd.values.codec import decode, plain
from edgekd.values.model import Model

__all__ = ["SAMPLES", "STEP", "bundle", "read_manifest", "save_samples", "summarise", "unlisted"]

log = logging.getLogger(__name__)

SAMPLES = "samples.npz"
STEP = "step."  # before the names of arrays that are inputs and outputs of single steps
_CACHES = "__pycache__"


def bundle(folder: Path, content: BundleContent) -> Bundle:
    """Write a bundle, whole or not at all; an older bundle at `folder` is replaced.

    Raises:
        UsageError: `folder` holds something that is not a bundle of ours, which is left as it is.
        IntegrityError: a model file is no longer what was measured.
        ResourcesExhausted: the disk is full; an older bundle is still whole.

    """
    folder = folder.absolute()
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    with disk_full_is_an_error(folder):
        _recover(folder, fresh, old)
        _refuse_foreign(folder)
        try:
            manifest = _filled(fresh, content)
            _swap(folder, fresh, old)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    log.info("bundle of %d files in %s", len(manifest.files) + 1, folder)
    return Bundle(folder=folder, manifest=manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest strictly; the files themselves are not looked at.

    Raises:
        IntegrityError: it is missing, malformed, of another schema, or names a path outside the bundle.

    """
    mend = "take the bundle from where it was made, or make it again with `edgekd run`"
    try:
        return decode(Manifest, runner.read_manifest(folder), runner.MANIFEST)
    except runner.Refusal as refusal:
        raise IntegrityError(str(refusal), mend=mend) from None
    except ConfigError as error:
        cause = f"{error.what}: {error.cause}".rstrip(": ")
        raise IntegrityError(f"{folder / runner.MANIFEST} is malformed", cause=cause, mend=mend) from None


def save_samples(
    path: Path,
    samples: NDArray[Any],
    labels: NDArray[Any],
    outputs: NDArray[np.float32],
    *,
    kind: str = "classification",
    steps: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> Artifact:
    """Keep a few real test inputs with what the reference says of them, for `edgekd verify`.

    Args:
        path: the .npz to write.
        samples: (n, ...), before pre-processing; images (n, H, W, C).
        labels: (n, ...), the truth.
        outputs: (n, ...), of the torch module in fp32; logits (n, classes).
        kind: of the task; classification calls the arrays images and logits.
        steps: of a stepwise student, by the names of what goes in and out: (m, *whole shape), a row a step.

    """
    first, last = ("images", "logits") if kind == "classification" else ("samples", "outputs")
    arrays = {first: samples, "labels": labels, last: outputs.astype(np.float32)}
    arrays |= {STEP + name: array for name, array in steps.items()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # numpy's stub takes them for its flag
    return Artifact.of(path)


def unlisted(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Name everything in a bundle's folder that its manifest does not list, links included."""
    known = {*manifest.files, runner.MANIFEST}
    return tuple(sorted(name for name in _names(folder) if name not in known))


def _names(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *links):
            yield (here / name).relative_to(folder).as_posix()


def _recover(folder: Path, fresh: Path, old: Path) -> None:
    """Undo what a run that was killed half-way left."""
    if old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    mend = "move it away, or give another --out"
    try:
        extra = unlisted(folder, read_manifest(folder))
    except IntegrityError as error:
        what = f"{folder} is not a bundle that edgekd made"
        raise UsageError(f"{what}, so it is not overwritten", cause=error.what, mend=mend) from error
    if mine := [name for name in extra if _CACHES not in name.split("/")]:
        raise UsageError(f"{folder} holds {mine[0]!r}, which would be lost with the old bundle", mend=mend)


def _swap(folder: Path, fresh: Path, old: Path) -> None:
    if folder.exists():
        folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _filled(fresh: Path, content: BundleContent) -> Manifest:
    fresh.mkdir(parents=True)
    placed = _place_models(fresh, content)
    (fresh / "run.py").write_text(runner.script(content.task), encoding="utf-8")
    (fresh / "preprocess.json").write_text(_json(content.preprocess), encoding="utf-8")
    if content.samples is not None:
        shutil.copyfile(content.samples.verified(), fresh / SAMPLES)
    deployments = tuple(_deployment(shipped, placed, content) for shipped in content.shipped)
    manifest = _manifest(content, deployments, {})
    (fresh / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    manifest = _manifest(
        content, deployments, {name: sha256_of(fresh / name) for name in sorted(_names(fresh))}
    )
    (fresh / runner.MANIFEST).write_text(_json(manifest), encoding="utf-8")
    for name in _names(fresh):
        _sync(fresh / name)
    _sync(fresh)
    return manifest


def _place_models(fresh: Path, content: BundleContent) -> dict[str, tuple[str, ...]]:
    """Copy every distinct model once; return its names in the bundle by the digest of its file."""
    placed = {content.source.file.sha256: _copied(fresh, content.source, "model.onnx")}
    for shipped in content.shipped:
        model = shipped.engine.model
        if model.file.sha256 not in placed:
            placed[model.file.sha256] = _copied(fresh, model, _name_of(fresh, shipped))
    return placed


def _name_of(fresh: Path, shipped: Shipped) -> str:
    engine = shipped.engine
    suffix, precision = engine.model.file.path.suffix, engine.precision.value
    plain_name = f"model{suffix}" if suffix == ".xml" else f"model.{precision}{suffix}"
    return f"model.{engine.runtime}.{precision}{suffix}" if (fresh / plain_name).exists() else plain_name


def _copied(fresh: Path, model: Model, name: str) -> tuple[str, ...]:
    shutil.copyfile(model.file.verified(), fresh / name)
    if model.weights is None:
        return (name,)
    weights = f"{name.removesuffix('.xml')}.bin"  # OpenVINO finds it by this name
    shutil.copyfile(model.weights.verified(), fresh / weights)
    return name, weights


def _deployment(shipped: Shipped, placed: dict[str, tuple[str, ...]], content: BundleContent) -> Deployment:
    confidence = content.limits.confidence
    return Deployment(
        runtime=shipped.engine.runtime,
        precision=shipped.engine.precision,
        threads=shipped.engine.threads,
        files=placed[shipped.engine.model.file.sha256],
        latency=summarise(shipped.latency, confidence),
        accuracy=shipped.accuracy,
        parity=shipped.parity,
        modes={name: summarise(latency, confidence) for name, latency in shipped.modes.items()},
        energy=shipped.energy,
        builds=shipped.builds,
    )


def _manifest(content: BundleContent, deployments: tuple[Deployment, ...], files: dict[str, str]) -> Manifest:
    teacher, confidence = content.teacher_latency, content.limits.confidence
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=content.name,
        task=content.task,
        classes=content.classes,
        spec=content.spec,
        files=files,
        deployments=deployments,
        limits_ms=content.limits.latency_ms,
        accuracy=content.accuracy,
        teacher_sha256=content.teacher_sha256,
        data_sha256=content.data_sha256,
        job_sha256=content.job_sha256,
        calibration_sha256=content.calibration_sha256,
        tools=content.tools,
        seed=content.seed,
        command=content.command,
        teacher_latency=summarise(teacher, confidence) if teacher else None,
        decoding=content.decoding,
    )


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
