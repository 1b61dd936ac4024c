from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.devices.board import lease
from edgekd.devices.board.place import Place
from edgekd.errors import DeviceError

ME, YOU = "me@desk", "you@desk"
MINE, YOURS = "1" * 32, "2" * 32


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(lease, "now_s", one)
    return one


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(str(tmp_path / "board"))
    made.make()
    made.path("boot-id").write_text("first\n")
    return made


def take(place: Place, token: str, owner: str, ended: list[str] | None = None) -> dict | None:
    return lease.take(place, token, owner, "measuring", lambda: (ended or []).append("ended"))


def test_a_free_board_is_taken_and_another_is_told_by_whom(place: Place, clock: Clock):
    assert take(place, MINE, ME) is None
    assert take(place, YOURS, YOU) == {"owner": ME, "why": "measuring", "expires_s": lease.SESSION_S}
    assert lease.holder(place) == {"owner": ME, "why": "measuring", "expires_s": lease.SESSION_S}


def test_another_session_of_the_same_owner_has_to_wait_too(place: Place, clock: Clock):
    take(place, MINE, ME)
    assert take(place, YOURS, ME) is not None


def test_a_board_whose_holder_vanished_is_free_within_a_minute(place: Place, clock: Clock):
    take(place, MINE, ME)
    clock.now_s += lease.SESSION_S + 0.1
    assert lease.SESSION_S < 60
    assert lease.holder(place) is None
    assert take(place, YOURS, YOU) is None
    with pytest.raises(DeviceError, match="lost"):
        lease.check(place, MINE)


def test_a_beat_keeps_the_board_and_cannot_win_it_back(place: Place, clock: Clock):
    take(place, MINE, ME)
    clock.now_s += lease.SESSION_S - 1
    lease.renew(place, MINE)
    clock.now_s += lease.SESSION_S - 1
    lease.check(place, MINE)
    lease.give_back(place, MINE)
    lease.renew(place, MINE)
    assert lease.holder(place) is None


def test_a_session_that_comes_back_in_time_still_has_the_board(place: Place, clock: Clock):
    take(place, MINE, ME)
    clock.now_s += lease.SESSION_S + 100
    assert take(place, MINE, ME) is None
    lease.check(place, MINE)


def test_what_was_left_running_is_ended_before_the_board_is_taken(place: Place, clock: Clock):
    seen: list[dict | None] = []
    lease.take(place, MINE, ME, "measuring", lambda: seen.append(lease.holder(place)))
    assert seen == [None]


def test_where_that_cannot_be_ended_the_board_is_not_taken(place: Place, clock: Clock):
    def fail() -> None:
        raise DeviceError("it does not end")

    with pytest.raises(DeviceError):
        lease.take(place, MINE, ME, "measuring", fail)
    assert lease.holder(place) is None


def test_a_restart_of_the_board_frees_it(place: Place, clock: Clock):
    take(place, MINE, ME)
    place.path("boot-id").write_text("second\n")
    assert lease.holder(place) is None


def test_a_hold_keeps_others_out_and_lets_its_owner_in(place: Place, clock: Clock):
    lease.hold(place, ME, "debugging", 600)
    assert take(place, YOURS, YOU) == {"owner": ME, "why": "debugging", "expires_s": 600}
    assert take(place, MINE, ME) is None
    lease.give_back(place, MINE)
    assert lease.holder(place) == {"owner": ME, "why": "debugging", "expires_s": 600}


def test_a_hold_is_refused_while_another_measures(place: Place, clock: Clock):
    take(place, MINE, ME)
    with pytest.raises(DeviceError, match="me@desk") as caught:
        lease.hold(place, YOU, "debugging", 600)
    assert "45 s" in caught.value.cause


def test_only_its_owner_ends_a_hold_and_time_does(place: Place, clock: Clock):
    lease.hold(place, ME, "debugging", 600)
    with pytest.raises(DeviceError, match="me@desk"):
        lease.drop(place, YOU)
    lease.drop(place, ME)
    assert lease.holder(place) is None
    lease.hold(place, ME, "debugging", 600)
    clock.now_s += 601
    assert take(place, YOURS, YOU) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot_id": "first", "session": null}'])
def test_a_lease_that_cannot_be_read_holds_nobody(place: Place, clock: Clock, text: str):
    place.path("lease.json").write_text(text)
    assert lease.holder(place) is None
    assert take(place, MINE, ME) is None
