"""An int8 file of a student that was distilled on as int8: for where rounding after training costs accuracy."""

from __future__ import annotations

import logging

from edgekd.pipeline.labelling import labels
from edgekd.pipeline.workbench import Workbench
from edgekd.stages.distill_quantized import distill_quantized, export_quantized
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.conditions import Hardware
from edgekd.values.model import Model
from edgekd.values.quantization import Scheme
from edgekd.values.student import StudentSpec

log = logging.getLogger(__name__)

_EVERYWHERE = ("onnxruntime", "rehearsal")
_SYMMETRIC = ("tensorrt", "tensorrt-dla", "tensorrt-graph", "trtexec")


def distilled_int8(bench: Workbench, spec: StudentSpec, checkpoint: Checkpoint, runtime: str) -> Model:
    """Distill a trained student for `[distillation] quantized_epochs` as `runtime` will compute it; write its file.

    Raises:
        ModelError: the student cannot be quantised.
        DataError: the training samples cannot calibrate it.
        TrainingError: the training diverged.
        UsageError: the task's students are called step by step.

    """
    recipe, scheme = bench.job.distillation, scheme_for(runtime, bench.probe.conditions.hardware)
    epochs = recipe.quantized_epochs
    log.info("distilling %s for %d epochs as int8 of %s", spec, epochs, runtime)
    quantized = bench.store.run(
        distill_quantized, spec, bench.task, checkpoint, labels(bench, epochs), scheme, recipe.batch, epochs,
        bench.seed,
    )  # fmt: skip
    return bench.store.run(export_quantized, spec, bench.space.channels, bench.space.classes, quantized)


def scheme_for(runtime: str, hardware: Hardware) -> Scheme:
    """Return how a runtime's int8 kernels round.

    ONNX Runtime fuses an operator whose inputs and output all have Q/DQ, and whose bias is int32. OpenVINO and
    TensorRT want them before what weights multiply, and on shortcuts; TensorRT without zero points. Without VNNI, x86
    adds products of u8 and s8 in pairs in 16 bits, which saturate: weights get 7 bits there.
    """
    if runtime in _SYMMETRIC:
        return Scheme(symmetric=True, everywhere=False)
    exact = hardware.machine != "x86_64" or any("vnni" in feature for feature in hardware.features)
    return Scheme(weight_bits=8 if exact else 7, everywhere=runtime in _EVERYWHERE)
