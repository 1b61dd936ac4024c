"""Energy as a budget and as a question: refused where nothing measures it, judged and shown where something does."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd import pipeline
from edgekd.cli import profile_tables
from edgekd.devices.local import LocalDevice
from edgekd.errors import DeviceError
from edgekd.pipeline import loop, metering, single
from edgekd.pipeline.measuring import judge_in_modes
from edgekd.stages.bundle import read_manifest
from edgekd.values.job import Job
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Precision
from edgekd.values.outcome import Outcome
from edgekd.values.power import Energy
from edgekd.values.trial import History, Verdict
from tests.contracts import models
from tests.pipeline import rehearsed
from tests.pipeline.test_accepting import judged, trial
from tests.stages import gated

Run = Callable[[Job], Outcome]
MEASURED = Energy(
    source="VDD_IN (ina3221)",
    inferences=4000,
    energy_mj=2.0,
    uncertainty_mj=0.25,
    busy_mw=5200.0,
    idle_mw=1200.0,
    busy_s=10.0,
)


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Let the local device have a meter; give the engines that were measured, and for how long."""
    asked: list[tuple[str, float]] = []

    def energy(_: LocalDevice, engine: Engine, *, seconds: float = 10.0) -> Energy:
        asked.append((engine.model.file.path.name, seconds))
        return MEASURED

    monkeypatch.setattr(LocalDevice, "energy", energy)
    return asked


def limited(job: Job, limit_mj: float) -> Job:
    return rehearsed.with_(job, budget={"energy_mj": limit_mj, "sustained_minutes": None, "period_ms": None})


def test_without_a_meter_a_budget_of_energy_is_refused_before_anything_is_timed_or_trained(
    run: Run, float_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.timing.boards.rails.meters", lambda *_: ())
    monkeypatch.setattr("edgekd.distillation.loop.take_step", None)
    monkeypatch.setattr(LocalDevice, "time", None)
    with pytest.raises(DeviceError, match="no meter of energy that can be read") as caught:
        run(limited(float_job, 5.0))
    assert caught.value.exit_code == 4
    assert "energy_mj" in caught.value.what
    assert "[budget]" in caught.value.mend
    assert not (tmp_path / "run" / "trials.sqlite").exists()


def test_an_accepted_file_was_measured_for_its_energy_and_everything_that_tells_of_it_says_so(
    run: Run, float_job: Job, metered: list[tuple[str, float]]
) -> None:
    found = run(limited(float_job, 2.5))
    assert found.energy == MEASURED
    manifest = read_manifest(found.bundle)
    assert [one.energy for one in manifest.deployments] == [MEASURED]
    page, card = found.report.read_text(encoding="utf-8"), (found.bundle / "MODEL_CARD.md").read_text()
    for text in (page, card):
        assert "2.000 mJ an inference" in text
        assert "(ina3221)" in text
    assert next(name for name, _ in metered) == "health.onnx"  # before the work
    assert len(metered) == 2
    assert metered[1][1] > metered[0][1]


@pytest.mark.parametrize(("limit_mj", "breaches"), [(2.2, ("energy 2.250 mJ, limit 2.2 mJ",)), (2.3, ())])
def test_the_upper_end_of_the_interval_is_held_against_the_limit(
    limit_mj: float, breaches: tuple[str, ...], metered: list[tuple[str, float]]
) -> None:
    bench: Any = SimpleNamespace(
        job=limited(rehearsed.JOB, limit_mj), seed=0, device=LocalDevice(gated.target())
    )
    found = judge_in_modes(bench, judged("file", 1.0))
    assert found.breaches == breaches  # 2.0 +/- 0.25 mJ
    assert found.energy == MEASURED
    unasked: Any = SimpleNamespace(
        **vars(bench) | {"job": rehearsed.with_(bench.job, budget={"energy_mj": None})}
    )
    assert judge_in_modes(unasked, judged("file", 1.0)).energy is None
    assert len(metered) == 1


def test_a_run_that_energy_ended_says_which_limit_to_raise() -> None:
    over = replace(trial("file", 1.0), verdict=Verdict.TOO_SLOW, why="energy 2.250 mJ, limit 2.2 mJ")
    refused = loop.refusal("no finished student meets the budget", History(trials=(over,)), {})
    assert "energy 2.250 mJ" in refused.cause
    assert "budget.energy_mj" in refused.mend


def test_an_int8_file_that_gained_nothing_is_not_what_came_closest() -> None:
    parent = replace(
        trial("float", 1.0), verdict=Verdict.INACCURATE, why="recall 0.70, floor 0.90", accuracy=0.7
    )
    vain = replace(
        trial("int8", 2.0), verdict=Verdict.NO_GAIN, why="not faster than its parent", accuracy=0.8
    )
    refused = loop.refusal("no finished student meets the budget", History(trials=(parent, vain)), {})
    assert "floor 0.90" in refused.cause


@dataclass(kw_only=True)
class Counter:
    """A counter that grows with time by 1 W, and with each inference by 2 mJ."""

    source: str = "package-0 (rapl)"
    range_mj: float | None = 1e9
    inferences: int = 0

    def read(self) -> float:
        return 1000.0 * time.monotonic() + 2.0 * self.inferences


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Let workers live here, with a counter that sees each of their inferences, and measure briefly."""
    monkeypatch.setattr("edgekd.devices.local.Child", rehearsed.WorkerHere)
    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))
    for name in ("_PASS_S", "_TRIAL_S"):
        monkeypatch.setattr(metering, name, 0.7)
    found = Counter()
    monkeypatch.setattr("edgekd.timing.boards.rails.meters", lambda *_: (found,))

    endless = itertools.cycle

    def counted(feeds: Sequence[object]) -> Iterator[object]:
        for feed in endless(feeds):
            found.inferences += 1
            yield feed

    monkeypatch.setattr("edgekd.worker.orders.itertools.cycle", counted, raising=False)
    return found


def test_a_profile_tells_what_an_inference_costs_above_the_idle_machine(
    tmp_path: Path, counter: Counter
) -> None:
    path = models.conv_net(tmp_path / "net.onnx")
    found = pipeline.profile(path, gated.target(), precisions=(Precision.FP32,), energy=True)
    energy = found.results[0].energy
    assert energy is not None
    assert energy.energy_mj == pytest.approx(2.0, rel=0.05)
    assert energy.idle_mw == pytest.approx(1000.0, rel=0.05)
    assert energy.inferences > 0
    told = json.loads(json.dumps(profile_tables.profiled_json(found)))
    assert told["energy"]["source"] == told["results"][0]["energy"]["source"] == "package-0 (rapl)"
    assert {"energy_mj", "uncertainty_mj", "busy_mw", "idle_mw"} <= told["energy"].keys()
    assert pipeline.profile(path, gated.target(), precisions=(Precision.FP32,)).results[0].energy is None


def test_a_profile_with_energy_is_refused_where_there_is_no_meter(
    tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.timing.boards.rails.meters", lambda *_: ())
    monkeypatch.setattr(LocalDevice, "time", None)
    with pytest.raises(DeviceError, match="no meter of energy") as caught:
        pipeline.profile(models.conv_net(tmp_path / "net.onnx"), gated.target(), energy=True)
    assert "--energy" in caught.value.what + caught.value.mend
