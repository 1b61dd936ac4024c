"""Fully connected networks for rows of features, and for lists of rows that are each scored alike."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from edgekd.students.shapes import Layer
from edgekd.values.student import Space, StudentSpec

EXPANSIONS = (1.0,)  # there is nothing inside a block to widen
_WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128)
_DEPTHS = (1, 2, 3)
_STAGES = 2
_KERNELS = (1,)


class Mlp(nn.Module):
    """Linear layers with a ReLU after each, and a linear end; the rows of a list share the weights."""

    def __init__(self, layers: tuple[Layer, ...], spec: StudentSpec) -> None:
        super().__init__()
        stem, *hidden, end = layers
        self.stem = _linear_relu(stem)
        steps = iter(hidden)
        self.stages = nn.Sequential(
            *(nn.Sequential(*(_linear_relu(next(steps)) for _ in range(one.depth))) for one in spec.stages)
        )
        self.pool = nn.Identity()  # its output is what a loss taps as "pooled"
        self.classifier = nn.Linear(end.inputs, end.outputs)
        self.ends: nn.Module = nn.Flatten() if spec.resolution > 1 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map rows (B, F) to values (B, outputs), lists (B, L, F) to scores (B, L * outputs)."""
        values: Tensor = self.ends(self.classifier(self.pool(self.stages(self.stem(features)))))
        return values


def build(spec: StudentSpec, channels: int, outputs: int) -> nn.Module:
    """Return the network to train; it draws its weights from torch's global generator."""
    return Mlp(layers(spec, channels, outputs), spec)


def layers(spec: StudentSpec, channels: int, outputs: int) -> tuple[Layer, ...]:
    """Return its layers from stem to classifier."""
    rows = spec.resolution
    found = [Layer(name="stem.linear", inputs=channels, outputs=spec.stem, rows=rows)]
    for index, stage in enumerate(spec.stages):
        for at in range(stage.depth):
            name, inputs = f"stages.{index}.{at}.linear", found[-1].outputs
            found.append(Layer(name=name, inputs=inputs, outputs=stage.width, stage=index, rows=rows))
    return (*found, Layer(name="classifier", inputs=found[-1].outputs, outputs=outputs, rows=rows))


def space(resolution: int, channels: int, outputs: int, families: tuple[str, ...]) -> Space:
    """Return what may be proposed for rows of `channels` features, `resolution` rows an inference."""
    return Space(
        families=families,
        channels=channels,
        classes=outputs,
        resolutions=(resolution,),
        stems=_WIDTHS,
        widths=(_WIDTHS,) * _STAGES,
        depths=_DEPTHS,
        kernels=_KERNELS,
        expansions={},  # filled in by `space_for`
    )


def inputs(spec: StudentSpec, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of its input: a row (1, F), or a list (1, L, F)."""
    rows = (spec.resolution,) if spec.resolution > 1 else ()
    return {"features": (1, *rows, channels)}


def _linear_relu(layer: Layer) -> nn.Sequential:
    linear = nn.Linear(layer.inputs, layer.outputs)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(linear=linear, relu=nn.ReLU()))
