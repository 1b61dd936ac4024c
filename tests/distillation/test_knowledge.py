from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.distillation.adapters import project
from edgekd.distillation.knowledge import Batch, Knowledge, Shapes, Taps, total_loss
from edgekd.distillation.losses.intermediate import features
from edgekd.distillation.losses.response import cross_entropy
from edgekd.errors import UsageError
from tests.distillation.small import net

IMAGES = torch.randn(3, 1, 8, 8)


def test_taps_read_the_output_the_pooled_features_and_any_module():
    module = net().eval()
    with Taps(module, ["logits", "pooled", "body.0"]) as taps:
        outputs = taps(IMAGES)
    assert torch.equal(outputs["logits"], module(IMAGES))
    assert torch.equal(outputs["body.0"], module.body[0](IMAGES))
    assert torch.equal(module.head(outputs["pooled"]), outputs["logits"])


def test_taps_leave_no_hook_behind():
    module = net()
    with Taps(module, ["pooled", "body.0"]) as taps:
        taps(IMAGES)
    assert not module.head._forward_pre_hooks
    assert not module.body[0]._forward_hooks


def test_an_unknown_tap_names_the_near_ones():
    with pytest.raises(UsageError, match="did you mean 'head'") as caught:
        Taps(net(), ["haed"])
    assert caught.value.exit_code == 2


def test_pooled_features_need_a_linear_layer():
    with pytest.raises(UsageError, match="linear layer"):
        Taps(nn.Conv2d(1, 1, 1), ["pooled"])


def shapes(student: tuple[int, ...], teacher: tuple[int, ...], name: str = "it") -> Shapes:
    return Shapes(
        name=name, student=(torch.Size(student),), teacher=(torch.Size(teacher),), samples=20, classes=5
    )


def test_the_total_is_the_weighted_sum_and_reaches_the_adapter():
    batch = Batch(labels=torch.tensor([0, 1]))
    adapters = nn.ModuleDict({"pooled": project(shapes((4,), (6,)))})
    knowledge = (
        Knowledge(name="ce", teacher=("labels",), loss=cross_entropy, weight=0.5),
        Knowledge(name="pooled", student=("pooled",), teacher=("pooled",), loss=features, weight=3.0),
    )
    student = {"logits": torch.randn(2, 5), "pooled": torch.randn(2, 4)}
    teacher = {"pooled": torch.randn(2, 6)}
    total = total_loss(knowledge, adapters, student, teacher, batch)
    by_hand = 0.5 * nn.functional.cross_entropy(student["logits"], batch.labels)
    linear = adapters["pooled"].maps[0]
    by_hand = by_hand + 3 * nn.functional.mse_loss(linear(student["pooled"]), teacher["pooled"])
    torch.testing.assert_close(total, by_hand)
    total.backward()
    assert linear.weight.grad.abs().sum() > 0


class Overwriting(nn.Module):
    """A norm whose output an activation overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Identity()
        self.pair = nn.LSTM(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.pair(images[0])
        return self.relu(self.norm(images)).flatten(1)


def test_a_tap_that_is_overwritten_in_place_is_refused():
    module = Overwriting().eval()
    with (
        torch.no_grad(),
        Taps(module, ["norm"]) as taps,
        pytest.raises(UsageError, match="overwritten") as caught,
    ):
        taps(IMAGES)
    assert "activation" in caught.value.mend
    with torch.no_grad(), Taps(module, ["relu"]) as taps:
        assert (taps(IMAGES)["relu"] >= 0).all()


def test_labelling_keeps_a_tapped_output_before_it_is_overwritten():
    module = Overwriting().eval()
    with torch.inference_mode(), Taps(module, ["norm", "relu"]) as taps:
        outputs = taps(IMAGES)
    assert (outputs["norm"] < 0).any()
    assert torch.equal(outputs["norm"].clamp_min(0), outputs["relu"])


@pytest.mark.parametrize(("tap", "words"), [("unused", "saw nothing"), ("pair", "no tensor")])
def test_a_tap_that_gives_no_tensor_is_refused(tap: str, words: str):
    with Taps(Overwriting(), [tap]) as taps, pytest.raises(UsageError, match=words):
        taps(IMAGES)
