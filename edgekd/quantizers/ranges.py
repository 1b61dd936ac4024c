"""Ranges of activations on calibration inputs, found once for each model, set of inputs and way of finding them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from edgekd.quantizers.calibration import Calibration
from edgekd.values.variant import Ranges

METHODS = {
    Ranges.MINMAX: CalibrationMethod.MinMax,
    Ranges.PERCENTILE: CalibrationMethod.Percentile,
    Ranges.ENTROPY: CalibrationMethod.Entropy,
}
_OPTIONS: dict[Ranges, dict[str, Any]] = {
    Ranges.MINMAX: {},
    Ranges.PERCENTILE: {"symmetric": False, "percentile": 99.99},
    Ranges.ENTROPY: {},
}
_ROWS = 8  # whose activations are held at a time
_KEPT = 12
_kept: OrderedDict[tuple[str, str, Ranges], Any] = OrderedDict()  # of this process: a repair asks many times


def ranges_of(model: onnx.ModelProto, calibration: Calibration, ranges: Ranges) -> Any:
    """Return ONNX Runtime's `TensorsData` of every float tensor of a prepared model."""
    key = (
        hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        calibration.fingerprint,
        ranges,
    )
    if key not in _kept:
        _kept[key] = _found(model, calibration, ranges)
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _found(model: onnx.ModelProto, calibration: Calibration, ranges: Ranges) -> Any:
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(model, str(path))
        calibrator = create_calibrator(
            path,
            [],
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=METHODS[ranges],
            extra_options=_OPTIONS[ranges],
        )
        rows = iter(calibration)
        for first in rows:
            calibrator.collect_data(_Some(chain([first], islice(rows, _ROWS - 1))))
        return calibrator.compute_data()


class _Some(CalibrationDataReader):  # type: ignore[misc]
    """Hands over a few rows: a histogram takes all that it is given at once."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def get_next(self) -> Any:
        return next(self._rows, None)
