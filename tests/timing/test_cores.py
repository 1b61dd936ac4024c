"""Which core a process is kept on."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.timing import cores

LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins nothing")


@pytest.fixture
def free() -> Iterator[set[int]]:
    """The cores this process may use, which all of its threads get back afterwards."""
    allowed = os.sched_getaffinity(0)
    yield allowed
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), allowed)


def capacities(root: Path, *values: str) -> Path:
    for number, value in enumerate(values):
        (root / f"cpu{number}").mkdir()
        (root / f"cpu{number}" / "cpu_capacity").write_text(value)
    return root


def test_only_the_large_cores_of_a_big_little_processor_count(tmp_path: Path):
    root = capacities(tmp_path, "382\n", "1024\n", "382\n", "1024\n")
    assert cores.fastest({3, 2, 1, 0}, root) == [1, 3]


def test_a_process_that_may_use_the_small_cores_only_gets_those(tmp_path: Path):
    root = capacities(tmp_path, "382\n", "1024\n", "382\n")
    assert cores.fastest({0, 2}, root) == [0, 2]


@pytest.mark.parametrize("value", ["", "fast"])
def test_where_the_kernel_tells_no_capacity_all_are_alike(tmp_path: Path, value: str):
    root = capacities(tmp_path, value, value)
    assert cores.fastest({0, 1, 2}, root) == [0, 1, 2]


@LINUX
def test_a_thread_stays_on_the_one_core_of_that_number(free: set[int]):
    candidates = cores.fastest(free)
    for number in (0, 1, 7):
        cores.stay_on(number)
        assert os.sched_getaffinity(0) == {candidates[number % len(candidates)]}
        os.sched_setaffinity(0, free)


@LINUX
def test_the_other_threads_stay_there_too_those_that_run_and_those_to_come(free: set[int]):
    seen: list[set[int]] = []
    asked = threading.Event()
    running = threading.Thread(target=lambda: (asked.wait(10), seen.append(os.sched_getaffinity(0))))
    running.start()
    cores.stay_on(1)
    asked.set()
    running.join()
    later = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    later.start()
    later.join()
    own = os.sched_getaffinity(0)
    assert (len(own), seen) == (1, [own, own])


def test_a_system_that_pins_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    cores.stay_on(0)
