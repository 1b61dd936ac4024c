"""Gated recurrent networks (Cho et al. 2014) that read letters, trained over windows and shipped as one step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgekd.students.shapes import Layer
from edgekd.values.student import Space, StudentSpec

EXPANSIONS = (1.0,)  # there is nothing inside a cell to widen
_STEMS = (16, 32, 64)  # numbers that a letter is first turned into
_WIDTHS = (32, 48, 64, 96, 128, 160, 192, 256)
_DEPTHS = (1, 2)
_KERNELS = (1,)
_GATES = 3  # reset, update, new


class Gru(nn.Module):
    """Letters, turned into numbers, recurrent layers and a linear end, from the state 0."""

    def __init__(self, spec: StudentSpec, letters: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Embedding(letters, spec.stem)
        stages, width = [], spec.stem
        for stage in spec.stages:
            stages.append(nn.GRU(width, stage.width, stage.depth, batch_first=True))
            width = stage.width
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, letters: Tensor) -> Tensor:
        """Map letters (B, T), int64, to logits (B, T, outputs) of what follows each."""
        found: Tensor = self.stem(letters)
        for stage in self.stages:
            found, _ = stage(found)
        logits: Tensor = self.classifier(found)
        return logits


class Step(nn.Module):
    """One step of a `Gru`: a letter as numbers that are all 0 but one, and the states of all layers side by side.

    What the embedding makes of a letter is linear, and so is what the first cell makes of that: one matrix does both.
    """

    def __init__(self, whole: Gru) -> None:
        super().__init__()
        layers = [(stage, at) for stage in map(_gru, whole.stages) for at in range(stage.num_layers)]
        self.cells = nn.ModuleList(_cell(stage, at) for stage, at in layers)
        first = cast("nn.GRUCell", self.cells[0])
        weight = first.weight_ih.detach().double() @ whole.stem.weight.detach().double().T
        first.weight_ih = nn.Parameter(weight.to(first.weight_ih.dtype))
        first.input_size = weight.shape[1]
        self.classifier = whole.classifier
        self.widths = tuple(stage.hidden_size for stage, _ in layers)

    def forward(self, letter: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map a letter (1, letters) and a state (1, sum of widths) to logits (1, outputs) and the next state."""
        if len(self.widths) == 1:
            found = self.cells[0](letter, state)
            return self.classifier(found), found
        before, after, found = torch.split(state, list(self.widths), dim=1), [], letter
        for at, cell in enumerate(self.cells):
            found = cell(found, before[at])
            after.append(found)
        return self.classifier(found), torch.cat(after, dim=1)


def build(spec: StudentSpec, channels: int, outputs: int) -> nn.Module:
    """Return the network to train; it draws its weights from torch's global generator."""
    return Gru(spec, channels, outputs)


def step(module: nn.Module) -> nn.Module:
    """Return one step of a network, for inference."""
    assert isinstance(module, Gru)  # noqa: S101 - of this family
    return Step(module).eval().requires_grad_(requires_grad=False)


def layers(spec: StudentSpec, channels: int, outputs: int) -> tuple[Layer, ...]:
    """Return the matrices of one step, named after where they stand in it."""
    found: list[Layer] = []
    width, at = channels, 0
    for index, stage in enumerate(spec.stages):
        for _ in range(stage.depth):
            gates = _GATES * stage.width
            found += [
                Layer(name=f"cells.{at}.input", inputs=width, outputs=gates, stage=index),
                Layer(name=f"cells.{at}.state", inputs=stage.width, outputs=gates, stage=index),
            ]
            width, at = stage.width, at + 1
    return (*found, Layer(name="classifier", inputs=width, outputs=outputs))


def space(resolution: int, channels: int, outputs: int, families: tuple[str, ...]) -> Space:
    """Return what may be proposed for texts of an alphabet of `channels` letters."""
    return Space(
        families=families,
        channels=channels,
        classes=outputs,
        resolutions=(resolution,),
        stems=_STEMS,
        widths=(_WIDTHS,),
        depths=_DEPTHS,
        kernels=_KERNELS,
        expansions={},  # filled in by `space_for`
    )


def inputs(spec: StudentSpec, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the whole shapes of what a step takes: a letter, and the state of every layer."""
    return {"letter": (1, channels), "state": (1, sum(stage.width * stage.depth for stage in spec.stages))}


def _gru(module: nn.Module) -> nn.GRU:
    assert isinstance(module, nn.GRU)  # noqa: S101 - stages hold nothing else
    return module


def _cell(stage: nn.GRU, at: int) -> nn.GRUCell:
    """Take one layer out of a stage."""
    cell = nn.GRUCell(stage.input_size if at == 0 else stage.hidden_size, stage.hidden_size)
    held = {name: getattr(stage, f"{name}_l{at}").detach().clone() for name in dict(cell.named_parameters())}
    cell.load_state_dict(held)
    return cell
