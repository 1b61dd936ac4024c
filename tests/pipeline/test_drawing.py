from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgekd.errors import BuildError
from edgekd.pipeline import drawing
from edgekd.pipeline.measuring import Judged
from edgekd.pipeline.workbench import Workbench
from tests.contracts import models


def judged(path: Path, runtime: str, *, breaches: tuple[str, ...] = ()) -> Judged:
    return cast("Judged", SimpleNamespace(engine=models.engine(path, runtime), breaches=breaches))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.conv_net(tmp_path / "m.onnx")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return cast("Workbench", SimpleNamespace(store=SimpleNamespace(root=tmp_path), device=None, seed=3))


def drawn(model: Path) -> Any:
    """Two builds of 2 and 1 ms, of which the second was picked."""
    builds = [SimpleNamespace(latency=SimpleNamespace(percentile=lambda _, ms=ms: ms)) for ms in (2.0, 1.0)]
    return SimpleNamespace(
        draws=builds, picked=1, build_spread=0.3, launch_spread=0.01, failed=(), range=1.0,
        engine=models.engine(model, "tensorrt"),
    )  # fmt: skip


def test_nothing_is_built_for_a_runtime_whose_builds_are_alike(
    bench: Workbench, model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drawing, "lottery", None)
    for runtime in ("onnxruntime", "openvino", "rehearsal", "trtexec"):
        one = judged(model, runtime)
        assert drawing.fastest_build(bench, one) == (one, None)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-graph", "tensorrt-dla"])
def test_the_fastest_of_several_builds_is_judged_beside_the_accepted_one(
    bench: Workbench, model: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
):
    one, again, other = (judged(model, runtime) for _ in range(3))
    asked: list[Any] = []
    monkeypatch.setattr(
        drawing, "lottery", lambda *given, **named: asked.append((given, named)) or drawn(model)
    )
    monkeypatch.setattr(drawing, "judge", lambda *_: (again, other))
    found, builds = drawing.fastest_build(bench, one)
    assert found is other
    assert builds is not None
    assert (builds.p50_ms, builds.picked, builds.range) == ((2.0, 1.0), 1, 1.0)
    (((_, _, engine, protocol), named),) = asked
    assert (engine, protocol.seed, named) == (one.engine, 3, {"builds": drawing.BUILDS})


def test_a_drawn_build_that_breaks_a_limit_does_not_ship(
    bench: Workbench, model: Path, monkeypatch: pytest.MonkeyPatch
):
    again, other = judged(model, "tensorrt"), judged(model, "tensorrt", breaches=("p99 of 3 ms",))
    monkeypatch.setattr(drawing, "lottery", lambda *_, **__: drawn(model))
    monkeypatch.setattr(drawing, "judge", lambda *_: (again, other))
    assert drawing.fastest_build(bench, judged(model, "tensorrt")) == (again, None)


def test_builds_that_fail_leave_the_accepted_one(
    bench: Workbench, model: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise BuildError("4 of 5 builds failed")

    monkeypatch.setattr(drawing, "lottery", fail)
    one = judged(model, "tensorrt")
    assert drawing.fastest_build(bench, one) == (one, None)
