from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.timing.sensors import Sensors


class Machine:
    """A folder that looks like /, and a clock that moves when told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 0.0
        self._made: list[Sensors] = []

    def file(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            with place.open("r+") as file:  # the same file, as the kernel's is
                file.truncate()
                file.write(text)
        else:
            place.write_text(text)

    def sensors(self, *processors: int) -> Sensors:
        self._made.append(Sensors(processors or (0, 1), self.root, lambda: self.now_s))
        return self._made[-1]

    def close(self) -> None:
        for sensors in self._made:
            sensors.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def cpu(number: int) -> str:
    return f"sys/devices/system/cpu/cpu{number}"


def test_a_machine_that_tells_nothing_is_neither_slow_nor_hot(machine: Machine):
    found = machine.sensors().read()
    assert (found.throttles, found.held_back, found.quota_ms, found.clocks_mhz) == (0, False, 0.0, ())
    assert (found.temperature_c, found.governor, found.memory_pressure_percent) == (None, "unknown", 0.0)


def test_throttle_events_of_the_cores_in_use_and_of_the_package_once_are_added(machine: Machine):
    for number in range(3):
        machine.file(f"{cpu(number)}/thermal_throttle/core_throttle_count", f"{number + 1}\n")
        machine.file(f"{cpu(number)}/thermal_throttle/package_throttle_count", "10\n")
    sensors = machine.sensors(0, 1)
    assert sensors.read().throttles == 1 + 2 + 10
    machine.file(f"{cpu(1)}/thermal_throttle/core_throttle_count", "7\n")
    assert sensors.read().throttles == 1 + 7 + 10


@pytest.mark.parametrize(
    ("bits", "slow"), [("0x0", False), ("0x50000", False), ("0x50005", True), ("8", True), ("?", False)]
)
def test_a_raspberry_pi_says_whether_it_is_slowed_now(machine: Machine, bits: str, slow: bool):  # noqa: FBT001
    machine.file("sys/devices/platform/soc/soc:firmware/get_throttled", bits)
    assert machine.sensors().read().held_back is slow


@pytest.mark.parametrize(
    ("kind", "state", "slow"),
    [
        ("cpu-throttle-alert", "1", True),
        ("Processor", "0", False),
        ("pwm-fan", "3", False),
        ("LCD", "9", False),
    ],
)
def test_cooling_that_takes_speed_counts_and_a_fan_does_not(
    machine: Machine,
    kind: str,
    state: str,
    slow: bool,  # noqa: FBT001
):
    machine.file("sys/class/thermal/cooling_device0/type", kind)
    machine.file("sys/class/thermal/cooling_device0/cur_state", state)
    assert machine.sensors().read().held_back is slow


@pytest.mark.parametrize(
    ("line", "folder", "stat"),
    [
        ("0::/user/app", "sys/fs/cgroup/user/app", "nr_throttled 3\nthrottled_usec 1500\n"),
        ("0::/user/app", "sys/fs/cgroup/user", "throttled_usec 1500\n"),  # a quota above
        ("4:cpu,cpuacct:/app", "sys/fs/cgroup/cpu,cpuacct/app", "throttled_time 1500000\n"),
        ("4:cpu:/not/seen/from/here", "sys/fs/cgroup/cpu", "throttled_time 1500000\n"),
    ],
)
def test_time_that_a_quota_took_is_read_from_both_versions_of_cgroups(
    machine: Machine, line: str, folder: str, stat: str
):
    machine.file("proc/self/cgroup", f"{line}\n3:memory:/elsewhere\n")
    machine.file(f"{folder}/cpu.stat", stat)
    assert machine.sensors().read().quota_ms == 1.5


def test_heat_clocks_pressure_and_governor_are_read(machine: Machine):
    for at, text in enumerate(("41000\n", "57500\n", "unreadable\n")):
        machine.file(f"sys/class/thermal/thermal_zone{at}/temp", text)
    for number, khz in enumerate((1_800_000, 2_400_000)):
        machine.file(f"{cpu(number)}/cpufreq/scaling_cur_freq", f"{khz}\n")
    machine.file(f"{cpu(0)}/cpufreq/scaling_governor", "powersave\n")
    machine.file("proc/pressure/memory", "some avg10=7.50 avg60=1.00 total=9\nfull avg10=1.00 total=3\n")
    found = machine.sensors().read()
    assert (found.temperature_c, found.clocks_mhz, found.governor) == (57.5, (1800.0, 2400.0), "powersave")
    assert found.memory_pressure_percent == 7.5


def test_without_cpufreq_clocks_come_from_cpuinfo(machine: Machine):
    machine.file("proc/cpuinfo", "cpu MHz\t\t: 2596.1\nflags\t: fpu\ncpu MHz\t\t: 2400.0\n")
    assert machine.sensors().read().clocks_mhz == (2596.1, 2400.0)


def test_what_changes_slowly_is_not_read_again_at_once_and_throttling_is(machine: Machine):
    machine.file("sys/class/thermal/thermal_zone0/temp", "41000")
    machine.file(f"{cpu(0)}/thermal_throttle/core_throttle_count", "0")
    sensors = machine.sensors()
    sensors.read()
    machine.file("sys/class/thermal/thermal_zone0/temp", "62000")
    machine.file(f"{cpu(0)}/thermal_throttle/core_throttle_count", "1")
    machine.now_s = 0.2
    assert (sensors.read().temperature_c, sensors.read().throttles) == (41.0, 1)
    machine.now_s = 0.5
    assert sensors.read().temperature_c == 62.0
