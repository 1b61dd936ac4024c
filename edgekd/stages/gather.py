"""Real inputs for any model: from a folder of images, an .npz or an .npy, or random ones where none are given."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.errors import DataError
from edgekd.tasks.folders import SUFFIXES
from edgekd.timing.sampling import varied_inputs
from edgekd.values.artifact import Artifact
from edgekd.values.model import Signature, TensorSpec
from edgekd.values.preprocess import Normalisation, Preprocess

MOST_SAMPLES = 256
_MOST_BYTES = 128 << 20
_RANDOM_SAMPLES = 16
_UNREADABLE = (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)
_FORMS = "a folder of images, an .npz with an array an input, or an .npy"

Array = NDArray[Any]


def gather(
    folder: Path, signature: Signature, data: Path | None, normalisation: Normalisation | None = None
) -> dict[str, Artifact]:
    """Write inputs of a model as .npy files, a row an inference; each row is one whole input tensor.

    Args:
        folder: where the files go.
        signature: its inputs have no dynamic dimension.
        data: what `edgekd --calibrate` takes; None: random inputs.
        normalisation: of images; None: pixels in [0, 1].

    Raises:
        DataError: the data cannot be read, or do not fit the inputs.

    """
    if data is None:
        rows = varied_inputs(signature, seed=0, count=_RANDOM_SAMPLES)
        arrays = {spec.name: np.stack([row[spec.name] for row in rows]) for spec in signature.inputs}
    elif data.is_dir():
        arrays = _from_images(data, signature.inputs, normalisation or Normalisation())
    else:
        arrays = _from_arrays(data, signature.inputs)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for at, (name, array) in enumerate(arrays.items()):
        path = folder / f"input_{at}.npy"  # an input's own name may hold anything
        np.save(path, array)
        kept[name] = Artifact.of(path)
    return kept


def _from_images(
    folder: Path, inputs: Sequence[TensorSpec], normalisation: Normalisation
) -> dict[str, Array]:
    spec = inputs[0]
    channels_last = _channels_last(spec) if len(inputs) == 1 else None
    if channels_last is None:
        takes = " and ".join(f"{one.name} {one.dtype} {_sizes(one.shape)}" for one in inputs)
        mend = "give an .npz with an array for each input"
        raise DataError(f"images do not fit a model that takes {takes}", mend=mend)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = _spread(found, spec)
    if not files:
        raise DataError(f"{folder} holds no images", mend=f"give {_FORMS}")
    recipe = _recipe(spec, normalisation, channels_last=channels_last)
    try:
        tensors = [runner.preprocess(runner.load_image(path, recipe.channels), recipe) for path in files]
    except runner.Refusal as refusal:
        raise DataError(str(refusal), mend="take it out of the folder, or save it again") from None
    images = np.concatenate(tensors)
    if channels_last:
        images = images.transpose(0, 2, 3, 1)
    return {spec.name: _batched(images, spec)}


def _channels_last(spec: TensorSpec) -> bool | None:
    """Say where an image input has its channels; None where it is no image."""
    if spec.dtype != "float32" or len(spec.shape) != 4:  # noqa: PLR2004 - (B, C, H, W)
        return None
    if spec.shape[1] in {1, 3}:
        return False
    return True if spec.shape[3] in {1, 3} else None


def _recipe(spec: TensorSpec, normalisation: Normalisation, *, channels_last: bool) -> Preprocess:
    sizes = [size or 1 for size in spec.shape]
    channels, height, width = (sizes[3], sizes[1], sizes[2]) if channels_last else sizes[1:]
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in {1, channels}:
            raise DataError(
                f"--{name} has {len(values)} values for {channels} channels",
                mend="give one, or one a channel",
            )
    return Preprocess(
        height=height,
        width=width,
        mean=normalisation.mean * (channels // len(normalisation.mean)),
        std=normalisation.std * (channels // len(normalisation.std)),
    )


def _batched(images: Array, spec: TensorSpec) -> Array:
    """Put images (n, ...) into whole input tensors (n // B, B, ...), the last ones repeated where some lack."""
    batch = spec.shape[0] or 1
    filled = np.resize(images, (-(-len(images) // batch) * batch, *images.shape[1:]))
    return filled.reshape(-1, batch, *images.shape[1:])


def _from_arrays(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    held = _read(path, inputs)
    for name in sorted(set(held) ^ {spec.name for spec in inputs}):
        problem = "is no input of the model" if name in held else "has no array in it"
        known = ", ".join(spec.name for spec in inputs)
        raise DataError(f"{path}: {name!r} {problem}", mend=f"give one array for each of: {known}")
    arrays = {spec.name: _fitted(path, held[spec.name], spec) for spec in inputs}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        cause = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DataError(f"the arrays of {path} need the same number of rows, at least one", cause=cause)
    return arrays


def _read(path: Path, inputs: Sequence[TensorSpec]) -> Mapping[str, Array]:
    if path.suffix not in {".npz", ".npy"} or not path.is_file():
        cause = "there is no such file" if not path.exists() else f"it ends in {path.suffix!r}"
        raise DataError(f"{path} cannot serve as inputs", cause=cause, mend=f"give {_FORMS}")
    try:
        if path.suffix == ".npy":
            if len(inputs) != 1:
                mend = "give an .npz with an array for each input"
                raise DataError(f"{path} is one array, and the model has {len(inputs)} inputs", mend=mend)
            return {inputs[0].name: np.load(path, mmap_mode="r", allow_pickle=False)}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        mend = "write it with numpy.savez or numpy.save, numbers only"
        raise DataError(f"{path} cannot be read", cause=str(error)[:200], mend=mend) from error


def _fitted(path: Path, array: Array, spec: TensorSpec) -> Array:
    """Return rows of whole input tensors; samples without a batch dimension get one."""
    shape = tuple(size or 1 for size in spec.shape)
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind != wanted.kind and not (array.dtype.kind in "iu" and wanted.kind in "iu"):
        raise DataError(
            f"{path}: {spec.name!r} is {array.dtype}, and the model takes {spec.dtype}",
            mend="prepare it exactly as the model's inputs are; a folder of images is scaled to [0, 1]",
        )
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        rows = array
    elif array.ndim == len(shape) and shape and array.shape[1:] == shape[1:]:
        rows = _batched(np.asarray(array), spec)
    else:
        raise DataError(
            f"{path}: {spec.name!r} has the shape {_sizes(array.shape)}, and the model takes {_sizes(shape)}",
            mend=f"give an array of shape {_sizes(('n', *shape))}",
        )
    chosen = np.asarray(_spread(rows, spec))
    if wanted.kind in "iu" and chosen.size:
        limits = np.iinfo(wanted)
        if chosen.min() < limits.min or chosen.max() > limits.max:
            raise DataError(f"{path}: {spec.name!r} holds numbers that {spec.dtype} does not")
    return np.ascontiguousarray(chosen, dtype=wanted)


def _spread(found: Any, spec: TensorSpec) -> Any:
    """Take as many as calibration can use and memory should hold, evenly: files are often sorted by class."""
    row_bytes = np.dtype(spec.dtype).itemsize * math.prod(size or 1 for size in spec.shape)
    most = min(MOST_SAMPLES, max(_MOST_BYTES // row_bytes, 8))
    if len(found) <= most:
        return found
    chosen = np.linspace(0, len(found) - 1, most).round().astype(int)
    return found[chosen] if isinstance(found, np.ndarray) else [found[at] for at in chosen]


def _sizes(shape: Sequence[object]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "a scalar"
