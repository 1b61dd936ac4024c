"""What a spec amounts to: its blocks and layers with their sizes, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgekd.errors import ConfigError
from edgekd.values.student import StageSpec, StudentSpec

CHANNEL_STEP = 8  # vector units and int8 kernels work on channels by the eight
_LARGE_INPUT_STAGES = 4  # networks with so many stages also halve in the stem and in the first stage
_LEAST_SIDE = 2  # of a feature map, in pixels: nothing strides below it


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """One block of a network, sized; `name` is the path of its module."""

    name: str
    stage: int
    inputs: int  # channels
    inner: int
    outputs: int
    kernel: int
    stride: int
    side: int  # of its input in pixels

    @property
    def keeps_shape(self) -> bool:
        """Whether its input can be added to its output as it is."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or linear layer of the folded network, with bias; `name` is the path of its module."""

    name: str
    inputs: int  # channels
    outputs: int
    side: int = 1  # of its input in pixels
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    stage: int | None = None  # None in the stem and the head
    rows: int = 1  # of a list, which share the weights

    @property
    def params(self) -> int:
        """Weights and biases."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2 + self.outputs

    @property
    def activations(self) -> int:
        """Elements of its output for one image or list."""
        return self.outputs * halved(self.side, self.stride) ** 2 * self.rows

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.activations * (self.inputs // self.groups) * self.kernel**2


def halved(side: int, stride: int) -> int:
    """Return the output side of a convolution that pads by half its odd kernel."""
    return math.ceil(side / stride)


def inner_channels(stage: StageSpec) -> int:
    """Return expansion * width as a multiple of 8, at least 8."""
    return max(CHANNEL_STEP, int(stage.expansion * stage.width / CHANNEL_STEP + 0.5) * CHANNEL_STEP)


def stem_layer(spec: StudentSpec, channels: int) -> Layer:
    """Return the first convolution."""
    stride = _stride(spec.resolution, wanted=len(spec.stages) >= _LARGE_INPUT_STAGES)
    return Layer(
        name="stem.conv", inputs=channels, outputs=spec.stem, side=spec.resolution, kernel=3, stride=stride
    )


def block_shapes(spec: StudentSpec) -> Iterator[BlockShape]:
    """Yield the blocks in order; the first of each stage but the first has stride 2.

    From four stages on, made for large inputs, the first stage has stride 2 as well.
    """
    stem = stem_layer(spec, channels=1)
    side, channels = halved(spec.resolution, stem.stride), spec.stem
    for index, stage in enumerate(spec.stages):
        for at in range(stage.depth):
            strides = at == 0 and (index > 0 or len(spec.stages) >= _LARGE_INPUT_STAGES)
            shape = BlockShape(
                name=f"stages.{index}.{at}",
                stage=index,
                inputs=channels,
                inner=inner_channels(stage),
                outputs=stage.width,
                kernel=stage.kernel,
                stride=_stride(side, wanted=strides),
                side=side,
            )
            yield shape
            side, channels = halved(side, shape.stride), stage.width


def last_side(spec: StudentSpec) -> int:
    """Return the side of the last feature map in pixels."""
    last = list(block_shapes(spec))[-1]
    return halved(last.side, last.stride)


def image_layers(
    spec: StudentSpec,
    channels: int,
    outputs: int,
    block: Callable[[BlockShape], tuple[Layer, ...]],
    last: Callable[[int, int], Layer | None],
) -> tuple[Layer, ...]:
    """Return the layers of a folded network of convolutions with one classifier.

    Args:
        spec: of an image family.
        channels: of the image.
        outputs: width of the classifier.
        block: gives the layers of a block.
        last: gives the convolution before the pool, of channels and side, where there is one.

    Raises:
        ConfigError: the image is a single pixel.

    """
    if spec.resolution < _LEAST_SIDE:
        raise ConfigError(
            f"no network can be built from {spec}", mend=f"give a resolution of at least {_LEAST_SIDE}"
        )
    blocks = (layer for shape in block_shapes(spec) for layer in block(shape))
    final = last(spec.stages[-1].width, last_side(spec))
    pooled = final.outputs if final else spec.stages[-1].width
    classifier = Layer(name="classifier", inputs=pooled, outputs=outputs)
    return (stem_layer(spec, channels), *blocks, *([final] if final else []), classifier)


def image_inputs(spec: StudentSpec, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of an image family's input."""
    return {"images": (1, channels, spec.resolution, spec.resolution)}


def refuse_nonsense(spec: StudentSpec) -> None:
    """Check that a network can be built from the spec, whatever its family.

    Raises:
        ConfigError: a size is not positive, a kernel is even, or there is no stage.

    """
    sizes = [spec.resolution, spec.stem, *(n for s in spec.stages for n in (s.width, s.depth, s.kernel))]
    if not spec.stages or min(sizes) < 1:
        raise ConfigError(
            f"no network can be built from {spec}",
            mend="give one stage or more, and positive resolution, widths, depths and kernels",
        )
    if any(stage.kernel % 2 == 0 or stage.expansion <= 0 for stage in spec.stages):
        raise ConfigError(
            f"no network can be built from {spec}", mend="give odd kernels, positive expansions"
        )


def _stride(side: int, *, wanted: bool) -> int:
    return 2 if wanted and halved(side, 2) >= _LEAST_SIDE else 1
