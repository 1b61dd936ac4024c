"""How each kind of torch module is written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.stages.emit import functions
from edgekd.stages.emit.graph import Call, Known

Writer = Callable[..., "str | tuple[Known, ...]"]


def _conv(call: Call, conv: nn.Conv1d | nn.Conv2d, x: Known) -> str:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise call.refuse(f"it pads by {conv.padding!r}, {conv.padding_mode}")
    return call.put(
        "Conv",
        x.name,
        *call.parameters(conv),
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        dilations=list(conv.dilation),
        group=conv.groups,
    )


def _transposed(call: Call, conv: nn.ConvTranspose2d, x: Known) -> str:
    return call.put(
        "ConvTranspose",
        x.name,
        *call.parameters(conv),
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        pads=[*conv.padding, *conv.padding],
        output_padding=list(conv.output_padding),
        dilations=list(conv.dilation),
        group=conv.groups,
    )


def _linear(call: Call, linear: nn.Linear, x: Known) -> str:
    if x.rank == 2:  # noqa: PLR2004 - Gemm takes matrices
        return call.put("Gemm", x.name, *call.parameters(linear), transB=1)
    weight = call.keep("weight", linear.weight.t())
    bias: Tensor | None = linear.bias
    if bias is None:
        return call.put("MatMul", x.name, weight)
    return call.put("Add", call.step("product", "MatMul", x.name, weight), call.keep("bias", bias))


def _gru_cell(call: Call, cell: nn.GRUCell, x: Known, state: Known) -> str:
    """Write h' = (1 - z) n + z h, with n = tanh(W x + r (U h)) (Cho et al. 2014; torch.nn.GRUCell)."""
    both = {"input": (x, cell.weight_ih, cell.bias_ih), "state": (state, cell.weight_hh, cell.bias_hh)}
    parts: list[list[str]] = []
    for side, (tensor, weight, bias) in both.items():
        held = [call.keep(f"{side}.weight", weight)]
        held += [] if bias is None else [call.keep(f"{side}.bias", bias)]
        whole = call.step(side, "Gemm", tensor.name, *held, transB=1)
        parts.append(
            [
                call.step(f"{side}.{gate}", "Slice", whole, *_columns(call, f"{side}.{gate}", at, cell))
                for at, gate in enumerate(("reset", "update", "new"))
            ]
        )
    (xr, xz, xn), (hr, hz, hn) = parts
    reset = call.step("reset", "Sigmoid", call.step("reset.sum", "Add", xr, hr))
    update = call.step("update", "Sigmoid", call.step("update.sum", "Add", xz, hz))
    gated = call.step("gated", "Mul", reset, hn)
    new = call.step("new", "Tanh", call.step("new.sum", "Add", xn, gated))
    kept = call.step("kept", "Mul", update, call.step("change", "Sub", state.name, new))
    return call.put("Add", new, kept)


def _columns(call: Call, suffix: str, at: int, cell: nn.GRUCell) -> tuple[str, ...]:
    size = cell.hidden_size
    limits = {"start": at * size, "stop": (at + 1) * size, "axis": 1}
    return tuple(call.integers(f"{suffix}.{key}", [number]) for key, number in limits.items())


def _batch_norm(call: Call, norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Known) -> str:
    if norm.training or norm.running_mean is None or norm.running_var is None or norm.weight is None:
        raise call.refuse("its statistics are not fixed")
    moments = (call.keep("mean", norm.running_mean), call.keep("var", norm.running_var))
    return call.put("BatchNormalization", x.name, *call.parameters(norm), *moments, epsilon=norm.eps)


def _layer_norm(call: Call, norm: nn.LayerNorm, x: Known) -> str:
    if norm.weight is None:
        raise call.refuse("it has no weight")
    axis = -len(norm.normalized_shape)
    return call.put("LayerNormalization", x.name, *call.parameters(norm), axis=axis, epsilon=norm.eps)


def _global_average(call: Call, pool: nn.AdaptiveAvgPool2d, x: Known) -> str:
    return functions.adaptive_average(call, x, pool.output_size)


def _largest(call: Call, pool: nn.MaxPool2d, x: Known) -> str:
    if pool.dilation not in (1, (1, 1)) or pool.return_indices:
        raise call.refuse("it is dilated, or gives indices")
    return call.put("MaxPool", x.name, **_window(pool))


def _average(call: Call, pool: nn.AvgPool2d, x: Known) -> str:
    if pool.divisor_override is not None:
        raise call.refuse("it divides by a number of its own")
    return call.put("AveragePool", x.name, **_window(pool), count_include_pad=int(pool.count_include_pad))


def _window(pool: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    pads = _pair(pool.padding)
    return {
        "kernel_shape": _pair(pool.kernel_size),
        "strides": _pair(pool.stride),
        "pads": [*pads, *pads],
        "ceil_mode": int(pool.ceil_mode),
    }


def _pair(given: int | tuple[int, ...]) -> list[int]:
    return [given, given] if isinstance(given, int) else list(given)


def _flatten(call: Call, flatten: nn.Flatten, x: Known) -> str:
    return functions.flatten(call, x, flatten.start_dim, flatten.end_dim)


def _upsample(call: Call, upsample: nn.Upsample, x: Known) -> str:
    scale = upsample.scale_factor
    size = upsample.size
    return functions.interpolate(call, x, size, scale, upsample.mode)


def _shuffle(call: Call, shuffle: nn.PixelShuffle, x: Known) -> str:
    return functions.pixel_shuffle(call, x, shuffle.upscale_factor)


def _embedding(call: Call, embedding: nn.Embedding, x: Known) -> str:
    if embedding.max_norm is not None:
        raise call.refuse("it renormalises its rows")
    return call.put("Gather", call.keep("weight", embedding.weight), x.name, axis=0)


def _softmax(call: Call, softmax: nn.Softmax, x: Known) -> str:
    return functions.softmax(call, x, -1 if softmax.dim is None else softmax.dim)


def _clip(low: float, high: float) -> Writer:
    def write(call: Call, _: nn.Module, x: Known) -> str:
        return call.put(
            "Clip", x.name, call.keep("low", torch.tensor(low)), call.keep("high", torch.tensor(high))
        )

    return write


def _plain(writer: Writer) -> Writer:
    """Take a function for a module of the same arithmetic that has nothing to set."""

    def write(call: Call, _: nn.Module, x: Known) -> Any:
        return writer(call, x)

    return write


def _nothing(_call: Call, _module: nn.Module, x: Known) -> str:
    return x.name


HANDING_ON = (nn.Dropout, nn.Dropout2d, nn.Identity)
MODULES: Mapping[type[nn.Module], Writer] = {
    nn.AdaptiveAvgPool2d: _global_average,
    nn.AvgPool2d: _average,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _transposed,
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.GRUCell: _gru_cell,
    nn.Hardsigmoid: _plain(functions.hard_sigmoid),
    nn.Hardswish: _plain(functions.hard_swish),
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _largest,
    nn.PixelShuffle: _shuffle,
    nn.ReLU: _plain(functions.relu),
    nn.ReLU6: _clip(0.0, 6.0),
    nn.SiLU: _plain(functions.silu),
    nn.Sigmoid: _plain(functions.sigmoid),
    nn.Softmax: _softmax,
    nn.Tanh: _plain(functions.tanh),
    nn.Upsample: _upsample,
    **dict.fromkeys(HANDING_ON, _nothing),
}
