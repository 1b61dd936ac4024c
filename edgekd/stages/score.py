"""Which labelled images a compiled file gets right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.devices import Device
from edgekd.errors import ModelError
from edgekd.stages.subject import Subject
from edgekd.tasks.datasets import arrange, check, open_source
from edgekd.values.artifact import Artifact
from edgekd.values.preprocess import Normalisation, Preprocess

_CHUNK = 512
_IMAGE_AXES = 4


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images and what they show."""

    images: NDArray[np.uint8]  # (N, side, side, C)
    labels: NDArray[np.int64]  # (N,)


def labelled(data: str, cache: Path, *, test: bool = True) -> Labelled:
    """Read labelled images: those of the split called test where the data set brings one, else all.

    Without `test`, those that are not of that split: what chooses must not see what judges.

    Raises:
        DataError: nothing is there, or it cannot be read.

    """
    source = open_source(data, Path())
    check(source)
    every = np.arange(len(source.labels), dtype=np.int64)
    order = every if source.test is None else every[source.test if test else ~source.test]
    return Labelled(images=np.asarray(arrange(source, order, cache, None)), labels=source.labels[order])


def score(
    folder: Path, device: Device, one: Subject, data: Labelled, normalisation: Normalisation | None
) -> NDArray[np.bool_]:
    """Return for each image whether the compiled file gets it right; (N,).

    Raises:
        ModelError: the model takes no images, or answers no class.

    """
    logits = answers(folder, device, one, data, normalisation)
    found: NDArray[np.bool_] = (logits.argmax(axis=1) == data.labels) & np.isfinite(logits).all(axis=1)
    return found


def answers(
    folder: Path, device: Device, one: Subject, data: Labelled, normalisation: Normalisation | None
) -> NDArray[np.float32]:
    """Return the compiled file's first output for each image: (N, classes).

    Raises:
        ModelError: the model takes no images.

    """
    recipe = one.recipe or _recipe(one, data, normalisation or Normalisation())
    if not isinstance(recipe, Preprocess):
        raise ModelError(
            f"--data cannot be given to {one.path.name}",
            cause=f"its input is made by a {recipe.kind} recipe",
            mend="leave --data out",
        )
    name = one.signature.inputs[0].name
    found = []
    for at in range(0, len(data.labels), _CHUNK):
        inputs = _prepared(folder / f"{at}-in.npy", data.images[at : at + _CHUNK], recipe)
        (output,) = list(device.infer(one.engine, {name: inputs}, folder / str(at)).values())[:1]
        rows = np.load(output.verified(), allow_pickle=False)
        found.append(rows.reshape(len(data.labels[at : at + _CHUNK]), -1))
    return np.concatenate(found)


def _prepared(path: Path, images: NDArray[np.uint8], recipe: Preprocess) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, runner.preprocess(images, recipe)[:, None])
    return Artifact.of(path)


def _recipe(one: Subject, data: Labelled, normalisation: Normalisation) -> Preprocess:
    inputs = one.signature.inputs
    shape = inputs[0].shape
    channels = data.images.shape[-1]
    if len(inputs) != 1 or len(shape) != _IMAGE_AXES or shape[:2] != (1, channels):
        takes = " and ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in inputs)
        raise ModelError(
            f"--data cannot be given to {one.path.name}",
            cause=f"it takes {takes}; these are images of {channels} channels",
            mend="give a model of one image, channels first, or leave --data out",
        )
    mean, std = (
        values * channels if len(values) == 1 else values
        for values in (normalisation.mean, normalisation.std)
    )
    return Preprocess(height=int(shape[2] or 1), width=int(shape[3] or 1), mean=mean, std=std)
