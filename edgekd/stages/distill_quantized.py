"""Train a distilled student on as its integer kernels will compute, by what the float teacher says and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import torch

from edgekd.distillation import checkpoints
from edgekd.distillation.evaluation import accuracy
from edgekd.distillation.fitting import knowledge_for
from edgekd.distillation.loop import Course, Lesson, train
from edgekd.distillation.quantized import QuantizedStudent
from edgekd.distillation.quantized.placement import INPUT
from edgekd.errors import ModelError, UsageError
from edgekd.quantizers.recorded_qdq import qdq_from
from edgekd.stages.distill import lesson_from
from edgekd.stages.emit import emit
from edgekd.store import replacing
from edgekd.students import build, family_of, fold
from edgekd.students import inputs as inputs_of
from edgekd.students import outputs as outputs_of
from edgekd.tasks.task import Task
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint, Labels
from edgekd.values.job import DistillationSection, LossSection
from edgekd.values.model import Model, Precision
from edgekd.values.quantization import QuantizedCheckpoint, Scheme
from edgekd.values.student import StudentSpec

log = logging.getLogger(__name__)

VERSION = 1
TOOLS = ("torch", "onnx")

CALIBRATION_SAMPLES = 256
RATE = 1e-3  # of AdamW: the weights are trained already, and only move to where the grids serve them
# What the float teacher is matched by. No label is among it: it would pull back to what the grids cannot hold.
_LOSSES: dict[str, dict[str, float | LossSection]] = {
    "classification": {"kd": 1.0},
    "keywords": {"kd": 1.0},
    "recognition": {"embedding": 1.0},
    "regression": {"mse": 1.0},
    "ranking": {"listnet": 1.0},
    "detection": {"crosskd_classes": 1.0, "ld": 0.25},
    "segmentation": {"pixels": 1.0},
}


def distill_quantized(  # noqa: PLR0917 - a stage takes its inputs in order
    folder: Path,
    spec: StudentSpec,
    task: Task,
    checkpoint: Checkpoint,
    labels: tuple[Labels, ...],
    scheme: Scheme,
    batch: int,
    epochs: int,
    seed: int,
) -> QuantizedCheckpoint:
    """Fold a student, calibrate its grids, and train weights and scales to match the teacher's kept outputs.

    Called again with the same folder it goes on after the last full epoch. Where training does not help on the
    validation samples, the student stays as it was calibrated.

    Args:
        folder: where the state and the weights are kept.
        spec: of the student.
        task: what it learns.
        checkpoint: its float weights.
        labels: what the teacher said; epoch e sees the view that `labels[e % len(labels)]` was made of.
        scheme: what is rounded, and how finely.
        batch: samples a step.
        epochs: of training; 0: calibration alone.
        seed: of the order of the samples.

    Raises:
        ModelError: the student cannot be traced, has nothing to quantise, or holds what is not finite.
        DataError: the training samples cannot calibrate it.
        TrainingError: the training diverged.
        UsageError: the task's students are called step by step.

    """
    if family_of(spec.family).step is not None:
        raise ModelError(
            f"a student of the family {spec.family} cannot be distilled quantised",
            cause="it is called step by step, and its state would have to be rounded at every step",
            mend="quantise it after training",
        )
    float_student = checkpoints.load_module(
        build(spec, channels=task.channels, classes=task.outputs), checkpoint.weights
    )
    student = QuantizedStudent(fold(float_student), scheme)
    samples = task.train.spread(CALIBRATION_SAMPLES).samples
    student.calibrate(torch.from_numpy(task.prepare(samples, spec.resolution)))
    kept = _as_calibrated(folder, student, task, spec.resolution)
    if epochs:
        course = quantized_course(
            task, lambda epoch: lesson_from(labels[epoch % len(labels)], task), spec.resolution, epochs, seed,
            batch=batch,
        )  # fmt: skip
        trained = train(folder, student, course)
        log.info("quantised: accuracy %.4f calibrated, %.4f trained", kept.accuracy, trained.accuracy)
        kept = trained if trained.accuracy >= kept.accuracy else kept
    checkpoints.load_module(student, kept.weights)
    return QuantizedCheckpoint(checkpoint=kept, scheme=scheme, grids=student.grids())


def quantized_course(
    task: Task,
    lesson: Callable[[int], Lesson],
    resolution: int,
    epochs: int,
    seed: int,
    *,
    batch: int,
    learning_rate: float = RATE,
) -> Course:
    """Return what a quantised student learns: to answer as the float teacher does.

    Raises:
        UsageError: the task's students are called step by step.

    """
    if task.kind not in _LOSSES:
        raise UsageError(
            f"nothing is distilled quantised for {task.kind}",
            cause="its students are called step by step",
            mend="quantise after training",
        )
    recipe = DistillationSection(
        losses=_LOSSES[task.kind],
        batch=batch,
        epochs=epochs,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=0.0,
    )
    return Course(
        task=task,
        knowledge=knowledge_for(recipe, task),
        lesson=lesson,
        recipe=recipe,
        resolution=resolution,
        epochs=epochs,
        seed=seed,
    )


def export_quantized(
    folder: Path,
    spec: StudentSpec,
    channels: int,
    outputs: int,
    quantized: QuantizedCheckpoint,
    *,
    packed: bool = False,
) -> Model:
    """Write a quantised student as `model.onnx` with explicit Q/DQ, from its recorded grids.

    With `packed`, weights that fit into 4 bits are INT4: half the size, of opset 21, and no faster where kernels
    multiply 8 bits.

    Raises:
        IntegrityError: the checkpoint's file is not the one that was recorded, or is of another student.
        ModelError: activations have fewer than 8 bits, which no runtime computes in.

    """
    folded = fold(build(spec, channels=channels, classes=outputs))
    student = QuantizedStudent(folded, quantized.scheme)
    checkpoints.load_module(student, quantized.checkpoint.weights)
    folded.load_state_dict(student.traced.state_dict())
    takes = inputs_of(spec, channels)
    (name,) = takes
    model = qdq_from(
        emit(folded, takes, outputs_of(spec, channels)),
        {name if tensor == INPUT else tensor: grid for tensor, grid in quantized.grids.items()},
        integer_bias=quantized.scheme.everywhere,
        own_pairs=quantized.scheme.symmetric,
        packed=packed,
    )
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return Model(file=Artifact.of(path), precision=Precision.INT8)


def _as_calibrated(folder: Path, student: QuantizedStudent, task: Task, resolution: int) -> Checkpoint:
    weights = checkpoints.save_module(folder / "calibrated.safetensors", student)
    score = accuracy(student, task, task.validation, resolution)
    return Checkpoint(
        weights=weights, accuracy=score, epochs=0, seconds=0.0, images_per_second=0.0, losses=()
    )
