"""Look at a float model and its inputs before quantising: what there is to quantise, and whether calibration covers it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgekd.errors import ModelError
from edgekd.quantizers.calibration import Calibration
from edgekd.quantizers.divergence import divergence
from edgekd.quantizers.float_onnx import input_shapes, is_quantized
from edgekd.quantizers.onnxruntime_static import KINDS, written
from edgekd.quantizers.preparing import prepared, segments
from edgekd.quantizers.ranges import ranges_of
from edgekd.values.artifact import Artifact
from edgekd.values.model import Model
from edgekd.values.order import RankOrder, RankReply, SurveyOrder, SurveyReply
from edgekd.values.variant import Ranges

_FAR = 0.25  # of a tensor's calibrated range, beyond its end: a few rows more often reach a tenth further

Rows = list[dict[str, NDArray[Any]]]


def survey(order: SurveyOrder) -> SurveyReply:
    """Prepare a float .onnx and hold inputs that are kept aside against the ranges of the calibration inputs.

    Raises:
        ModelError: it is malformed, quantised already, or has nothing to quantise.
        DataError: the calibration inputs cannot serve.

    """
    model = prepared(order.model.verified())
    if not any(node.op_type in KINDS for node in model.graph.node):
        raise ModelError(f"{order.model.path.name} has nothing to quantise", mend="keep it in fp32")
    inputs = input_shapes(model)
    calibrated = ranges_of(model, Calibration(order.calibration, inputs), Ranges.MINMAX)
    beyond = {}
    if order.held_out:
        seen = ranges_of(model, Calibration(order.held_out, inputs), Ranges.MINMAX)
        beyond = _beyond(calibrated, seen)
    order.folder.mkdir(parents=True, exist_ok=True)
    path = order.folder / "prepared.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return SurveyReply(model=Model(file=Artifact.of(path)), segments=segments(model), beyond=beyond)


def rank(order: RankOrder) -> RankReply:
    """Quantise segments one at a time, by ONNX Runtime's Q/DQ, and compare outputs with the float model's.

    Every runtime computes what the file says up to rounding, so the order of layers holds for all of them.

    Raises:
        ModelError: it is malformed, or quantised already.
        DataError: the inputs cannot serve.

    """
    model = prepared(order.model.verified())
    inputs = input_shapes(model)
    ranges = ranges_of(model, Calibration(order.calibration, inputs), order.how.ranges)
    rows = _spread(list(Calibration(order.rows, inputs)), order.most_rows)
    expected = _outputs(model, rows)
    found = []
    for segment in order.segments:
        alone = written(model, ranges, order.how, only=segment.nodes)
        same = not is_quantized(alone)
        found.append(0.0 if same else divergence(expected, _outputs(alone, rows)))
    return RankReply(divergences=tuple(min(one, 1e30) for one in found))


def _beyond(calibrated: Any, seen: Any) -> dict[str, float]:
    found = {}
    for name, given in calibrated.items():
        low, high = (np.asarray(end).item() for end in given.range_value)
        own_low, own_high = (np.asarray(end).item() for end in seen[name].range_value)
        width = max(high - low, 1e-12)
        far = max(own_high - high, low - own_low) / width
        if far > _FAR:
            found[name] = min(far, 1e30)
    return found


def _spread(rows: Rows, most: int) -> Rows:
    count = min(most, len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def _outputs(model: onnx.ModelProto, rows: Rows) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_outputs()]
    answers = [session.run(names, row) for row in rows]
    return {name: np.stack([answer[at] for answer in answers]) for at, name in enumerate(names)}
