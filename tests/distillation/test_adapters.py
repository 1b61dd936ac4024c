from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgekd.distillation import adapters
from edgekd.distillation.balancing import Magnitude, Uncertainty, balancer
from edgekd.distillation.bank import Bank
from edgekd.distillation.knowledge import Batch, Shapes
from edgekd.distillation.losses import information
from edgekd.errors import ConfigError

BATCH = Batch(labels=torch.tensor([0, 1, 1]), indices=torch.tensor([4, 7, 2]), progress=0.5)
MAP, SMALL, WIDE, VECTOR = (4, 8, 8), (6, 4, 4), (6, 16, 16), (5,)


def shapes(student: tuple[tuple[int, ...], ...], teacher: tuple[tuple[int, ...], ...]) -> Shapes:
    return Shapes(
        name="it",
        student=tuple(map(torch.Size, student)),
        teacher=tuple(map(torch.Size, teacher)),
        samples=9,
        classes=3,
    )


def through(adapter: nn.Module, given: Shapes) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    students = tuple(torch.randn(3, *shape, requires_grad=True) for shape in given.student)
    teachers = tuple(torch.randn(3, *shape) for shape in given.teacher)
    return adapter(students, teachers, BATCH)


@pytest.mark.parametrize(
    "make", [adapters.project, adapters.regress, adapters.generate, adapters.Fuse, adapters.Standardise]
)
@pytest.mark.parametrize("teacher", [MAP, SMALL, WIDE, (6, 5, 5), (6, 11, 11)])
def test_a_map_of_any_size_and_width_meets_the_teacher_s(make: object, teacher: tuple[int, ...]):
    given = shapes((MAP,), (teacher,))
    students, teachers = through(make(given), given)
    assert students[0].shape == teachers[0].shape == (3, *teacher)


def test_several_maps_are_fused_from_the_deepest_up():
    given = shapes((MAP, (8, 4, 4), (8, 2, 2)), ((6, 8, 8), (7, 4, 4), (9, 4, 4)))
    fuse = adapters.Fuse(given, width=5)
    students, teachers = through(fuse, given)
    assert [s.shape for s in students] == [t.shape for t in teachers]
    students[0].sum().backward()  # the shallowest level hears of all below it
    assert all(one[0].weight.grad is not None for one in fuse.enter)


@pytest.mark.parametrize("make", [adapters.project, adapters.regress, adapters.Standardise])
def test_vectors_are_mapped_by_a_linear_layer(make: object):
    given = shapes((VECTOR,), ((7,),))
    assert through(make(given), given)[0][0].shape == (3, 7)


@pytest.mark.parametrize(
    "make",
    [
        adapters.project,
        adapters.regress,
        adapters.generate,
        adapters.Fuse,
        adapters.Standardise,
        adapters.Gaussian,
    ],
)
def test_shapes_that_no_adapter_can_match_are_refused(make: object):
    with pytest.raises(ConfigError, match="cannot match") as caught:
        make(shapes((VECTOR,), (MAP,)))
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="cannot match"):
        make(shapes(((4, 7),), ((4, 7),)))


def test_standardised_features_have_mean_nought_and_variance_one():
    given = shapes((VECTOR,), ((7,),))
    for side in through(adapters.Standardise(given), given):
        torch.testing.assert_close(side[0].mean(dim=0), torch.zeros(7), atol=1e-5, rtol=0)
        torch.testing.assert_close(side[0].var(dim=0, correction=0), torch.ones(7), atol=1e-2, rtol=0)


def test_hidden_channels_are_whole_and_others_for_each_sample():
    maps = adapters.HideChannels(0.5)(torch.ones(64, 32, 2, 2))
    assert set(maps.mean(dim=(2, 3)).unique().tolist()) == {0.0, 1.0}
    assert 0.4 < float(maps.mean()) < 0.6
    assert len({tuple(row) for row in maps[:, :, 0, 0].tolist()}) > 1


def test_a_stage_s_head_answers_with_logits():
    given = shapes((MAP, VECTOR), ((3,), (3,)))
    assert [s.shape for s in through(adapters.head(given), given)[0]] == [(3, 3), (3, 3)]


def test_the_experts_come_to_a_choice_of_one():
    given = shapes((VECTOR,), ((7,),))
    experts = adapters.Experts(given, experts=4)
    late = Batch(labels=BATCH.labels, progress=1.0)
    students, teachers = (torch.randn(3, 5),), (torch.randn(3, 7),)
    said = torch.stack([one(students[0]) for one in experts.experts], dim=1)
    chosen = experts(students, teachers, late)[0][0]
    assert all(any(torch.allclose(row, one) for one in ones) for row, ones in zip(chosen, said))


def test_the_bank_gives_the_odds_of_contrastive_distillation():
    given = shapes((VECTOR,), ((7,),))
    bank = Bank(given, width=4, tau=0.5)
    before = {name: value.clone() for name, value in bank.named_buffers()}
    students, teachers = (torch.randn(3, 5),), (torch.randn(3, 7),)
    (odds,), _ = bank(students, teachers, BATCH)
    own = nn.functional.normalize(bank.student(students[0]))
    kept = before["teachers"]
    raw = torch.exp(torch.cat([(own * kept[BATCH.indices]).sum(1, keepdim=True), own @ kept.T], 1) / 0.5)
    z = raw.mean() * 9  # fixed by the first batch
    chance = raw / z / (raw / z + 9 / 9)  # K = N: the published h with K / N = 1
    found = torch.sigmoid(odds)
    same = torch.zeros_like(found, dtype=torch.bool)
    same[torch.arange(3), 1 + BATCH.indices] = True  # a sample is no negative of itself
    torch.testing.assert_close(found[~same], chance[~same])
    assert (odds[same] == -torch.inf).all()
    torch.testing.assert_close(bank.norms[0], z.log())


def test_the_bank_remembers_half_and_never_trains():
    given = shapes((VECTOR,), ((7,),))
    bank = Bank(given, width=4)
    before = bank.teachers.clone()
    students, teachers = (torch.randn(3, 5),), (torch.randn(3, 7),)
    odds = bank(students, teachers, BATCH)
    new = nn.functional.normalize(bank.teacher(teachers[0]))
    mixed = nn.functional.normalize((before[BATCH.indices] + new) / 2)
    torch.testing.assert_close(bank.teachers[BATCH.indices], mixed)
    others = [at for at in range(9) if at not in BATCH.indices]
    assert torch.equal(bank.teachers[others], before[others])
    assert bank.classes.tolist() == [-1, -1, 1, -1, 0, -1, -1, 1, -1]
    information.crd(odds[0][0], odds[1][0], BATCH).backward()
    assert all(torch.isfinite(one.grad).all() for one in bank.parameters())
    assert not any(buffer.requires_grad for buffer in bank.buffers())


def test_samples_of_the_own_class_are_no_negatives_once_the_bank_knows_them():
    bank = Bank(shapes((VECTOR,), ((7,),)), width=4)
    pair = (torch.randn(3, 5),), (torch.randn(3, 7),)
    bank(*pair, BATCH)
    (odds,), _ = bank(*pair, BATCH)
    assert (
        odds[1, 1 + 7] == odds[1, 1 + 2] == odds[2, 1 + 7] == -torch.inf
    )  # samples 7 and 2 are both of class 1
    assert torch.isfinite(odds[0, 1 + 7])
    assert torch.isfinite(odds[:, 0]).all()


def test_fewer_negatives_than_samples_are_drawn_anew_each_time():
    bank = Bank(shapes((VECTOR,), ((7,),)), width=4, negatives=5)
    pair = (torch.randn(3, 5),), (torch.randn(3, 7),)
    assert bank(*pair, BATCH)[0][0].shape == (3, 6)


def test_learned_uncertainty_settles_where_each_loss_is_as_large_as_its_weight_says():
    balance = Uncertainty(["a", "b"])
    terms, weights = [torch.tensor(4.0), torch.tensor(0.5)], [1.0, 2.0]
    total = balance(terms, weights)
    assert float(total.detach()) == pytest.approx(5.0)  # at the start: the plain sum
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        balance(terms, weights).backward()
        optimizer.step()
    expected = [math.log(4.0), math.log(1.0)]
    torch.testing.assert_close(balance.log_variances.detach(), torch.tensor(expected), atol=1e-3, rtol=0)


def test_magnitudes_make_weights_into_shares_whatever_the_units():
    balance = Magnitude(["a", "b"])
    for _ in range(3):
        total = balance([torch.tensor(4000.0), torch.tensor(0.001)], [1.0, 3.0])
    assert float(total) == pytest.approx(4.0)
    assert float(balance([torch.tensor(2000.0), torch.tensor(0.001)], [1.0, 3.0])) == pytest.approx(
        3.5, abs=0.02
    )


def test_fixed_weights_need_no_balancer():
    assert balancer("fixed", ["a"]) is None
