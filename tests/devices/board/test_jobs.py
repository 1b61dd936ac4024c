from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.devices.board import jobs, lease
from edgekd.devices.board.jobs import Job
from edgekd.devices.board.place import Place
from edgekd.errors import DeviceError, UsageError, WorkerDied

MINE, YOURS = "1" * 32, "2" * 32
ID = "a" * 32


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(str(tmp_path / "board"))
    made.make()
    lease.take(made, MINE, "me", "measuring", lambda: None)
    yield made
    jobs.end_all(made, "the test is over")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def answer(folder: Path, asked: dict[str, Any]) -> None:
    (folder / "reply.json").write_text(json.dumps({"reply": asked["say"]}))


def linger(folder: Path, asked: dict[str, Any]) -> None:
    """Start a process of its own session, as a device does, and wait for it for ever."""
    code = "import time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (folder / "up").touch()
        child.wait()


def job(place: Place, run: jobs.Run, token: str = MINE, id_: str = ID) -> Job:
    return Job(place=place, token=token, asked={"id": id_, "order": "test", "say": 1}, run=run)


def wait_until_gone(place: Place, id_: str) -> None:
    """Wait for the process of an order, which outlives its reply by a moment."""
    deadline = time.monotonic() + 30
    while jobs._alive(place.path("orders", id_)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait(place: Place, id_: str = ID) -> bytes:
    deadline = time.monotonic() + 30
    while (found := jobs.reply(place, id_)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def starts(place: Place) -> list[str]:
    return place.path("starts.log").read_text().splitlines()


def test_an_order_runs_once_however_often_it_is_asked_for(place: Place):
    jobs.begin(job(place, answer))
    assert wait(place) == b'{"reply": 1}'
    for _ in range(3):
        jobs.begin(job(place, answer))
        assert wait(place) == b'{"reply": 1}'
    assert starts(place) == [f"{ID} test"]


def test_an_order_that_runs_is_found_again(place: Place):
    first = jobs.begin(job(place, linger))
    assert first.done is not None
    again = jobs.begin(job(place, linger))
    assert (again.id, again.done) == (ID, None)
    assert jobs.reply(place, ID) is None
    assert len(starts(place)) == 1


def test_an_order_whose_process_died_is_lost_and_not_begun_again(place: Place):
    jobs.begin(job(place, linger))
    wait_for(place.path("orders", ID, "up"))
    os.kill(json.loads(place.path("orders", ID, "job.json").read_text())["pid"], signal.SIGKILL)
    with pytest.raises(WorkerDied, match="has died"):
        wait(place)
    with pytest.raises(WorkerDied, match="has died"):
        jobs.begin(job(place, linger))
    assert len(starts(place)) == 1


def test_an_order_that_was_only_written_down_may_begin(place: Place):
    place.path("orders", ID).mkdir(parents=True)  # the connection broke right there
    place.path("orders", ID, "lock").touch()
    jobs.begin(job(place, answer))
    assert wait(place) == b'{"reply": 1}'


def test_an_order_needs_the_lease(place: Place):
    with pytest.raises(DeviceError, match="lost"):
        jobs.begin(job(place, answer, token=YOURS))
    assert not place.path("orders", ID).exists()


def test_a_new_holder_ends_an_orphan_with_everything_it_started_and_says_why(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    jobs.begin(job(place, linger))
    wait_for(place.path("orders", ID, "up"))
    assert len(jobs._tagged(ID)) == 1
    after = lease.now_s() + lease.SESSION_S + 1
    monkeypatch.setattr(lease, "now_s", lambda: after)
    assert (
        lease.take(place, YOURS, "you", "measuring", lambda: jobs.end_all(place, "you took it", YOURS))
        is None
    )
    assert jobs._tagged(ID) == []
    with pytest.raises(DeviceError, match="was ended") as caught:
        jobs.reply(place, ID)
    assert caught.value.cause == "you took it"
    with pytest.raises(DeviceError, match="lost"):  # the first holder comes back
        jobs.begin(job(place, linger))


def test_a_holder_who_comes_back_keeps_its_order(place: Place):
    jobs.begin(job(place, linger))
    assert lease.take(place, MINE, "me", "again", lambda: jobs.end_all(place, "another", MINE)) is None
    assert jobs.reply(place, ID) is None


def test_an_order_is_no_part_of_the_connections_session(place: Place):
    jobs.begin(job(place, linger))
    pid = json.loads(place.path("orders", ID, "job.json").read_text())["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    links = [Path(f"/proc/{pid}/fd/{at}").readlink() for at in range(3)]
    assert links == [Path(os.devnull)] * 3


def test_what_an_order_writes_stays_in_the_folder(place: Place):
    def look(folder: Path, asked: dict[str, Any]) -> None:
        found = [tempfile.gettempdir(), os.environ["EDGEKD_CACHE"], os.environ[jobs.TAG]]
        (folder / "reply.json").write_text(json.dumps(found))

    tempfile.gettempdir()
    jobs.begin(job(place, look))
    scratch, cache, tag = json.loads(wait(place))
    assert (scratch, cache) == (str(place.path("orders", ID, "tmp")), str(place.path("cache")))
    assert tag == ID


def test_leaving_ends_and_removes_ones_own_orders(place: Place):
    jobs.begin(job(place, linger))
    wait_for(place.path("orders", ID, "up"))
    jobs.end_own(place, YOURS)
    assert jobs.reply(place, ID) is None
    jobs.end_own(place, MINE)
    assert jobs._tagged(ID) == []
    assert not place.path("orders", ID).exists()


def test_replies_of_another_boot_and_of_yesterday_are_dropped(place: Place, monkeypatch: pytest.MonkeyPatch):
    for id_ in ("a" * 32, "b" * 32):
        jobs.begin(job(place, answer, id_=id_))
        wait(place, id_)
        wait_until_gone(place, id_)
    jobs.drop_old(place)
    assert len(list(place.path("orders").iterdir())) == 2
    path = place.path("orders", "a" * 32, "job.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
    jobs.drop_old(place)
    assert [found.name for found in place.path("orders").iterdir()] == ["b" * 32]
    tomorrow = lease.now_s() + 25 * 3600
    monkeypatch.setattr(lease, "now_s", lambda: tomorrow)
    jobs.drop_old(place)
    assert list(place.path("orders").iterdir()) == []


@pytest.mark.parametrize("id_", ["../x", "", "A" * 32, "a" * 31 + "/"])
def test_an_order_cannot_lie_elsewhere(place: Place, id_: str):
    with pytest.raises(UsageError):
        jobs.begin(job(place, answer, id_=id_))
