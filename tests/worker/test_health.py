from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd import backends
from edgekd.errors import BackendMissing
from edgekd.worker import health


def test_the_shipped_model_is_the_one_its_docstring_describes():
    model = onnx.load(str(health.MODEL))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "GlobalAveragePool"]
    assert helper.get_node_attr_value(model.graph.node[0], "pads") == [1, 1, 1, 1]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), health.WEIGHTS)
    assert health.MODEL.stat().st_size < 2000


def test_what_numpy_expects_is_neither_zero_nor_the_same_in_every_channel():
    found = health.expected().ravel()
    assert len(set(found.tolist())) == 4
    assert found.min() > 0.01


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "rehearsal"])  # what edgekd installs
def test_every_runtime_here_works(name: str):
    found = health.health(name)
    assert found.works, found.problem
    assert found.max_error is not None
    assert found.max_error <= 1e-5


def test_a_runtime_that_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> backends.Backend:
        raise BackendMissing(
            "the runtime openvino does not import", cause="No module", mend="pip install openvino"
        )

    monkeypatch.setattr(backends, "load", absent)
    found = health.health("openvino")
    assert (found.works, found.version, found.mend) == (False, "", "pip install openvino")


def broken(answer: object) -> SimpleNamespace:
    """Make a backend that imports, lists itself and gives `answer`, or raises it."""

    def run(feeds: object) -> dict[str, object]:
        if isinstance(answer, Exception):
            raise answer
        return {"answer": answer}

    @contextmanager
    def opened(engine: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(run=run)

    return SimpleNamespace(version=lambda: "1.0", open=opened)


def test_a_runtime_that_imports_and_computes_nonsense_does_not_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "load", lambda name: broken(health.expected() + np.float32(0.01)))
    found = health.health("onnxruntime")
    assert not found.works
    assert found.max_error == pytest.approx(0.01, rel=1e-3)
    assert "off by 0.01" in found.problem
    assert "force-reinstall onnxruntime" in found.mend


def test_a_runtime_that_answers_nan_does_not_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "load", lambda name: broken(health.expected() * np.float32("nan")))
    assert not health.health("onnxruntime").works


def test_a_runtime_that_raises_does_not_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "load", lambda name: broken(OSError("libgomp.so.1: cannot open")))
    found = health.health("openvino")
    assert not found.works
    assert "libgomp" in found.problem
