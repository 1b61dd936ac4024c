"""Refuse a hostile or broken model before any runtime's parser sees it.

Runtimes die on some malformed files (OpenVINO 2026.4.1: SIGSEGV on a Conv with one input, SIGFPE on a MaxPool
of stride 2^40, which passes onnx.checker). The process boundary contains that; this check explains it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from edgekd.errors import IntegrityError, ModelError
from edgekd.values.model import Precision, Signature, TensorSpec
from edgekd.worker.outline import DTYPES, Node, Outline, Value, outline

_MOST_BYTES = 2 << 30
_MOST_XML_BYTES = 256 << 20
_MOST_XML_DEPTH = 64  # an IR nests layers/layer/output/port/dim, and so again in each subgraph
_MOST_ELEMENTS = 1 << 31  # of one tensor
_MOST_RANK = 64
_MOST_ATTRIBUTE = 1 << 20
_MOST_EXTERNAL = 1000  # files of weights beside one model
_SPECIAL = set("\\*")  # Windows' separator; ONNX Runtime takes "*/_ORT_MEM_ADDR_/*" for an address in memory
_MOST_PARTS, _LONGEST_PART = 8, 255  # of such a file's name: folders below the model's, bytes of each
_POSITIVE = {"strides", "dilations", "kernel_shape", "group", "hidden_size", "blocksize"}
_BOUNDED = _POSITIVE | {"pads", "output_padding", "output_shape", "axis", "perm", "num_groups", "num_outputs"}
_OFFICIAL = {"", "ai.onnx"}
_LEAST_INPUTS = {
    "Add": 2, "And": 2, "BatchNormalization": 5, "BitShift": 2, "Concat": 1, "Conv": 2, "ConvInteger": 2,
    "ConvTranspose": 2, "DequantizeLinear": 2, "Div": 2, "Einsum": 1, "Equal": 2, "Expand": 2, "GRU": 3, "Gather": 2,
    "GatherElements": 2, "GatherND": 2, "Gemm": 2, "Greater": 2, "GridSample": 2, "If": 1,
    "InstanceNormalization": 3, "LSTM": 3, "LayerNormalization": 2, "Less": 2, "MatMul": 2, "MatMulInteger": 2,
    "MaxRoiPool": 2, "MaxUnpool": 2, "Mod": 2, "Mul": 2, "NonMaxSuppression": 2, "OneHot": 3, "Or": 2, "PRelu": 2,
    "Pow": 2, "QLinearConv": 8, "QLinearMatMul": 8, "QuantizeLinear": 2, "RNN": 3, "Range": 3, "RoiAlign": 3,
    "ScatterElements": 3, "ScatterND": 3, "Sub": 2, "Tile": 2, "TopK": 1, "Where": 3, "Xor": 2,
}  # fmt: skip
_NEEDS_ONE = {
    "AveragePool", "Cast", "Clip", "DepthToSpace", "Elu", "Exp", "Flatten", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LRN", "LeakyRelu", "MaxPool", "Pad", "ReduceMax", "ReduceMean",
    "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "SpaceToDepth", "Split",
    "Sqrt", "Squeeze", "Tanh", "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
_QUANTIZED = {
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip
_WEIGHTED = {
    "Conv",
    "ConvTranspose",
    "GRU",
    "Gemm",
    "LSTM",
    "MatMul",
    "RNN",
}  # weights are their second input
_FLOATS = {1: Precision.FP32, 10: Precision.FP16, 16: Precision.BF16}  # onnx.TensorProto's numbers


def check(path: Path, external: Sequence[Path] | None = None) -> None:
    """Check a model file against our own limits; needs neither onnx nor a runtime.

    Args:
        path: .onnx or .xml.
        external: the files of weights that were named, and verified, with it; None where none could be.

    Raises:
        ModelError: it is malformed, or larger than any real model.
        IntegrityError: it points at files outside its folder, or at others than were named with it.

    """
    if not path.is_file():
        raise ModelError(f"{path} is not a file", mend="give the path of an .onnx or .xml file")
    size = path.stat().st_size
    if size > (_MOST_XML_BYTES if path.suffix == ".xml" else _MOST_BYTES):
        raise ModelError(f"{path.name} is too large", cause=f"{size >> 20} MiB", mend="use a smaller model")
    if path.suffix == ".onnx":
        found = outline(path)
        _check_outline(path, found)
        if external is not None:
            _check_named(path, _locations(path, found), external)
    elif path.suffix == ".xml":
        _check_xml(path)
    else:
        raise ModelError(
            f"{path.name} is no model file edgekd knows", mend="give it an .onnx or an .xml file"
        )


def onnx_signature(path: Path) -> Signature:
    """Read the signature of an .onnx that passed `check`.

    Raises:
        ModelError: an input or output is no tensor.

    """
    found = outline(path)
    inputs = tuple(_spec(path, value) for value in found.inputs if value.name not in found.constants)
    return Signature(
        inputs=inputs,
        outputs=tuple(_spec(path, value) for value in found.outputs),
        quantized=any(node.operator in _QUANTIZED for node in found.nodes),
        floats=_floats(found),
    )


def external_names(path: Path) -> tuple[str, ...]:
    """Return the names of the files that a model keeps its weights in, below its folder, sorted; none are opened.

    Raises:
        IntegrityError: one would lie outside, or two would be one file on some disk.
        ModelError: it is malformed.

    """
    return _locations(path, outline(path)) if path.suffix == ".onnx" else ()


def _floats(found: Outline) -> Precision:
    """Return the type that most weighted operators compute in; a mixed graph keeps a few layers in fp32."""
    kinds = {value.name: value.element_type for value in found.inputs}
    kinds |= {tensor.name: tensor.element_type for tensor in found.tensors}
    counts: Counter[Precision] = Counter()
    for node in found.nodes:  # in the order in which they run
        of = [kinds[name] for name in reversed(node.names) if name and name in kinds]
        if node.operator in _WEIGHTED and of and of[0] in _FLOATS:
            counts[_FLOATS[of[0]]] += 1
        to = node.integers.get("to", ()) if node.operator == "Cast" else ()
        kinds[node.output] = to[0] if to else node.element_type or (of[-1] if of else 0)
    return counts.most_common(1)[0][0] if counts else Precision.FP32


def _check_outline(path: Path, found: Outline) -> None:
    if not found.outputs:
        raise _refusal(path, "it has no outputs")
    for node in found.nodes:
        _check_node(path, node)
    for tensor in found.tensors:
        _check_dims(path, tensor.name, tensor.dims)
        if tensor.location is not None:
            _check_location(path, tensor.location)
    for shape in found.shapes:
        _check_dims(path, "a declared shape", tuple(size for size in shape if size is not None))


def _check_node(path: Path, node: Node) -> None:
    if node.domain in _OFFICIAL:
        least = _LEAST_INPUTS.get(node.operator, int(node.operator in _NEEDS_ONE))
        if node.inputs < least:
            raise _refusal(path, f"a {node.operator} has {node.inputs} inputs and needs {least}")
    for name in _BOUNDED.intersection(node.integers):
        for value in node.integers[name]:
            if abs(value) >= _MOST_ATTRIBUTE or (name in _POSITIVE and value < 1):
                raise _refusal(path, f"a {node.operator} has {name} = {value}")


def _check_dims(path: Path, name: str, dims: tuple[int, ...]) -> None:
    if len(dims) > _MOST_RANK:
        raise _refusal(path, f"{name!r} has {len(dims)} dimensions")
    if any(size < 0 or size >= 1 << 31 for size in dims) or math.prod(dims) > _MOST_ELEMENTS:
        raise _refusal(path, f"{name!r} has the shape {'x'.join(map(str, dims[:8]))}")


def _locations(path: Path, found: Outline) -> tuple[str, ...]:
    """Return the names of the files of weights, each in one spelling."""
    told = {one.location for one in found.tensors if one.location is not None}
    for name in told:
        if not _stays_inside(name):
            raise _stray(path, name)
    names = sorted({str(PurePosixPath(name)) for name in told})
    for name, other in pairwise(sorted([*names, path.name], key=str.casefold)):
        if name.casefold() == other.casefold():
            cause = f"{name!r} and {other!r} may be one file"
            mend = "save the model with other names for its weights"
            raise IntegrityError(f"{path.name} takes weights from {name!r}", cause=cause, mend=mend)
    if len(names) > _MOST_EXTERNAL:
        raise _refusal(path, f"its weights lie in {len(names)} files")
    return tuple(names)


def _check_named(path: Path, names: Sequence[str], given: Sequence[Path]) -> None:
    """Refuse weights that were not named with the model: nobody verified them."""
    own = {path.parent.absolute() / name for name in names}
    for one in sorted(own ^ {one.absolute() for one in given}):
        problem = "was not named with it" if one in own else "is none of its files"
        raise IntegrityError(
            f"{path.name} and its weights do not belong together",
            cause=f"{one.name} {problem}",
            mend="give the model with the weights that were saved with it, or save it as one file",
        )


def _check_location(path: Path, location: str) -> None:
    """Weights beside the model must be plain files inside its folder."""
    folder = path.parent.resolve()
    target = folder / location
    plain = (
        _stays_inside(location)
        and target.resolve() == target
        and target.is_file()
        and target.stat().st_nlink == 1
    )
    if not plain:
        raise _stray(path, location)


def _stays_inside(location: str) -> bool:
    """Whether a name can only be one below the model's folder, on any disk and for any runtime."""
    parts = PurePosixPath(location).parts
    return (
        location.isprintable()
        and not _SPECIAL.intersection(location)
        and 0 < len(parts) <= _MOST_PARTS
        and all(part not in {"/", "//", ".."} and len(part.encode()) <= _LONGEST_PART for part in parts)
    )


def _stray(path: Path, location: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name} takes weights from {location!r}",
        cause="that is no plain file inside the model's own folder",
        mend="put the weights beside the model, or save it as one file",
    )


def _check_xml(path: Path) -> None:
    """Walk an OpenVINO IR without building a tree; no DTD, so no entities and no expansion."""
    depth = [0, 0]  # now, and number of elements
    parser = expat.ParserCreate()

    def forbid(*_: object) -> None:
        raise _refusal(path, "it declares a document type")

    def start(name: str, attributes: dict[str, str]) -> None:
        depth[0], depth[1] = depth[0] + 1, depth[1] + 1
        if depth[1] == 1 and name != "net":
            raise _refusal(path, f"its root is <{name}>, not <net>")
        if depth[0] > _MOST_XML_DEPTH:
            raise _refusal(path, f"its elements are nested more than {_MOST_XML_DEPTH} deep")
        _check_xml_attributes(path, attributes)

    def end(_: str) -> None:
        depth[0] -= 1

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = forbid
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise _refusal(path, str(error)) from None


def _check_xml_attributes(path: Path, attributes: dict[str, str]) -> None:
    for name in _XML_BOUNDED.intersection(attributes):
        for text in attributes[name].split(","):
            value = int(text) if text.strip().lstrip("-").isdigit() else 1
            if abs(value) >= _MOST_ATTRIBUTE or (name in _POSITIVE and value < 1):
                raise _refusal(path, f"a layer has {name} = {value}")


_XML_BOUNDED = {"strides", "dilations", "kernel", "pads_begin", "pads_end", "output_padding", "group"}


def _spec(path: Path, value: Value) -> TensorSpec:
    dtype = DTYPES.get(value.element_type)
    if dtype is None:
        raise ModelError(
            f"{path.name}: {value.name!r} is no tensor of a type numpy has",
            mend="export the model with plain tensors",
        )
    return TensorSpec(name=value.name, dtype=dtype, shape=value.shape)


def _refusal(path: Path, cause: str) -> ModelError:
    return ModelError(f"{path.name} is malformed or hostile", cause=cause, mend="export the model again")
