"""What a student is believed to be worth before it was trained, and its encoding for the accuracy surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log2, log10

import numpy as np
from numpy.typing import NDArray

from edgekd.students import feature_names, features
from edgekd.surrogates.accuracy import Encoded, encoded
from edgekd.values.student import Space, StudentSpec

_ORDINAL = 3.0  # scales a choice in [0, 1] so that two random ones lie as far apart as two random categories


def capacity(spec: StudentSpec, space: Space) -> float:
    """Return the prior belief in a student, in decades.

    Arithmetic counts whole; parameters half, since width pays late in a network, where it costs little time;
    depth half; resolution whole. Wide kernels spend arithmetic on less. Widths that double where the image
    halves are the rule that holds across families (Radosavovic et al. 2020, section 4).
    """
    numbers = features(spec, channels=space.channels, classes=space.classes)
    named = dict(zip(feature_names(spec.family), numbers))
    depth, side = log10(sum(stage.depth for stage in spec.stages)), log10(spec.resolution)
    size = named["log10_macs"] + 0.5 * named["log10_params"]
    widths = [stage.width for stage in spec.stages]
    uneven = sum(abs(log2(late / early) - 1) for early, late in pairwise(widths))
    return size + 0.5 * depth + side - 0.25 * named["macs_share_kernel_5"] - 0.2 * uneven


def encode_specs(specs: Sequence[StudentSpec], space: Space) -> Encoded:
    """Return students as what they amount to, what was chosen, and the belief in them."""
    numbers = [features(spec, channels=space.channels, classes=space.classes) for spec in specs]
    choices = np.array([_choices(spec, space) for spec in specs])
    belief = np.array([capacity(spec, space) for spec in specs])
    positions = 3 + 4 * len(space.widths)
    return encoded(np.array(numbers), choices, belief, positions=positions)


def _choices(spec: StudentSpec, space: Space) -> NDArray[np.float64]:
    found = [float(spec.family == family) for family in space.families]
    found += [_place(spec.resolution, space.resolutions), _place(spec.stem, space.stems)]
    for stage, widths in zip(spec.stages, space.widths):
        expansions = space.expansions[spec.family]
        found += [_place(stage.width, widths), _place(stage.depth, space.depths)]
        found += [_place(stage.kernel, space.kernels), _place(stage.expansion, expansions)]
    return np.array(found)


def _place(value: float, options: Sequence[float]) -> float:
    ordered = sorted(options)
    return _ORDINAL * ordered.index(value) / max(len(ordered) - 1, 1) if value in ordered else 0.0
