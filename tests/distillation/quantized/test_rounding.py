from __future__ import annotations

import torch
from torch import Tensor

from edgekd.distillation.quantized.rounding import Carried, Term, on_grid, rounded, tempered

LOW, HIGH = torch.tensor(-4), torch.tensor(3)


def floats(*values: float) -> Carried:
    return Carried(terms=(Term(torch.tensor(values, requires_grad=True)),))


def test_halves_round_to_even_and_what_leaves_the_grid_is_clamped():
    carried = floats(-9.0, -1.5, -0.5, 0.5, 1.5, 2.5, 9.0)
    assert on_grid(carried, torch.tensor(1.0), LOW, HIGH).tolist() == [-4, -2, 0, 0, 2, 2, 3]


def test_gradients_pass_inside_the_grid_and_stop_outside():
    carried = floats(-9.0, 0.3, 9.0)
    on_grid(carried, torch.tensor(1.0), LOW, HIGH).sum().backward()
    assert carried.terms[0].numbers.grad.tolist() == [0, 1, 0]


def test_a_scale_learns_by_the_gradient_of_lsq():
    scale = torch.tensor(0.5, requires_grad=True)
    carried = floats(-9.0, 0.3, 1.1, 9.0)
    (on_grid(carried, scale, LOW, HIGH) * scale).sum().backward()
    inside = sum(round(x / 0.5) - x / 0.5 for x in (0.3, 1.1))  # Esser et al. 2020, eq. 3
    assert torch.isclose(scale.grad, torch.tensor(-4 + inside + 3))


def test_a_tempered_scale_is_itself_and_learns_more_slowly():
    scale = torch.tensor(0.37, requires_grad=True)
    slow = tempered(scale, 16, 4)
    slow.backward()
    assert slow.item() == scale.item()
    assert scale.grad.item() == 1 / 8


def test_integers_are_scaled_by_one_factor_as_a_kernel_does_it():
    # (numbers * factor) / scale and numbers * (factor / scale) differ in float32: kernels do the latter.
    numbers = torch.randint(
        -(1 << 20), 1 << 20, (200_000,), generator=torch.Generator().manual_seed(0)
    ).float()
    factor, scale = torch.tensor(0.00123), torch.tensor(0.0456)
    found = on_grid(
        Carried(terms=(Term(numbers, factor),)), scale, torch.tensor(-(1 << 20)), torch.tensor(1 << 20)
    )
    assert torch.equal(found, (numbers * (factor / scale)).round())
    assert not torch.equal(found, (numbers * factor / scale).round())


def test_a_sum_of_terms_is_rounded_once():
    terms = (Term(torch.tensor([1.0]), torch.tensor(0.3)), Term(torch.tensor([1.0]), torch.tensor(0.3)))
    assert on_grid(Carried(terms=terms), torch.tensor(1.0), LOW, HIGH).item() == 1  # not 0 + 0


def test_rectified_tensors_have_nothing_below_zero():
    carried = floats(-2.0, 2.0)._replace(rectified=True)
    assert carried.real.tolist() == [0, 2]
    assert on_grid(carried, torch.tensor(1.0), LOW, HIGH).tolist() == [0, 2]


def test_what_is_not_a_number_stays_so_instead_of_becoming_a_plausible_integer():
    assert on_grid(floats(float("nan")), torch.tensor(1.0), LOW, HIGH).isnan().all()


def test_rounding_is_torch_s_own_forward():
    numbers: Tensor = torch.linspace(-3, 3, 1001)
    assert torch.equal(rounded(numbers), numbers.round())
