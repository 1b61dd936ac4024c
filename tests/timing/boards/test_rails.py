from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import DeviceError
from edgekd.timing.boards.energy import energy_per_inference, from_counter, from_power
from edgekd.timing.boards.rails import Meter, Recording, measure_energy, meters, read_rails, recording
from edgekd.values.power import Energy, Rail, Trace

RECORDED = Path(__file__).with_name("recorded")


def put(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")


def channel(root: Path, chip: str, number: int, name: str, supply: tuple[int, int]) -> None:
    millivolts, milliamperes = supply
    put(root, f"{chip}/name", "ina3221\n")
    put(root, f"{chip}/in{number}_label", f"{name}\n")
    put(root, f"{chip}/in{number}_input", f"{millivolts}\n")
    put(root, f"{chip}/curr{number}_input", f"{milliamperes}\n")


@pytest.fixture(autouse=True)
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def says(folder: Path, name: str, sample: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\ngrep -v '^# ' '{RECORDED / sample}.txt'\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_rails_are_read_by_label_and_a_sum_of_shunts_is_none(tmp_path: Path):
    chip = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    channel(tmp_path, chip, 1, "VDD_IN", (5000, 1000))
    channel(tmp_path, chip, 2, "VDD_CPU_GPU_CV", (5000, 100))
    channel(tmp_path, chip, 3, "NC", (5000, 7))
    put(tmp_path, f"{chip}/in7_label", "sum of shunt voltages\n")
    put(tmp_path, f"{chip}/in7_input", "680\n")
    assert read_rails(tmp_path) == (
        Rail(name="VDD_IN", power_mw=5000.0),
        Rail(name="VDD_CPU_GPU_CV", power_mw=500.0),
    )


def test_a_monitor_that_knows_its_power_is_asked_for_it(tmp_path: Path):
    put(tmp_path, "sys/class/hwmon/hwmon4/name", "ina238\n")
    put(tmp_path, "sys/class/hwmon/hwmon4/label", "VIN\n")
    put(tmp_path, "sys/class/hwmon/hwmon4/power1_input", "20986000\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "pwmfan\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/in1_label", "no rail\n")
    assert read_rails(tmp_path) == (Rail(name="VIN", power_mw=20986.0),)


def test_the_rail_that_feeds_all_others_is_the_board(tmp_path: Path):
    channel(tmp_path, "sys/class/hwmon/hwmon0", 1, "VDD_SOC", (5000, 200))
    channel(tmp_path, "sys/class/hwmon/hwmon0", 2, "VDD_IN", (5000, 1000))
    (meter,) = meters(tmp_path)
    assert (meter.source, meter.range_mj, meter.read()) == ("VDD_IN (ina)", None, 5000.0)


def test_without_one_the_rails_are_added_up_and_the_source_says_which(tmp_path: Path):
    for number, name in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), start=1):
        channel(tmp_path, "sys/class/hwmon/hwmon0", number, name, (5000, 100))
    channel(tmp_path, "sys/class/hwmon/hwmon1", 2, "VDDQ_VDD2_1V8AO", (5000, 60))
    (meter,) = meters(tmp_path)
    assert meter.source == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (ina)"
    assert meter.read() == 1500.0


def test_a_rail_that_vanishes_is_an_error_and_no_zero(tmp_path: Path):
    channel(tmp_path, "sys/class/hwmon/hwmon0", 1, "VDD_IN", (5000, 1000))
    (meter,) = meters(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon0/curr1_input").unlink()
    with pytest.raises(DeviceError, match="stopped to answer"):
        meter.read()


def test_the_counters_of_a_processor_are_its_packages_under_their_own_name(tmp_path: Path):
    for folder, name, microjoules in (
        ("intel-rapl:0", "package-0", 5_000_000),
        ("intel-rapl:0:0", "core", 1_000_000),
        ("intel-rapl:1", "package-1", 7_000_000),
    ):
        put(tmp_path, f"sys/class/powercap/{folder}/name", f"{name}\n")
        put(tmp_path, f"sys/class/powercap/{folder}/energy_uj", f"{microjoules}\n")
        put(tmp_path, f"sys/class/powercap/{folder}/max_energy_range_uj", "262143328850\n")
    found = meters(tmp_path)
    assert [meter.source for meter in found] == ["package-0 (rapl)", "package-1 (rapl)"]
    assert found[0].read() == 5000.0
    assert found[0].range_mj == 262143328.85


def test_a_raspberry_pi_5_and_tegrastats_are_asked_where_nothing_better_is_there(
    tmp_path: Path, no_tools: Path
):
    assert meters(tmp_path) == ()
    says(no_tools, "vcgencmd", "vcgencmd-pi5-unregistered")  # a Pi 4 has no such chip
    assert meters(tmp_path) == ()
    says(no_tools, "vcgencmd", "vcgencmd-pi5-pmic")
    (meter,) = meters(tmp_path)
    assert meter.source.endswith("(vcgencmd pmic_read_adc)")
    assert meter.read() == pytest.approx(6240, rel=0.2)  # mostly VDD_CORE's 5.04 A at 0.894 V
    (no_tools / "vcgencmd").unlink()
    says(no_tools, "tegrastats", "tegrastats-jetpack6-orin")
    (meter,) = meters(tmp_path)
    assert (meter.source, meter.read()) == ("VDD_IN (tegrastats)", 17946.0)


def test_power_is_integrated_by_trapezoids():
    trace = from_power("x", (0.0, 1.0, 3.0), (100.0, 300.0, 300.0))
    assert trace.energy_mj == (0.0, 200.0, 800.0)
    assert (trace.total_mj, trace.duration_s) == (800.0, 3.0)
    assert trace.power_mw == pytest.approx(800 / 3)


def test_a_counter_that_starts_again_loses_nothing():
    trace = from_counter("x", (0.0, 1.0, 2.0, 3.0), (900.0, 980.0, 40.0, 140.0), range_mj=1000.0)
    assert trace.energy_mj == (0.0, 80.0, 140.0, 240.0)


def steady(
    power_mw: float, seconds: float = 10.0, readings: int = 201, noise: Callable[[], float] = lambda: 0.0
):
    at_s = [seconds * at / (readings - 1) for at in range(readings)]
    return from_power("rail", at_s, [power_mw + noise() for _ in at_s])


def test_energy_is_what_the_busy_pass_took_above_idle_for_each_inference():
    energy = energy_per_inference(steady(3000.0), (steady(1000.0), steady(1000.0)), inferences=2000)
    assert energy.energy_mj == pytest.approx(2000 * 10 / 2000)
    assert energy.uncertainty_mj == pytest.approx(0.0, abs=1e-9)
    assert (energy.busy_mw, energy.idle_mw) == (pytest.approx(3000), pytest.approx(1000))
    assert energy.breach(10.1) == ""
    assert energy.breach(9.9) == "energy 10.000 mJ, limit 9.9 mJ"


def test_a_budget_is_held_against_the_upper_end_of_the_uncertainty():
    energy = Energy(
        source="x", inferences=1, energy_mj=9.0, uncertainty_mj=2.0, busy_mw=1.0, idle_mw=0.0, busy_s=1.0
    )
    assert energy.breach(10.0) == "energy 11.000 mJ, limit 10 mJ"
    assert energy.breach(11.0) == ""


def test_idle_passes_that_disagree_widen_the_uncertainty():
    apart = energy_per_inference(steady(3000.0), (steady(900.0), steady(1100.0)), inferences=1000)
    assert apart.energy_mj == pytest.approx(20.0)
    assert apart.uncertainty_mj == pytest.approx(2.262 * 200 / math.sqrt(12) * 10 / 1000)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    chance = random.Random(7)  # noqa: S311 - noise, not a secret

    def wandering() -> Callable[[], float]:  # power that depends on what it was just before
        state = [0.0]

        def step() -> float:
            state[0] = 0.8 * state[0] + chance.gauss(0, 60)
            return state[0]

        return step

    covered = 0
    for _ in range(300):
        found = energy_per_inference(
            steady(3000.0, noise=wandering()),
            (steady(1000.0, noise=wandering()), steady(1000.0, noise=wandering())),
            inferences=1000,
        )
        covered += abs(found.energy_mj - 20.0) <= found.uncertainty_mj
    assert covered >= 279  # 93 %


@pytest.mark.parametrize("passes", [((), 5), ((steady(1.0),), 0)])
def test_energy_needs_an_idle_pass_and_an_inference(passes: tuple[tuple[Trace, ...], int]):
    with pytest.raises(DeviceError, match="at least one inference"):
        energy_per_inference(steady(2.0), *passes)


def test_a_source_that_answers_too_slowly_is_named():
    with pytest.raises(DeviceError, match="read 5 times") as caught:
        energy_per_inference(steady(2.0, readings=5), (steady(1.0),), 10)
    assert "rail answers too slowly" in caught.value.cause


READINGS = st.lists(st.floats(0, 1e6), min_size=2, max_size=60)


@settings(max_examples=100)
@given(READINGS, st.floats(1e-3, 10.0))
def test_a_trace_never_falls(readings: list[float], step_s: float):
    at_s = [step_s * at for at in range(len(readings))]
    for trace in (from_power("x", at_s, readings), from_counter("x", at_s, readings, 1e6)):
        assert all(later >= earlier for earlier, later in itertools.pairwise(trace.energy_mj))
        assert len(trace.energy_mj) == len(trace.at_s)


@dataclass
class Played:
    """A meter whose readings are given; it says when all but the last were read."""

    readings: Sequence[float]
    source: str = "played"
    range_mj: float | None = None
    done: threading.Event = field(default_factory=threading.Event)
    _next: int = 0

    def read(self) -> float:
        value = self.readings[min(self._next, len(self.readings) - 1)]
        self._next += 1
        if self._next >= len(self.readings) - 1:
            self.done.set()
        return value


def test_a_meter_is_read_meanwhile_and_at_both_ends():
    ticks = itertools.count()
    meter = Played([100.0, 200.0, 300.0, 400.0])
    with recording(meter, period_s=0.0, clock_s=lambda: float(next(ticks))) as taken:
        assert meter.done.wait(20)
    assert taken.values[:3] == [100.0, 200.0, 300.0]
    assert taken.values[-1] == 400.0
    assert taken.trace().duration_s == len(taken.values) - 1


def test_a_meter_that_fails_meanwhile_fails_the_pass():
    class Failing(Played):
        def read(self) -> float:
            if self._next:
                self.done.set()
                raise DeviceError("gone")
            return super().read()

    meter = Failing([1.0])
    with pytest.raises(DeviceError, match="gone"), recording(meter, period_s=0.0):
        assert meter.done.wait(20)


def test_energy_is_measured_in_three_passes_and_the_idle_ones_do_no_work():
    now, power, ran_in = [0.0], [1000.0], []

    class Simulated:
        source, range_mj = "simulated", None

        def read(self) -> float:
            return power[0]

    passes = itertools.count()

    @contextmanager
    def record(meter: Meter) -> Iterator[Recording]:
        nonlocal current
        power[0] = 1000.0
        current = (next(passes), Recording(meter=meter))
        current[1].take(now[0])
        yield current[1]

    current: tuple[int, Recording] = (-1, Recording(meter=Simulated()))

    def advance(seconds: float, milliwatts: float) -> None:
        power[0] = milliwatts
        for _ in range(20):
            now[0] += seconds / 20
            current[1].take(now[0])

    def infer() -> None:
        ran_in.append(current[0])
        power[0] = 3000.0
        now[0] += 0.125
        current[1].take(now[0])

    found = measure_energy(
        infer,
        Simulated(),
        seconds=10.0,
        rest=lambda seconds: advance(seconds, 1000.0),
        clock_s=lambda: now[0],
        record=record,
    )
    assert set(ran_in) == {1}
    assert found.inferences == len(ran_in) == 80
    assert found.idle_mw == pytest.approx(1000.0)
    # The first reading of the busy pass is still idle's.
    assert found.energy_mj == pytest.approx(2000 * 0.125, rel=0.02)
