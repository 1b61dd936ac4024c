"""What there is to quantise in a float model, whether its calibration can serve, and which segments move its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.errors import BuildError, WorkerDied
from edgekd.stages.quantize import Quantizers
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.order import RankOrder, RankReply, SurveyOrder, SurveyReply
from edgekd.values.variant import Quantization, Segment

VERSION = 1
LEAST_ROWS = 8  # fewer tell no range
ENOUGH_ROWS = 64  # fewer may miss what inputs are like
_SHOWN = 3


def survey(
    folder: Path,
    model: Model,
    calibration: dict[str, Artifact],
    held_out: dict[str, Artifact],
    quantizers: Quantizers,
) -> SurveyReply:
    """Prepare a float .onnx for its quantisers, and hold inputs kept aside against the calibrated ranges.

    Args:
        folder: for the prepared graph.
        model: a float .onnx.
        calibration: a .npy for each input, a row an inference.
        held_out: likewise; empty: nothing is held against the ranges.
        quantizers: the child that does it.

    Raises:
        ModelError: it is malformed, quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.
        BuildError: the child died of it.

    """
    order = SurveyOrder(model=model.file, calibration=calibration, held_out=held_out, folder=folder.resolve())
    try:
        return quantizers.survey(order)
    except WorkerDied as error:
        cause = f"{error.what}: {error.cause}"
        raise BuildError(f"{model.file.path.name} kills its quantiser", cause=cause) from error


def rank(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    model: Model,
    calibration: dict[str, Artifact],
    rows: dict[str, Artifact],
    how: Quantization,
    segments: tuple[Segment, ...],
    quantizers: Quantizers,
) -> RankReply:
    """Say how far each segment of a prepared .onnx, quantised alone, moves the outputs on some rows.

    By the divergence, and not by the metric: most segments change no label of a few hundred, and all change the
    logits. What the metric says of the repaired file is asked afterwards.

    Raises:
        ModelError: the model is malformed or quantised already.
        DataError: the inputs cannot serve.
        BuildError: the child died of it.

    """
    del folder  # numbers are kept whole
    order = RankOrder(model=model.file, calibration=calibration, rows=rows, how=how, segments=segments)
    try:
        return quantizers.rank(order)
    except WorkerDied as error:
        cause = f"{error.what}: {error.cause}"
        raise BuildError("ranking its layers died", cause=cause) from error


def divided(folder: Path, rows: dict[str, Artifact]) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """Keep every fourth row aside; return what is calibrated on and what is held out."""
    parts: tuple[dict[str, Artifact], dict[str, Artifact]] = ({}, {})
    folder.mkdir(parents=True, exist_ok=True)
    for at, (name, file) in enumerate(rows.items()):
        array = np.load(file.verified(), mmap_mode="r", allow_pickle=False)
        aside = np.arange(len(array)) % 4 == 3  # noqa: PLR2004 - the fourth
        for part, chosen, word in zip(parts, (~aside, aside), ("calibration", "held_out")):
            path = folder / f"{word}_{at}.npy"
            np.save(path, array[chosen])
            part[name] = Artifact.of(path)
    return parts


def shortcomings(rows: int, beyond: dict[str, float]) -> tuple[str, ...]:
    """Say in words why calibration inputs may not stand for others; empty where nothing speaks against them."""
    found = []
    if rows < ENOUGH_ROWS:
        found.append(
            f"{rows} calibration inputs may miss what real ones are like: give {ENOUGH_ROWS} or more"
        )
    if beyond:
        worst = sorted(beyond, key=lambda name: -beyond[name])
        told = ", ".join(f"{name} by {beyond[name]:.0%}" for name in worst[:_SHOWN])
        tensors = "a tensor" if len(beyond) == 1 else f"{len(beyond)} tensors"
        found.append(
            f"inputs that were kept aside leave the calibrated ranges of {tensors} ({told} of the range):"
            " the calibration inputs do not stand for them"
        )
    return tuple(found)
