"""Turn torch modules into ONNX files: students by our own emitter, anything else by torch.onnx."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgekd.errors import ModelError
from edgekd.stages.emit import emit
from edgekd.store import replacing
from edgekd.students import build, family_of, shipped
from edgekd.students import inputs as inputs_of
from edgekd.students import outputs as outputs_of
from edgekd.values.artifact import Artifact
from edgekd.values.checkpoint import Checkpoint
from edgekd.values.model import Model
from edgekd.values.student import StudentSpec

VERSION = 1
TOOLS = ("torch", "onnx", "onnxscript")

_LARGEST_BYTES = 2_000_000_000  # of a model in one protobuf
_SMALL_BYTES = 4096  # of a weight; shapes and axes, which shapes are inferred from, are smaller

log = logging.getLogger(__name__)


def export(  # noqa: PLR0917 - all of them name the result, and the store takes them in order
    folder: Path,
    spec: StudentSpec,
    channels: int,
    classes: int,
    checkpoint: Checkpoint | None,
    seed: int = 0,
) -> Model:
    """Write a student as `model.onnx`, with the inputs and outputs of its family: one inference, or one step.

    An image family takes `images` (1, C, r, r) and gives `logits` (1, classes), float32. Branches and batch norms
    are folded, and nodes are named after their modules. Without a checkpoint the weights are those drawn from the
    seed. What our own emitter does not know is left to torch.onnx.

    Raises:
        ModelError: the checkpoint is of another student, holds a value that is not finite, or cannot be exported.
        IntegrityError: the checkpoint's file is not the one that was recorded.

    """
    student = build(spec, channels=channels, classes=classes, seed=seed)
    if checkpoint is not None:
        _load(student, checkpoint.weights.verified())
    module, takes, gives = shipped(student, spec), inputs_of(spec, channels), outputs_of(spec, channels)
    try:
        return save(folder, emit(module, takes, gives))
    except ModelError as error:
        log.info("%s goes through torch.onnx: %s", spec.family, error)
    integers = family_of(spec.family).integers
    return export_module(folder, module, takes, outputs=gives, integers=integers)


def export_module(
    folder: Path,
    module: nn.Module,
    inputs: Mapping[str, tuple[int, ...]],
    *,
    dynamic_batch: bool = False,
    opset: int = 18,
    outputs: tuple[str, ...] = (),
    integers: tuple[str, ...] = (),
) -> Model:
    """Write any module as `model.onnx`, by torch.onnx.

    Args:
        folder: where `model.onnx` goes.
        module: left as it is; exported in evaluation mode.
        inputs: shapes by name, batch first; float32 unless `integers` names them. Where all the names are parameters of `forward` they
            are passed by name, otherwise in order.
        dynamic_batch: leave the first dimension of every input open.
        opset: of the ONNX operators.
        outputs: names for the outputs; none: the exporter's own.
        integers: inputs that are int64, and 0 while the module is traced.

    Raises:
        ModelError: the module cannot be traced, or the file would exceed 2 GB.

    """
    _refuse_large(module)
    with _evaluating(module), _quiet():
        try:
            examples = _examples(module, inputs, integers, dynamic_batch=dynamic_batch)
            model = _exported(module, examples, dynamic_batch=dynamic_batch, opset=opset, outputs=outputs)
        except Exception as error:  # a user's forward may raise anything
            raise ModelError(
                f"{type(module).__name__} cannot be exported",
                cause=_root_cause(error),
                mend="make forward traceable: tensors of the given shapes in, tensors out, no branches on "
                "values of tensors; check the names and shapes of the inputs",
            ) from error
    return save(folder, model)


def _load(student: nn.Module, path: Path) -> None:
    mend = "give the checkpoint that was trained for this spec"
    try:
        state = safetensors.torch.load_file(path)
        student.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError) as error:
        what = f"{path} does not hold this student's weights"
        raise ModelError(what, cause=str(error)[:500], mend=mend) from error
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(f"{path} holds values that are not finite", cause=f"in {bad[0]}", mend=mend)


def save(folder: Path, model: onnx.ModelProto) -> Model:
    """Write the model as `model.onnx`, after ONNX's own check of its structure, types and shapes.

    Raises:
        ModelError: it is malformed.

    """
    _check(model)
    content = model.SerializeToString(deterministic=True)
    path = folder / "model.onnx"
    with replacing(path) as partial:
        partial.write_bytes(content)
    return Model(file=Artifact(path=path, sha256=hashlib.sha256(content).hexdigest()))


def _check(model: onnx.ModelProto) -> None:
    """Check the graph; large weights stand in it as inputs of their type and shape, which spares copying them twice."""
    outline = onnx.ModelProto()
    graph = outline.graph
    for one in ("ir_version", "producer_name"):
        setattr(outline, one, getattr(model, one))
    outline.opset_import.extend(model.opset_import)
    outline.functions.extend(model.functions)
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES and not tensor.external_data:
            given = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(given)
        else:
            graph.initializer.append(tensor)
    _check_weights(model)
    try:
        onnx.checker.check_model(outline, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError("the exported model is malformed", cause=str(error)[:500]) from error


def _check_weights(model: onnx.ModelProto) -> None:
    """Refuse a weight whose bytes are not as many as its shape and type say."""
    for tensor in model.graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * math.prod(tensor.dims)
        if len(tensor.raw_data) > _SMALL_BYTES and len(tensor.raw_data) != size:
            cause = f"{tensor.name!r} holds {len(tensor.raw_data)} bytes, not {size}"
            raise ModelError("the exported model is malformed", cause=cause)


def _exported(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    *,
    dynamic_batch: bool,
    opset: int,
    outputs: tuple[str, ...],
) -> onnx.ModelProto:
    by_name = examples.keys() <= inspect.signature(module.forward).parameters.keys()
    batch = {0: torch.export.Dim("batch")} if dynamic_batch else None
    shapes: Any = dict.fromkeys(examples, batch) if by_name else (batch,) * len(examples)
    program = torch.onnx.export(
        module,
        args=() if by_name else tuple(examples.values()),
        kwargs=dict(examples) if by_name else None,
        input_names=None if by_name else list(examples),
        output_names=list(outputs) or None,
        dynamic_shapes=shapes if dynamic_batch else None,
        opset_version=opset,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101 - dynamo=True returns a program
    model: onnx.ModelProto = program.model_proto
    return _without_traces(model)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out the paths and lines of the user's source, which torch notes at every node."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            kept = [prop for prop in node.metadata_props if prop.key != "pkg.torch.onnx.stack_trace"]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    return model


def _examples(
    module: nn.Module,
    inputs: Mapping[str, tuple[int, ...]],
    integers: tuple[str, ...],
    *,
    dynamic_batch: bool,
) -> dict[str, Tensor]:
    """Draw inputs on the module's device; a batch that stays open is 2, because 1 would be taken as fixed."""
    parameter = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (2, *shape[1:]) if dynamic_batch else shape for name, shape in inputs.items()}
    drawn = {
        name: torch.zeros(shape, dtype=torch.int64)
        if name in integers
        else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return {name: tensor.to(parameter.device) for name, tensor in drawn.items()}


def _refuse_large(module: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _LARGEST_BYTES:
        raise ModelError(
            f"{type(module).__name__} cannot be exported to one file",
            cause=f"its weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB",
            mend="export a smaller model, or a part of this one",
        )


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log what the exporter prints and warns of, and leave out what it logs of itself."""
    printed = io.StringIO()
    loggers = {
        logging.getLogger("torch.onnx"): logging.ERROR,
        logging.getLogger("torch.export"): logging.CRITICAL,
    }
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)  # torch's handler writes to stderr past redirect_stderr
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
            for line in (*printed.getvalue().splitlines(), *(str(one.message) for one in warned)):
                log.debug("torch.onnx: %s", line)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:500]
