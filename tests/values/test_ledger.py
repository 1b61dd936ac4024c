from __future__ import annotations

import pytest

from edgekd.values.ledger import Ledger

LEDGER = Ledger(
    preprocess_ms=0.02,
    copy_in_ms=0.001,
    compute_ms=0.3,
    copy_out_ms=0.002,
    postprocess_ms=0.01,
    whole_ms=0.34,
    samples=50,
)


def test_the_parts_come_in_the_order_in_which_they_happen():
    assert list(LEDGER.parts_ms) == ["pre-processing", "copy in", "compute", "copy out", "post-processing"]
    assert list(LEDGER.parts_ms.values()) == [0.02, 0.001, 0.3, 0.002, 0.01]


def test_what_a_request_takes_beside_the_model_is_all_but_the_computing():
    assert LEDGER.beside_ms == pytest.approx(0.033)
