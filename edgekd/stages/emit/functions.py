"""How each torch function and tensor method is written in ONNX.

A writer has the parameters of its torch function, as far as they can be written: what it does not take is refused, but for what is
set to None or False.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edgekd.stages.emit.graph import Call, Known, Operand


def _binary(operation: str) -> Callable[..., str]:
    def write(call: Call, first: Operand, second: Operand) -> str:
        given = call.operand("first", first, second), call.operand("second", second, first)
        return call.put(operation, *given)

    return write


def _unary(operation: str) -> Callable[..., str]:
    def write(call: Call, x: Known, *, inplace: bool = False) -> str:
        del inplace  # the graph's tensors never change
        return call.put(operation, x.name)

    return write


relu, sigmoid, tanh = _unary("Relu"), _unary("Sigmoid"), _unary("Tanh")
hard_swish = _unary("HardSwish")


def hard_sigmoid(call: Call, x: Known, *, inplace: bool = False) -> str:
    """Write max(0, min(1, x / 6 + 1/2)), torch's, whose slope is not ONNX's default."""
    del inplace
    return call.put("HardSigmoid", x.name, alpha=1 / 6, beta=0.5)


def silu(call: Call, x: Known, *, inplace: bool = False) -> str:
    """Write x sigmoid(x)."""
    del inplace
    return call.put("Mul", x.name, call.step("gate", "Sigmoid", x.name))


def softmax(call: Call, x: Known, dim: int) -> str:
    """Write the softmax along a dimension."""
    return call.put("Softmax", x.name, axis=x.axis(dim))


def concat(call: Call, tensors: Sequence[Known], dim: int = 0) -> str:
    """Write tensors one after the other."""
    return call.put("Concat", *(one.name for one in tensors), axis=tensors[0].axis(dim))


def flatten(call: Call, x: Known, start_dim: int = 0, end_dim: int = -1) -> str:
    """Write all dimensions from `start_dim` as one."""
    if (x.axis(start_dim), x.axis(end_dim)) != (1, x.rank - 1):
        raise call.refuse("it does not flatten all but the batch")
    return call.put("Flatten", x.name, axis=1)


def reshape(call: Call, x: Known, *_: object) -> str:
    """Write the same elements in the shape that they had on the example."""
    return call.put("Reshape", x.name, call.integers("shape", call.value.shape))


def identity(_call: Call, x: Known) -> str:
    """Write nothing."""
    return x.name


def permute(call: Call, x: Known, *dims: Any) -> str:
    """Write the dimensions in another order."""
    order = dims[0] if len(dims) == 1 else dims
    return call.put("Transpose", x.name, perm=[x.axis(dim) for dim in order])


def transpose(call: Call, x: Known, dim0: int, dim1: int) -> str:
    """Write two dimensions exchanged."""
    order = list(range(x.rank))
    order[x.axis(dim0)], order[x.axis(dim1)] = x.axis(dim1), x.axis(dim0)
    return call.put("Transpose", x.name, perm=order)


def chunk(call: Call, x: Known, chunks: int, dim: int = 0) -> tuple[Known, ...]:
    """Write parts of a tensor, as many and as large as they were on the example."""
    del chunks
    sizes = [part.shape[x.axis(dim)] for part in call.value]
    return call.parts("Split", x.name, call.integers("sizes", sizes), axis=x.axis(dim))


def take(call: Call, x: Known | Sequence[Any], index: Any) -> Any:
    """Write `x[index]`: one of several, slices with steps above 0, a place along a dimension, new dimensions."""
    if not isinstance(x, Known):
        return x[index]
    given = index if isinstance(index, tuple) else (index,)
    if any(not (one is None or one is Ellipsis or isinstance(one, int | slice)) for one in given):
        raise call.refuse("it is indexed by a tensor or a list")
    sliced, place = x.name, 0
    for one in _spelt_out(given, x.rank):
        if one is not None:
            part = slice(one, one + 1 or None) if isinstance(one, int) else one
            sliced = _sliced(call, sliced, part, place, x.value.shape[place])
            place += 1
    if all(isinstance(one, slice) or one is Ellipsis for one in given):
        return sliced
    return call.put("Reshape", sliced, call.integers("shape", call.value.shape))


def _spelt_out(given: tuple[Any, ...], rank: int) -> list[Any]:
    """Put whole slices where an ellipsis stands."""
    if Ellipsis not in given:
        return list(given)
    at = given.index(Ellipsis)
    taken = sum(one is not None and one is not Ellipsis for one in given)
    return [*given[:at], *[slice(None)] * (rank - taken), *given[at + 1 :]]


def _sliced(call: Call, name: str, one: slice, axis: int, size: int) -> str:
    start, stop, step = one.indices(size)
    if (start, stop, step) == (0, size, 1):
        return name
    if step < 1 or stop <= start:
        raise call.refuse(f"it takes {one} of {size}")
    limits = {"start": start, "stop": stop, "axis": axis, "step": step}
    held = [call.integers(f"{key}{axis}", [number]) for key, number in limits.items()]
    return call.step(f"slice{axis}", "Slice", name, *held)


def mean(call: Call, x: Known, dim: int | Sequence[int] | None = None, keepdim: object = False) -> str:  # noqa: FBT002 - torch's order
    """Write the mean over dimensions."""
    dims = range(x.rank) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted(x.axis(one) for one in dims)
    return call.put("ReduceMean", x.name, axes=axes, keepdims=int(bool(keepdim)))


def adaptive_average(call: Call, x: Known, output_size: Any) -> str:
    """Write the mean over all pixels."""
    if output_size not in (1, (1, 1)):
        raise call.refuse(f"it pools to {output_size}, not to one pixel")
    return call.put("GlobalAveragePool", x.name)


def interpolate(
    call: Call,
    x: Known,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
) -> str:
    """Write larger maps: each pixel a whole number of times."""
    del size, scale_factor  # what came out on the example says it
    before, after = x.value.shape[2:], call.value.shape[2:]
    scales = [new / old for old, new in zip(before, after)]
    if mode != "nearest" or any(scale != int(scale) for scale in scales):
        raise call.refuse(f"it resizes by {scales}, {mode}")
    return call.put(
        "Resize",
        x.name,
        "",
        call.keep("scales", torch.tensor([1.0, 1.0, *scales])),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def pixel_shuffle(call: Call, x: Known, upscale_factor: int) -> str:
    """Write channels as pixels, r x r of each (Shi et al. 2016)."""
    return call.put("DepthToSpace", x.name, blocksize=upscale_factor, mode="CRD")


def linear(call: Call, x: Known, weight: Known, bias: Known | None = None) -> str:
    """Write x W' + b."""
    if x.rank != 2:  # noqa: PLR2004 - Gemm takes matrices
        raise call.refuse(f"its input has {x.rank} dimensions")
    return call.put("Gemm", x.name, weight.name, *([] if bias is None else [bias.name]), transB=1)


def embedding(call: Call, x: Known, weight: Known) -> str:
    """Write rows of a table."""
    return call.put("Gather", weight.name, x.name, axis=0)


def one_hot(call: Call, x: Known, num_classes: int = -1) -> str:
    """Write each index as a row of an identity matrix, of integers as torch's."""
    if num_classes < 1:
        raise call.refuse("it does not say how many classes there are")
    table = torch.eye(num_classes, dtype=torch.int64)
    return call.put("Gather", call.keep("table", table), x.name, axis=0)


def to_float(call: Call, x: Known) -> str:
    """Write the tensor as float32."""
    return call.put("Cast", x.name, to=1)


def normalize(call: Call, x: Known, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> str:
    """Write x / max(||x||, eps)."""
    if p != 2.0:  # noqa: PLR2004 - the Euclidean norm
        raise call.refuse(f"it takes a norm of order {p}")
    length = call.step("norm", "ReduceL2", x.name, axes=[x.axis(dim)], keepdims=1)
    least = call.step("least", "Max", length, call.keep("eps", torch.tensor(eps)))
    return call.put("Div", x.name, least)


add, subtract, multiply = _binary("Add"), _binary("Sub"), _binary("Mul")
divide, product = _binary("Div"), _binary("MatMul")

FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    operator.add: add, operator.iadd: add, torch.add: add,
    operator.sub: subtract, torch.sub: subtract,
    operator.mul: multiply, operator.imul: multiply, torch.mul: multiply,
    operator.truediv: divide, torch.div: divide,
    operator.matmul: product, torch.matmul: product, torch.mm: product,
    operator.getitem: take,
    operator.neg: _unary("Neg"), torch.neg: _unary("Neg"),
    torch.cat: concat, torch.concat: concat,
    torch.chunk: chunk, torch.split: chunk,
    torch.flatten: flatten,
    torch.mean: mean,
    torch.permute: permute, torch.transpose: transpose,
    torch.reshape: reshape, torch.squeeze: reshape, torch.unsqueeze: reshape,
    torch.relu: relu, F.relu: relu,
    torch.sigmoid: sigmoid, F.sigmoid: sigmoid,
    torch.softmax: softmax, F.softmax: softmax,
    torch.tanh: tanh, F.tanh: tanh,
    F.adaptive_avg_pool2d: adaptive_average,
    F.embedding: embedding,
    F.hardsigmoid: hard_sigmoid, F.hardswish: hard_swish, F.silu: silu,
    F.interpolate: interpolate,
    F.linear: linear,
    F.normalize: normalize,
    F.one_hot: one_hot,
    F.pixel_shuffle: pixel_shuffle, torch.pixel_shuffle: pixel_shuffle,
}  # fmt: skip
METHODS: Mapping[str, Callable[..., Any]] = {
    "add": add, "chunk": chunk, "contiguous": identity, "div": divide, "flatten": flatten, "float": to_float,
    "matmul": product, "mean": mean, "mul": multiply, "permute": permute, "relu": relu, "reshape": reshape,
    "sigmoid": sigmoid, "softmax": softmax, "split": chunk, "squeeze": reshape, "sub": subtract, "tanh": tanh,
    "transpose": transpose, "unsqueeze": reshape, "view": reshape,
}  # fmt: skip
