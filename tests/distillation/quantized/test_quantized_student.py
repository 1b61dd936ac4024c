from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distillation.quantized import QuantizedStudent
from edgekd.distillation.quantized.grids import ActivationGrid
from edgekd.errors import DataError, ModelError, UsageError
from edgekd.stages.emit import emit
from edgekd.students import build, fold
from edgekd.values.quantization import Scheme
from edgekd.values.student import StageSpec, StudentSpec

STAGES = (
    StageSpec(width=8, depth=2, kernel=3, expansion=2.0),
    StageSpec(width=16, depth=1, kernel=3, expansion=2.0),
)
FEW = Scheme(weight_bits=3, activation_bits=3)


def images(count: int = 16, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def folded(family: str = "residual") -> nn.Module:
    """A student whose norms have seen something, so that folding them counts."""
    module = build(
        StudentSpec(family=family, resolution=8, stem=8, stages=STAGES), channels=3, classes=10, seed=0
    )
    module.train()
    for _ in range(3):
        module(2 * images() + 0.5)
    return fold(module.eval())


def calibrated(student: nn.Module, scheme: Scheme | None = None) -> QuantizedStudent:
    found = QuantizedStudent(student, scheme or Scheme())
    found.calibrate(images())
    return found.eval()


@contextmanager
def integers(student: QuantizedStudent) -> Iterator[dict[str, Tensor]]:
    """Collect the integers of every rounded activation, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: ActivationGrid, _: object, output: tuple) -> None:
        seen[name] = output[0][0].numbers.detach() + module.zero_point

    handles = [one.register_forward_hook(partial(keep, name)) for name, one in student.activations.items()]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ["residual", "inverted"])
@pytest.mark.parametrize(
    "scheme", [Scheme(), Scheme(everywhere=False), Scheme(everywhere=False, symmetric=True)]
)
def test_eight_bits_answer_nearly_as_the_float_student_does(family: str, scheme: Scheme):
    student = folded(family)
    with torch.no_grad():
        expected, found = student(images()), calibrated(student, scheme)(images())
    assert 0 < (found - expected).abs().max() < 0.1 * expected.std()


def test_bits_are_what_they_are_said_to_be():
    student = calibrated(folded(), Scheme(weight_bits=2, activation_bits=4))
    with integers(student) as seen, torch.no_grad():
        student(images())
    assert all(set(one.unique().tolist()) <= set(range(16)) for one in seen.values())
    name, grid = next(iter(student.weights.items()))
    weight, _ = grid(
        student.traced.get_submodule(student._layers[name.removeprefix("of_")]).weight,
        grid.scales(None, torch.ones(())),
    )
    assert set(weight.unique().tolist()) == {-1, 0, 1}


def test_grids_are_named_as_the_tensors_of_the_exported_graph():
    for family in ("residual", "inverted"):
        for scheme in (Scheme(), Scheme(everywhere=False)):
            student = folded(family)
            graph = emit(student, {"images": (1, 3, 8, 8)}, ("logits",)).graph
            known = {
                "images",
                *(one.name for one in graph.initializer),
                *(out for n in graph.node for out in n.output),
            }
            grids = calibrated(student, scheme).grids()
            assert grids.keys() <= known
            weights = {one.name for one in graph.initializer if one.name.endswith(".weight")}
            assert weights == {name for name in grids if name.endswith(".weight")}


def test_a_scheme_that_rounds_everywhere_leaves_no_float_between_layers():
    graph = emit(folded(), {"images": (1, 3, 8, 8)}, ("logits",)).graph
    grids = calibrated(folded()).grids()
    read = {
        name
        for node in graph.node
        if node.op_type in {"Conv", "Gemm", "Add", "GlobalAveragePool"}
        for name in node.input
    }
    assert {name for name in read if not name.endswith((".weight", ".bias"))} <= grids.keys()


def test_otherwise_what_weights_multiply_and_shortcuts_are_rounded():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.short = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) + self.short(x)

    found = calibrated(Two(), Scheme(everywhere=False)).grids()
    assert {name for name in found if not name.endswith("weight")} == {"images", "first.out", "short.out"}


def test_sums_that_float32_cannot_hold_are_exact_when_the_student_is_evaluated():
    torch.manual_seed(0)
    layer = nn.Linear(4096, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(3, 4096) + 1)
    student = QuantizedStudent(nn.Sequential(layer), Scheme())
    rows = torch.rand(64, 4096) + 1
    student.calibrate(rows)
    grids = student.grids()
    student.eval()
    with integers(student) as seen, torch.no_grad():
        found = student(rows)
    (inputs,) = seen.values()
    weight = torch.from_numpy(np.array(grids["0.weight"].scales, np.float32))
    whole = (layer.weight / weight[:, None]).round().clamp(-127, 127).detach().long()
    factor = torch.tensor(grids["images"].scales[0]) * weight
    sums = (inputs.long() - grids["images"].zero_point) @ whole.T
    assert sums.abs().max() > 2**24
    bias = (layer.bias.detach() / factor).round().long()
    assert torch.equal(found, (sums + bias).float() * factor)
    student.train()
    assert not torch.equal(student(rows), found)  # so that the test can tell


def test_a_dead_channel_trains_and_its_bias_fits_into_int32():
    student = folded()
    with torch.no_grad():
        student.stem.conv.weight[3] = 0
        student.stem.conv.weight[4] = 1e-30
        student.stem.conv.bias[3:5] = 5.0
    module = calibrated(student)
    grids = module.grids()
    scales = np.array(grids["stem.conv.weight"].scales) * grids["images"].scales[0]
    assert (np.abs(student.stem.conv.bias.numpy()) / scales < 2**31).all()
    module.train()
    F.mse_loss(module(images()), torch.zeros(16, 10)).backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in module.parameters())
    assert module(images()).isfinite().all()


def test_weights_and_scales_learn_where_scales_are_to_be_learned():
    for learned in (True, False):
        module = calibrated(folded(), Scheme(weight_bits=3, activation_bits=3, learned=learned)).train()
        module(images()).square().sum().backward()
        scales = [one for name, one in module.named_parameters() if "scale" in name]
        assert all((one.grad is not None and one.grad.abs().sum() > 0) == learned for one in scales)
        assert all(
            one.grad.abs().sum() > 0
            for one in (module.traced.stem.conv.weight, module.traced.classifier.bias)
        )


def test_a_few_steps_bring_few_bits_nearer_to_the_float_student():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
    module, expected = calibrated(student, FEW), student(images()).detach()
    before = F.mse_loss(module(images()), expected).item()
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(module(images()), expected).backward()
        optimizer.step()
    assert F.mse_loss(module.eval()(images()), expected).item() < 0.6 * before


def test_the_student_given_is_left_as_it_was():
    student = folded()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    module = calibrated(student, FEW).train()
    module(images()).sum().backward()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_copy_and_a_reloaded_state_answer_alike():
    module = calibrated(folded(), FEW)
    other = QuantizedStudent(folded(), FEW).eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = module(images())
        assert torch.equal(copy.deepcopy(module)(images()), expected)
        assert torch.equal(other(images()), expected)
    assert other.grids() == module.grids()


def test_autocast_does_not_round_integers_to_bf16():
    module = calibrated(folded())
    with torch.no_grad():
        expected = module(images())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(images()), expected)


def test_what_does_not_multiply_is_given_floats_and_dropout_is_nothing():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.pool, self.end = (
                nn.Conv2d(3, 4, 3),
                nn.Dropout(0.5),
                nn.MaxPool2d(2),
                nn.Linear(36, 5),
            )
            self.offset = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.drop(F.gelu(self.conv(x))))
            return torch.sigmoid(self.end(x.flatten(1))) + self.offset

    torch.manual_seed(0)
    odd = Odd().eval()
    module = calibrated(odd)
    with torch.no_grad():
        assert (module(images()) - odd(images())).abs().max() < 0.02
        assert torch.equal(module.train()(images()), module.eval()(images()))


def test_layers_may_be_called_anything():
    module = nn.Sequential(OrderedDict(values=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), items=nn.Conv2d(4, 2, 3)))
    assert {"values.weight", "items.weight"} <= calibrated(module).grids().keys()


def test_a_student_without_layers_to_quantise_or_that_cannot_be_traced_is_refused():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    for module, words in (
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "has nothing to quantise"),
        (Branching(), "cannot be traced"),
        (Two(), "2 inputs"),
    ):
        with pytest.raises(ModelError, match=words):
            QuantizedStudent(module, Scheme())


def test_bad_calibration_is_refused_by_name():
    with pytest.raises(DataError, match="constant"):
        QuantizedStudent(folded(), Scheme()).calibrate(torch.ones(4, 3, 8, 8))
    broken = folded()
    with torch.no_grad():
        broken.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"classifier\.weight holds a value that is not finite"):
        QuantizedStudent(broken, Scheme()).calibrate(images())
    huge = folded()
    with torch.no_grad():
        huge.stem.conv.weight.fill_(3e38)
    with pytest.raises(ModelError, match=r"stem\.relu\.out is not finite"):
        QuantizedStudent(huge, Scheme()).calibrate(images())


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_no_grid_has_are_refused(bits: int):
    with pytest.raises(UsageError, match="weight_bits must lie between 2 and 8"):
        Scheme(weight_bits=bits)
