"""What edgekd writes as ONNX computes what the module computes, and what it cannot write is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd import students
from edgekd.errors import ModelError
from edgekd.stages.emit import emit, modules

SIZES = {
    "residual": (16, 3, 10), "inverted": (16, 3, 10), "residual_maps": (64, 3, 4), "inverted_maps": (64, 3, 4),
    "mlp": (1, 12, 3), "gru": (16, 11, 11),
}  # fmt: skip  # resolution, channels, outputs


class Called(nn.Module):
    """A module around a function."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


class Gated(nn.Module):
    """One step of a recurrent network, from an index and a state, written out gate by gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(7, 24)
        self.inner = nn.Linear(8, 24)

    def forward(self, letter: Tensor, state: Tensor) -> dict[str, Tensor]:
        ours, theirs = self.stem(F.one_hot(letter, 7).float()), self.inner(state)
        reset, update, new = ours.chunk(3, dim=1)
        z = torch.sigmoid(update + theirs[:, 8:16])
        n = torch.tanh(new + torch.sigmoid(reset + theirs[:, :8]) * theirs[..., 16:])
        return {"next": (1 - z) * n + z * state, "new": n}


def answers(model: onnx.ModelProto, feeds: Mapping[str, Tensor]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {name: one.numpy() for name, one in feeds.items()})
    return found


def close(found: np.ndarray, wanted: Tensor) -> bool:
    return bool(np.allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("family", students.FAMILIES)
def test_a_student_of_every_family_computes_the_same_in_onnx_runtime(family: str):
    resolution, channels, outputs = SIZES[family]
    space = students.space_for(resolution=resolution, channels=channels, classes=outputs, families=(family,))
    spec = students.smallest(space, family)
    module = students.build(spec, channels=channels, classes=outputs, seed=1).eval()
    shipped, takes = students.shipped(module, spec), students.inputs(spec, channels)
    model = emit(shipped, takes, students.outputs(spec, channels))
    rng = torch.Generator().manual_seed(5)
    feeds = {name: torch.rand(shape, generator=rng) for name, shape in takes.items()}
    with torch.inference_mode():
        wanted = shipped(*feeds.values())
    every = wanted if isinstance(wanted, tuple) else (wanted,)
    for found, one in zip(answers(model, feeds), every, strict=True):
        assert close(found, one)


@pytest.mark.parametrize("family", ["residual", "inverted", "gru"])
def test_every_weighted_layer_of_a_student_stands_in_the_graph_under_its_own_name(family: str):
    resolution, channels, outputs = SIZES[family]
    space = students.space_for(resolution=resolution, channels=channels, classes=outputs, families=(family,))
    spec = students.sample(space, random.Random(2))  # noqa: S311 - a choice, no secret
    module = students.build(spec, channels=channels, classes=outputs)
    shipped = students.shipped(module.eval(), spec)
    model = emit(shipped, students.inputs(spec, channels), students.outputs(spec, channels))
    named = [node.name for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert sorted(named) == sorted(
        one.name for one in students.layers(spec, channels=channels, classes=outputs)
    )


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda x, conv: torch.cat([F.relu(conv(x)), x], dim=1), [nn.Conv2d(3, 4, 3, padding=1)]),
        (lambda x, conv: conv(x), [nn.ConvTranspose2d(3, 4, 2, stride=2)]),
        (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), []),
        (lambda x, conv: F.pixel_shuffle(conv(x), 2), [nn.Conv2d(3, 8, 1)]),
        (lambda x: F.normalize(x.mean(dim=(2, 3))), []),
        (lambda x, linear: linear(x.permute(0, 2, 3, 1).reshape(1, -1, 3)), [nn.Linear(3, 5)]),
        (lambda x: x[:, 1:, ::2, -3:], []),
        (lambda x: x[0, None, ..., 2], []),
        (lambda x: (x.transpose(1, 3) * 2 - 1).softmax(dim=-1), []),
        (lambda x: 1.0 / (x.sigmoid() + 1.0), []),
        (lambda x, pool, norm: norm(pool(x)), [nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(3).eval()]),
        (lambda x, pool: F.silu(pool(x)) + F.hardswish(pool(x)), [nn.AvgPool2d(2)]),
        (lambda x, norm: norm(x) * F.hardsigmoid(x), [nn.LayerNorm(8)]),
        (lambda x, relu: torch.split(relu(x), [1, 2], dim=1)[1].contiguous(), [nn.ReLU6()]),
        (lambda x: x.view(1, x.shape[1] * x.shape[2], -1).squeeze(0), []),
    ],
)  # fmt: skip
def test_an_operator_computes_the_same_in_onnx_runtime(function: Callable[..., Any], parts: list[nn.Module]):
    module = Called(function, *parts).eval()
    image = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        wanted = module(image)
    (found,) = answers(emit(module, {"image": (1, 3, 8, 8)}, ("y",)), {"image": image})
    assert found.shape == tuple(wanted.shape)
    assert close(found, wanted)


def test_inputs_go_by_name_and_what_indexes_is_an_integer():
    module = Gated().eval()
    model = emit(module, {"state": (1, 8), "letter": (1,)}, ("next", "new"))
    kinds = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
    assert kinds == {"letter": onnx.TensorProto.INT64, "state": onnx.TensorProto.FLOAT}
    feeds = {"letter": torch.tensor([4]), "state": torch.randn(1, 8)}
    with torch.inference_mode():
        wanted = module(**feeds)
    for found, one in zip(answers(model, feeds), wanted.values(), strict=True):
        assert close(found, one)


def test_an_embedding_reads_only_indices_that_it_has():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Flatten())
    model = emit(module, {"words": (1, 50)}, ("rows",))
    (found,) = answers(model, {"words": torch.full((1, 50), 2)})
    assert np.allclose(found.reshape(50, 4), module[0].weight.detach()[2].numpy())


def test_a_module_that_is_called_twice_keeps_two_names():
    def twice(x: Tensor, conv: nn.Module) -> Tensor:
        return conv(conv(x))

    model = emit(Called(twice, nn.Conv2d(3, 3, 1)), {"image": (1, 3, 4, 4)}, ("y",))
    assert [node.name for node in model.graph.node] == ["parts.0", "parts.0.again1"]


def test_what_hands_on_its_input_adds_no_node():
    module = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5), nn.Identity()).eval()
    model = emit(module, {"row": (1, 4)}, ("logits",))
    assert [(node.op_type, node.output[0]) for node in model.graph.node] == [("Gemm", "logits")]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.GELU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 1, 3, padding="same")),
        nn.Sequential(nn.Conv2d(3, 1, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.Flatten(2)),
        nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")),
        nn.Sequential(nn.MaxPool2d(2, dilation=2)),
        Called(torch.erf),
        Called(lambda x: F.normalize(x, p=1.0)),
        Called(lambda x: x[:, [2, 0]]),
        Called(lambda x: x.add(x, alpha=2)),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(module: nn.Module):
    with pytest.raises(ModelError, match="cannot be written as ONNX"):
        emit(module.eval(), {"image": (1, 3, 8, 8)}, ("y",))


@pytest.mark.parametrize(
    ("inputs", "outputs"), [({"a": (1, 4), "b": (1, 4)}, ("y",)), ({"a": (1, 4)}, ("y", "z"))]
)
def test_as_many_names_are_wanted_as_there_are_tensors(
    inputs: dict[str, tuple[int, ...]], outputs: tuple[str, ...]
):
    with pytest.raises(ModelError, match="given"):
        emit(nn.Sequential(nn.Linear(4, 2)), inputs, outputs)


def test_a_writer_that_is_wrong_is_caught_at_the_layer_it_wrote(monkeypatch: pytest.MonkeyPatch):
    def strided(call: Any, conv: nn.Conv2d, x: Any) -> str:
        weights = call.parameters(conv)
        pads = [0, 0, 2, 2] if call.name == "2" else [1, 1, 1, 1]
        return str(call.put("Conv", x.name, *weights, kernel_shape=[3, 3], pads=pads))

    def flipped(call: Any, linear: nn.Linear, x: Any) -> str:
        return str(call.put("Gemm", x.name, *call.parameters(linear)))  # transB is left out

    layers = [
        nn.Conv2d(3, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    ]
    module = nn.Sequential(*layers, nn.Linear(192, 192))
    monkeypatch.setitem(modules.MODULES, nn.Linear, flipped)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="'y' was written wrongly"):
        emit(module, {"image": (1, 3, 8, 8)}, ("y",))
    monkeypatch.setitem(modules.MODULES, nn.Conv2d, strided)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="a convolution was written wrongly"):
        emit(module, {"image": (1, 3, 8, 8)}, ("y",))


def test_a_tensor_that_a_later_layer_writes_over_is_caught():
    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.0
            return self.relu(y) + y  # torch adds the ReLU twice, the graph what was there before

    with pytest.raises(ModelError, match="written wrongly"):
        emit(Spoilt(), {"image": (1, 3, 8, 8)}, ("y",))


def test_the_same_module_gives_the_same_bytes():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    one, other = (emit(module, {"image": (1, 3, 8, 8)}, ("y",)) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
