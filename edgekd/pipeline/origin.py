"""What an export starts from: a float .onnx, inputs, and what the source itself makes of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree

from edgekd import runner
from edgekd.devices import Device
from edgekd.distillation.teachers import fingerprint_of, module_from
from edgekd.errors import DataError, ModelError, UsageError
from edgekd.pipeline.single import check_shapes, inspected, outputs_of
from edgekd.stages.bundle import SAMPLES, read_manifest
from edgekd.stages.convert import convert
from edgekd.stages.export import export_module
from edgekd.stages.gather import gather
from edgekd.stages.match import FP32_RELATIVE_ERROR, match
from edgekd.stages.verify import read_recipe, read_samples
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec
from edgekd.values.preprocess import Normalisation, Preprocess

log = logging.getLogger(__name__)

OPSET = 18  # torch.onnx's own; converted down where a target asks for 17
_FORMS = "give FILE.py:FUNCTION, timm:NAME, an .onnx file or the folder of a bundle"

Outputs = Mapping[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be exported, and to what."""

    source: str | Path | nn.Module
    weights: Path | None = None
    inputs: Shapes = field(default_factory=dict)
    to: tuple[str, ...] = ("onnx",)
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    calibrate: Path | None = None
    normalisation: Normalisation | None = None
    dynamic_batch: bool = False
    opset: int | None = None


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where models are run, and where files may lie while they are worked on."""

    device: Device
    threads: int
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Inputs, a row an inference, and what the source makes of them."""

    shapes: Shapes  # of a row's tensors
    rows: dict[str, Artifact]
    expected: Outputs


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source as a float .onnx whose graph is simplified, and what it has to compute."""

    name: str
    sha256: str
    model: Model
    signature: Signature  # with its dynamic dimensions
    opset: int
    real: bool  # whether the inputs are
    answers: Answers
    batched: Answers | None = None  # two rows at once, where the batch is to stay open
    problems: tuple[str, ...] = ()


def origin_of(request: Request, place: Workplace) -> Origin:
    """Load the source, make its .onnx, and ask it what it computes.

    Raises:
        UsageError: the source is not there, or the request does not fit it.
        ModelError: it is malformed, hostile, int8 already, or cannot be exported.
        IntegrityError: the weights are no plain state dict, or a bundle's file changed.
        DataError: the calibration data cannot serve.

    """
    source = request.source
    if isinstance(source, nn.Module):
        return _of_module(request, source, type(source).__name__, place)
    text, path = str(source), Path(source)
    if path.is_dir():
        return _of_bundle(request, path, place)
    if path.suffix == ".onnx":
        return _of_onnx(request, path, place)
    name, colon, _ = text.rpartition(":")
    if not colon or not (name.endswith(".py") or name == "timm"):
        raise UsageError(f"{text} cannot be exported", cause="it is no known kind of source", mend=_FORMS)
    if name.endswith(".py") and not Path(name).is_file():
        raise UsageError(f"there is no {name}", mend=_FORMS)
    if request.weights is not None and not request.weights.is_file():
        raise UsageError(
            f"the weights {request.weights} do not exist", mend="give a .safetensors or a state dict"
        )
    log.info("loading %s", text)
    module = module_from(text, request.weights, beside=Path())
    return _of_module(request, module, text, place)


def _of_module(request: Request, module: nn.Module, name: str, place: Workplace) -> Origin:
    if not request.inputs:
        raise UsageError(f"the inputs of {name} are not known", mend="give --input images=1x3x224x224")
    log.info("exporting %s", name)
    opset = request.opset or OPSET
    model = export_module(
        place.scratch / "module", module, request.inputs, dynamic_batch=request.dynamic_batch, opset=opset
    )
    signature = place.device.inspect(model.file)
    specs = tuple(TensorSpec(name=one, dtype="float32", shape=shape) for one, shape in request.inputs.items())
    rows = gather(
        place.scratch / "inputs", replace(signature, inputs=specs), request.calibrate, request.normalisation
    )
    names = [spec.name for spec in signature.outputs]

    def ask(asked: dict[str, Artifact], _: Shapes) -> Outputs:
        return _answers_of(module, asked, names)

    return Origin(
        name=name,
        sha256=fingerprint_of(module),
        model=model,
        signature=signature,
        opset=opset,
        real=request.calibrate is not None,
        answers=Answers(shapes=request.inputs, rows=rows, expected=ask(rows, request.inputs)),
        batched=_doubled(request.inputs, rows, ask, place.scratch / "batched")
        if request.dynamic_batch
        else None,
    )


def _of_bundle(request: Request, folder: Path, place: Workplace) -> Origin:
    """Start from a bundle's portable model, with its own pre-processing and its own sample images."""
    manifest, recipe = read_manifest(folder), read_recipe(folder)
    for name in ("model.onnx", "preprocess.json", SAMPLES):
        if name in manifest.files:
            Artifact(path=folder / name, sha256=manifest.files[name]).verified()
    if not isinstance(recipe, Preprocess):
        raise UsageError(
            f"{folder} takes no images", mend="give the model.onnx inside, with --calibrate for int8"
        )
    normalisation = request.normalisation or Normalisation(mean=recipe.mean, std=recipe.std)
    calibrate = request.calibrate
    if calibrate is None and SAMPLES in manifest.files:
        images, _ = read_samples(folder / SAMPLES)
        calibrate = place.scratch / "samples.npy"
        np.save(calibrate, runner.preprocess(images, recipe))
    settled = replace(request, calibrate=calibrate, normalisation=normalisation)
    origin = _of_onnx(settled, folder / "model.onnx", place)
    return replace(origin, name=str(folder))


def _of_onnx(request: Request, path: Path, place: Workplace) -> Origin:
    if request.weights is not None:
        raise UsageError(f"{path.name} holds its own weights", mend="leave --weights out")
    source, signature = inspected(place.device, path)
    if source.precision is Precision.INT8:
        raise ModelError(f"{path.name} is int8 already", mend="give the float model that it was made from")
    if request.dynamic_batch and any(not spec.shape or spec.shape[0] for spec in signature.inputs):
        mend = "export from the torch module, or leave --dynamic-batch out"
        raise UsageError(f"{path.name} fixes its batch size", mend=mend)
    static = check_shapes(signature, request.inputs)
    shapes = {spec.name: tuple(size or 1 for size in spec.shape) for spec in static.inputs}
    rows = gather(place.scratch / "inputs", static, request.calibrate, request.normalisation)

    def ask(asked: dict[str, Artifact], shapes: Shapes, model: Model = source) -> Outputs:
        engine = Engine(
            model=model, runtime="onnxruntime", precision=Precision.FP32, threads=place.threads, shapes=shapes
        )
        return outputs_of(place.device, engine, asked, place.scratch / "source" / model.file.sha256[:8])

    answers = Answers(shapes=shapes, rows=rows, expected=ask(rows, shapes))
    log.info("simplifying the graph of %s", path.name)
    made = convert(place.scratch / "simplified", source, request.opset)
    why = _departure(place, made.model, lambda one: ask(rows, shapes, one), answers)
    if why and request.opset is not None:
        mend = "leave --opset out, or export from the module the file was made from"
        raise ModelError(
            f"{path.name} does not compute the same in opset {request.opset}", cause=why, mend=mend
        )
    return Origin(
        name=str(path),
        sha256=source.file.sha256,
        model=source if why else made.model,
        signature=signature,
        opset=made.opset,
        real=request.calibrate is not None,
        answers=answers,
        batched=_doubled(shapes, rows, ask, place.scratch / "batched") if request.dynamic_batch else None,
        problems=(f"the graph was left as it is, since simplified {why}",) if why else (),
    )


def _departure(place: Workplace, made: Model, ask: Callable[[Model], Outputs], answers: Answers) -> str:
    """Say how a changed graph departs from its source; empty where it does not."""
    try:
        place.device.inspect(made.file)
        error = match(answers.expected, ask(made)).relative_error
    except ModelError as failed:
        return f"it does not run: {failed.what}: {failed.cause}"[:300]
    return f"it departed by {error:.1e} of the scale" if error > FP32_RELATIVE_ERROR else ""


def _doubled(
    shapes: Shapes,
    rows: Mapping[str, Artifact],
    ask: Callable[[dict[str, Artifact], Shapes], Outputs],
    folder: Path,
) -> Answers:
    """Put two rows in one, to check that the batch is open in what computes, and not in the signature alone."""
    folder.mkdir(parents=True)
    doubled, wider = {}, {}
    for at, (name, file) in enumerate(rows.items()):
        array = np.load(file.verified(), mmap_mode="r", allow_pickle=False)[:8]
        whole = np.concatenate([array, array[::-1]], axis=1)
        path = folder / f"input_{at}.npy"
        np.save(path, whole)
        doubled[name], wider[name] = Artifact.of(path), (2 * shapes[name][0], *shapes[name][1:])
    return Answers(shapes=wider, rows=doubled, expected=ask(doubled, wider))


def _answers_of(module: nn.Module, rows: Mapping[str, Artifact], names: list[str]) -> Outputs:
    """Run a module over rows; its outputs in the order in which torch.onnx lists them."""
    arrays = {n: np.load(file.verified(), mmap_mode="r", allow_pickle=False) for n, file in rows.items()}
    where = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    by_name = arrays.keys() <= inspect.signature(module.forward).parameters.keys()
    training = [one for one in module.modules() if one.training]
    answers = []
    try:
        module.eval()
        with torch.inference_mode():
            for at in range(len(next(iter(arrays.values())))):
                feeds = {
                    name: torch.from_numpy(np.array(array[at])).to(where) for name, array in arrays.items()
                }
                found = module(**feeds) if by_name else module(*feeds.values())
                answers.append(
                    [one.cpu().numpy() for one in _pytree.tree_leaves(found) if isinstance(one, Tensor)]
                )
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError("the module cannot take these inputs", cause=str(error)[:300]) from error
    finally:
        for one in training:
            one.training = True
    if len(answers[0]) != len(names):
        raise ModelError(f"the module gives {len(answers[0])} tensors, and its export {len(names)}")
    return {name: np.stack([answer[at] for answer in answers]) for at, name in enumerate(names)}
