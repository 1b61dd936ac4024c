from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.devices.local import LocalDevice
from edgekd.errors import BuildError, UsageError
from edgekd.stages.lottery import lottery, spreads
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Precision
from edgekd.values.target import Profile, Target
from tests.contracts import models

QUICK = Protocol(launches=2, blocks=1, samples=20, warmup_ms=1)


def device(runtime: str) -> LocalDevice:
    profile = Profile(name="here", description="", runtimes={runtime: (Precision.FP32,)})
    return LocalDevice(Target(profile=profile, device="local", runtimes=(runtime,), threads=1))


@pytest.mark.parametrize("runtime", ["rehearsal", "onnxruntime"])
def test_several_builds_are_timed_against_each_other_and_the_fastest_is_picked(tmp_path: Path, runtime: str):
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"), runtime)
    found = lottery(tmp_path / "draws", device(runtime), engine, QUICK, builds=2)
    assert len({draw.engine.model.file.sha256 for draw in found.draws}) == 2
    assert engine.model.file.sha256 not in {draw.engine.model.file.sha256 for draw in found.draws}
    means = [math.fsum(draw.launch_ms) for draw in found.draws]
    assert found.picked == means.index(min(means))
    assert found.engine == found.draws[found.picked].engine
    assert found.latency.protocol.seed not in {
        QUICK.seed,
        QUICK.seed + 1,
    }  # not the samples it was picked for
    assert found.range >= 0
    assert found.build_spread >= 0
    assert found.launch_spread >= 0
    assert found.failed == ()


class Drawing:
    """A device whose builds have the speeds it is given."""

    name = "drawing"

    def __init__(self, speeds: Sequence[float], *, scatter: float, failing: Sequence[int] = ()) -> None:
        self._speeds, self._scatter, self._failing = speeds, scatter, failing
        self._builds: dict[str, float] = {}
        self.asked: list[int] = []

    def build(self, engine: Engine) -> object:
        at = len(self._builds)
        self._builds[engine.model.file.sha256] = self._speeds[at]
        if at in self._failing:
            raise BuildError("no memory", cause=f"build {at}")
        return SimpleNamespace(open_ms=1000.0 + at)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        self.asked.append(len(engines))
        return tuple(self._latency(engine, protocol) for engine in engines)

    def _latency(self, engine: Engine, protocol: Protocol) -> Latency:
        chance = random.Random(f"{engine.model.file.sha256}{protocol.seed}")  # noqa: S311 - noise, not a secret
        samples = []
        for _ in range(protocol.launches):
            launch = self._builds[engine.model.file.sha256] * math.exp(chance.gauss(0, self._scatter))
            samples += [launch] * protocol.blocks * protocol.samples
        sizes = (protocol.samples,) * (protocol.blocks * protocol.launches)
        kept = {"cpu_ms": tuple(samples), "block_sizes": sizes, "conditions": None, "trust": None}
        return Latency(samples_ms=tuple(samples), protocol=protocol, **kept)  # type: ignore[arg-type]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return models.engine(models.conv_net(tmp_path / "m.onnx"), "tensorrt")


def test_builds_that_differ_more_than_launches_do_are_told_apart(engine: Engine, tmp_path: Path):
    drawing = Drawing((1.30, 1.00, 1.20, 1.45), scatter=0.001)
    found = lottery(tmp_path / "d", drawing, engine, replace(QUICK, launches=4), builds=4)
    assert found.picked == 1
    assert found.range == pytest.approx(0.45, abs=0.02)
    assert found.build_spread == pytest.approx(0.156, abs=0.02)
    assert found.launch_spread < 0.005
    assert found.matters
    assert [draw.build_ms for draw in found.draws] == [1000.0, 1001.0, 1002.0, 1003.0]
    assert drawing.asked == [4, 1]  # all in one measurement, in turns; then the picked one again


def test_equal_builds_on_a_noisy_machine_are_no_lottery(engine: Engine, tmp_path: Path):
    found = lottery(
        tmp_path / "d", Drawing((1.0,) * 5, scatter=0.05), engine, replace(QUICK, launches=8), builds=5
    )
    assert not found.matters
    assert found.launch_spread == pytest.approx(0.05, rel=0.5)


def test_a_build_that_fails_is_told_and_left_out(engine: Engine, tmp_path: Path):
    found = lottery(
        tmp_path / "d", Drawing((1.0, 1.1, 1.2), scatter=0.01, failing=(0,)), engine, QUICK, builds=3
    )
    assert len(found.draws) == 2
    assert "build 0" in found.failed[0]
    with pytest.raises(BuildError, match="2 of 3 builds failed"):
        lottery(tmp_path / "e", Drawing((1.0,) * 3, scatter=0.01, failing=(0, 1)), engine, QUICK, builds=3)


@pytest.mark.parametrize(("builds", "launches"), [(1, 2), (21, 2), (5, 1)])
def test_too_few_to_show_a_spread_are_refused(engine: Engine, tmp_path: Path, builds: int, launches: int):
    with pytest.raises(UsageError, match="show no spread"):
        lottery(
            tmp_path, Drawing((1.0,), scatter=0.0), engine, replace(QUICK, launches=launches), builds=builds
        )


def test_what_is_no_onnx_cannot_be_drawn_again(engine: Engine, tmp_path: Path):
    path = tmp_path / "m.xml"
    path.write_text("<net/>")
    other = models.engine(path, "openvino")
    with pytest.raises(UsageError, match=r"\.xml cannot be built several times"):
        lottery(tmp_path / "d", Drawing((1.0,), scatter=0.0), other, QUICK)


def test_spreads_find_the_components_that_made_the_data():
    chance = random.Random(1)  # noqa: S311 - noise, not a secret
    found = []
    for _ in range(60):
        builds = [chance.gauss(0, 0.08) for _ in range(8)]
        found.append(spreads([[math.exp(one + chance.gauss(0, 0.02)) for _ in range(4)] for one in builds]))
    between, within = (math.sqrt(math.fsum(one * one for one in column) / 60) for column in zip(*found))
    assert between == pytest.approx(0.08, rel=0.1)
    assert within == pytest.approx(0.02, rel=0.1)
    assert spreads([[1.0, 1.0], [1.0, 1.0]]) == (0.0, 0.0)
