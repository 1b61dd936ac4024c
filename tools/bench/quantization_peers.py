"""Int8 files as the users of other tools make them, from the same float file and calibration rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from tools.bench.quantization_stand import Student

PEER_DROP = 0.001  # what NNCF's accuracy control is allowed on validation samples


def nncf_default(folder: Path, student: Student, parent: Engine) -> Engine | None:
    import nncf
    import openvino as ov

    (name,) = student.rows
    rows = np.load(student.rows[name].path)
    model = ov.Core().read_model(str(student.model.file.path))
    made_model = nncf.quantize(model, nncf.Dataset([{name: row} for row in rows]))
    return _saved(folder, made_model, parent, "nncf")


def nncf_controlled(folder: Path, student: Student, parent: Engine) -> Engine | None:
    import nncf
    import openvino as ov

    (name,) = student.rows
    rows = np.load(student.rows[name].path)
    validation = np.load(student.splits["validation"][name].path)
    labels = student.task.validation.labels

    def score(compiled: Any, items: Any) -> tuple[float, None]:
        answers = np.concatenate([np.asarray(compiled({name: item})[0]) for item in items])
        return student.task.score(answers, labels[: len(answers)]), None

    model = ov.Core().read_model(str(student.model.file.path))
    try:
        made_model = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=nncf.Dataset([{name: row} for row in rows]),
            validation_dataset=nncf.Dataset(list(validation)),
            validation_fn=score,
            max_drop=PEER_DROP,
        )
    except Exception as error:  # noqa: BLE001 - a peer that fails is reported as missing
        print(f"NNCF with accuracy control: {error}", file=sys.stderr)
        return None
    return _saved(folder, made_model, parent, "controlled")


def _saved(folder: Path, model: Any, parent: Engine, word: str) -> Engine:
    import openvino as ov

    path = folder / f"{word}.xml"
    ov.save_model(model, str(path), compress_to_fp16=False)
    weights = Artifact.of(path.with_suffix(".bin"))
    made_model = Model(file=Artifact.of(path), weights=weights, precision=Precision.INT8)
    return replace(parent, model=made_model, precision=Precision.INT8)


def static_default(folder: Path, student: Student, parent: Engine) -> Engine | None:
    """What the library's own documentation has: pre-processing, then `quantize_static` as it comes."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (name,) = student.rows
    rows = iter(np.load(student.rows[name].path))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            row = next(rows, None)
            return None if row is None else {name: row}

    prepared, path = folder / "prepared.onnx", folder / "static.onnx"
    quant_pre_process(str(student.model.file.path), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(path), Reader())
    return replace(
        parent, model=Model(file=Artifact.of(path), precision=Precision.INT8), precision=Precision.INT8
    )


Peer = Callable[[Path, Student, Engine], Engine | None]
PEERS: dict[str, dict[str, Peer]] = {
    "openvino": {"NNCF default": nncf_default, "NNCF accuracy control": nncf_controlled},
    "onnxruntime": {"ONNX Runtime static default": static_default},
}
