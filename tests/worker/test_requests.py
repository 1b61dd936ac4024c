from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd import backends, runner
from edgekd.errors import DataError, IntegrityError, ModelError
from edgekd.timing.session import Parts, Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.model import Signature, TensorSpec
from edgekd.values.preprocess import Preprocess
from edgekd.worker import requests
from edgekd.worker.requests import itemise, read_images
from tests.contracts import models

RECIPE = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 8))
US = 1_000  # ns


def images(count: int = 3, side: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


class Abacus:
    """A session whose clock moves by known steps: 1 us to copy in, 10 to compute, 2 to copy out."""

    real_time = False
    signature = Signature(inputs=(IMAGE,), outputs=())

    def __init__(self) -> None:
        self.now_ns = 0
        self.ways: list[str] = []
        self.fed: list[bytes] = []

    def _answer(self, way: str, feeds: Tensors) -> dict[str, NDArray[Any]]:
        self.now_ns += 13 * US
        self.ways.append(way)
        self.fed.append(feeds["image"].tobytes())
        return {"logits": np.arange(4, dtype=np.float32)[None]}

    def run(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        return self._answer("one", feeds)

    def run_in_parts(self, feeds: Tensors) -> Parts:
        outputs = self._answer("parts", feeds)
        return Parts(copy_in_ns=US, compute_ns=10 * US, copy_out_ns=2 * US, outputs=outputs)

    def clock_ns(self) -> int:
        return self.now_ns

    def cpu_clock_ns(self) -> int:
        return self.now_ns

    def throttle_count(self) -> int:
        return 0


@pytest.fixture
def abacus(monkeypatch: pytest.MonkeyPatch) -> Abacus:
    """Give the session, with pre-processing that takes 5 us of its clock and post-processing that takes 3."""
    session, preprocess, softmax = Abacus(), runner.preprocess, runner.softmax

    def prepare(*given: Any) -> NDArray[np.float32]:
        session.now_ns += 5 * US
        return preprocess(*given)

    def finish(*given: Any) -> NDArray[np.float64]:
        session.now_ns += 3 * US
        return softmax(*given)

    monkeypatch.setattr(runner, "preprocess", prepare)
    monkeypatch.setattr(runner, "softmax", finish)
    return session


def test_every_part_is_timed_and_they_add_up_to_the_whole(abacus: Abacus):
    found = itemise(abacus, images(), RECIPE, 12)
    assert list(found.parts_ms.values()) == [0.005, 0.001, 0.010, 0.002, 0.003]
    assert found.whole_ms == pytest.approx(sum(found.parts_ms.values()), abs=1e-12) == pytest.approx(0.021)
    assert found.samples == 12


def test_both_ways_get_the_same_images_and_each_comes_first_as_often(abacus: Abacus):
    given = images()
    itemise(abacus, given, RECIPE, 12)
    rounds = list(zip(abacus.ways[::2], abacus.ways[1::2], strict=True))
    assert {tuple(sorted(pair)) for pair in rounds} == {("one", "parts")}
    assert all(before != after for before, after in pairwise(rounds))
    tensors = [runner.preprocess(image[None], RECIPE).tobytes() for image in given]
    assert abacus.fed[::2] == abacus.fed[1::2]
    assert abacus.fed[:6:2] == tensors


def test_a_round_that_lost_the_core_is_replaced(abacus: Abacus, monkeypatch: pytest.MonkeyPatch):
    abacus.real_time = True
    counts = iter([0, 0] * requests._LEAD_IN + [0, 1, 1, 1, 1, 1])
    monkeypatch.setattr(requests, "_involuntary_switches", lambda: next(counts))
    assert itemise(abacus, images(), RECIPE, 2).samples == 2
    assert len(abacus.ways) == 2 * (requests._LEAD_IN + 3)


def test_where_every_round_loses_the_core_it_ends_all_the_same(
    abacus: Abacus, monkeypatch: pytest.MonkeyPatch
):
    abacus.real_time = True
    counts = iter(range(1000))
    monkeypatch.setattr(requests, "_involuntary_switches", lambda: next(counts))
    assert itemise(abacus, images(), RECIPE, 4).samples == 3 * 4


def test_a_slow_model_gets_fewer_requests(abacus: Abacus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests, "_MOST_MS", 0.1)
    assert itemise(abacus, images(), RECIPE, 50).samples == requests._LEAST


@pytest.mark.parametrize(
    "takes",
    [
        (),
        (IMAGE, IMAGE),
        (TensorSpec(name="image", dtype="float32", shape=(1, 3, 9, 8)),),
        (TensorSpec(name="image", dtype="float32", shape=(2, 3, 8, 8)),),
        (TensorSpec(name="image", dtype="uint8", shape=(1, 3, 8, 8)),),
    ],
)
def test_a_model_that_does_not_take_what_the_recipe_makes_is_refused(
    abacus: Abacus, takes: tuple[TensorSpec, ...]
):
    abacus.signature = Signature(inputs=takes, outputs=())
    with pytest.raises(ModelError, match="pre-processing"):
        itemise(abacus, images(), RECIPE, 2)


@pytest.mark.parametrize(
    "array",
    [
        images().astype(np.float32),
        images()[0],
        images()[..., :1],
        images()[:0],
        np.array(3, dtype=np.uint8),
        np.array([{}], dtype=object),
    ],
)
def test_what_holds_no_images_for_the_recipe_is_a_data_error(tmp_path: Path, array: Any):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=r"uint8|readable"):
        read_images(Artifact.of(tmp_path / "x.npy"), RECIPE)


def test_images_that_changed_since_they_were_named_are_refused(tmp_path: Path):
    np.save(tmp_path / "x.npy", images())
    named = Artifact.of(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", images()[:1])
    with pytest.raises(IntegrityError):
        read_images(named, RECIPE)


def test_on_the_rehearsals_clock_all_of_a_request_is_computing(tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    with backends.load("rehearsal").open(models.engine(path)) as session:
        found = itemise(session, images(), RECIPE, 40)
    assert found.beside_ms == 0
    assert found.compute_ms > 0
    assert found.whole_ms == pytest.approx(found.compute_ms, rel=0.02)  # its noise is 1 % an inference


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_on_a_real_runtime_every_part_takes_time(runtime: str, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    with backends.load(runtime).open(models.engine(path, runtime)) as session:
        found = itemise(session, images(side=11), RECIPE, 10)
    assert all(ms > 0 for ms in found.parts_ms.values())
    assert found.whole_ms > 0
    assert found.samples >= 5
