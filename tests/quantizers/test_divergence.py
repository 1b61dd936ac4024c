from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.quantizers.divergence import changed_labels, divergence

LOGITS = np.array([[[2.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]]], np.float32)


def test_the_divergence_of_logits_is_kullback_and_leiblers():
    other = LOGITS + np.array([0.3, -0.1, 0.2], np.float32)

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values.astype(np.float64))
        return powers / powers.sum(axis=-1, keepdims=True)

    p, q = softmax(LOGITS), softmax(other)
    by_hand = (p * np.log(p / q)).sum(axis=-1).mean()
    assert divergence({"y": LOGITS}, {"y": other}) == pytest.approx(by_hand, rel=1e-6)
    assert divergence({"y": LOGITS}, {"y": LOGITS + 7}) == pytest.approx(0.0, abs=1e-7)  # softmax is the same


def test_other_outputs_are_measured_against_their_variance():
    rng = np.random.default_rng(0)
    maps = rng.normal(5, 2, (40, 1, 4, 12, 12))
    noisy = maps + rng.normal(0, 0.2, maps.shape)
    assert divergence({"maps": maps}, {"maps": noisy}) == pytest.approx(0.01, rel=0.05)
    assert changed_labels({"maps": maps}, {"maps": noisy}) is None


def test_the_worst_output_counts_and_one_that_is_renamed_is_found_by_place():
    maps = np.random.default_rng(0).normal(size=(4, 1, 3, 5, 5))
    found = {"a_renamed": maps, "b_renamed": LOGITS[:, :, ::-1]}
    assert divergence({"a": maps, "b": LOGITS}, found) == divergence({"b": LOGITS}, {"b": LOGITS[:, :, ::-1]})


def test_what_is_not_finite_is_infinitely_far_and_labels_are_counted():
    assert divergence({"y": LOGITS}, {"y": np.full_like(LOGITS, np.nan)}) == math.inf
    assert changed_labels({"y": LOGITS}, {"y": LOGITS[:, :, ::-1]}) == 0.5
