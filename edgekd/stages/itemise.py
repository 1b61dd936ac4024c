"""Say where the time of a request to a bundle goes, on images that came with it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.devices import Device
from edgekd.errors import IntegrityError, ModelError
from edgekd.stages.bundle import SAMPLES, read_manifest
from edgekd.stages.verify import UNREADABLE, read_recipe, read_samples
from edgekd.values.artifact import Artifact
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine
from edgekd.values.preprocess import Preprocess

log = logging.getLogger(__name__)

_IMAGES = 8  # different ones
_MEND = "take the bundle from its source again, or make it again with `edgekd run`"


def itemise(folder: Path, engine: Engine, device: Device, scratch: Path) -> Ledger:
    """Time requests to a bundle in parts: pre-processing, copy in, compute, copy out, post-processing.

    Args:
        folder: the bundle.
        engine: one of its deployments.
        device: where.
        scratch: for the images.

    Raises:
        IntegrityError: a file of the bundle is not what its manifest says, or its sample images cannot be read.
        BuildError: the engine cannot be opened or dies while it runs.
        ModelError: the model does not take what the bundle's pre-processing makes, or takes no images.

    """
    check_digests(folder)
    recipe = read_recipe(folder)
    if not isinstance(recipe, Preprocess):
        raise ModelError(f"{folder} takes no images, and only requests about those are timed in parts")
    scratch.mkdir(parents=True, exist_ok=True)
    np.save(scratch / "images.npy", _images(folder, recipe)[:_IMAGES])
    log.info("timing requests to %s in parts", engine.name)
    return device.ledger(engine, Artifact.of(scratch / "images.npy"), recipe)


def check_digests(folder: Path) -> None:
    """Hold every file of a bundle against its manifest.

    Raises:
        IntegrityError: one is missing, is a link, or is another file than was bundled.

    """
    try:
        for name, sha256 in read_manifest(folder).files.items():
            runner.read_verified(folder, name, sha256)
    except runner.Refusal as refusal:
        raise IntegrityError(str(refusal), mend=_MEND) from None


def _images(folder: Path, recipe: Preprocess) -> NDArray[np.uint8]:
    """Read the bundle's samples, (n, H, W, C), or make noise of the right size where it has none."""
    path = folder / SAMPLES
    if SAMPLES not in read_manifest(folder).files:
        shape = (_IMAGES, recipe.height, recipe.width, recipe.channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    try:
        images, _ = read_samples(path)
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:  # noqa: PLR2004 - (n, H, W, C)
            raise ValueError(f"its images are {images.dtype} {images.shape}")
    except UNREADABLE as error:
        raise IntegrityError(f"{path} cannot be used", cause=str(error), mend=_MEND) from None
    return images
