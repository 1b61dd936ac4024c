from __future__ import annotations

import pytest

from edgekd.values.power import BoardReading, Clock, PowerMode, Rail, Temperature, Trace, merged, puzzling


def test_what_one_tool_left_open_another_fills():
    first = BoardReading(
        clocks=(Clock(name="gpu", highest_mhz=918),), mode=PowerMode(name="25W", id=1), unknown=("a: b",)
    )
    later = BoardReading(
        board="Orin",
        clocks=(Clock(name="gpu", highest_mhz=1.0, load_percent=84), Clock(name="emc", current_mhz=3199)),
        rails=(Rail(name="VDD_IN", power_mw=1.0),),
        mode=PowerMode(name="other"),
        unknown=("c: d",),
    )
    whole = merged([first, later])
    assert whole.clocks == (
        Clock(name="gpu", highest_mhz=918, load_percent=84),
        Clock(name="emc", current_mhz=3199),
    )
    assert (whole.board, whole.mode, whole.unknown) == ("Orin", first.mode, ("a: b", "c: d"))


def test_the_fingerprint_moves_with_mode_and_limits_and_with_nothing_else():
    gpu = Clock(name="gpu", lowest_mhz=306, highest_mhz=918)
    plain = BoardReading(mode=PowerMode(name="15W", id=0), clocks=(gpu,))
    busy = BoardReading(
        mode=plain.mode,
        clocks=(Clock(name="gpu", lowest_mhz=306, highest_mhz=918, current_mhz=918, load_percent=99),),
        temperatures=(Temperature(zone="tj", celsius=80.0),),
        rails=(Rail(name="VDD_IN", power_mw=9e3),),
    )
    assert busy.fingerprint_part == plain.fingerprint_part
    others = [
        BoardReading(mode=PowerMode(name="25W", id=1), clocks=(gpu,)),
        BoardReading(mode=PowerMode(name="15W", id=0, conf_sha256="f" * 64), clocks=(gpu,)),
        BoardReading(mode=plain.mode, clocks=(Clock(name="gpu", lowest_mhz=918, highest_mhz=918),)),
        BoardReading(mode=plain.mode, clocks=(gpu, Clock(name="cpu1", online=False))),
    ]
    assert len({reading.fingerprint_part for reading in [plain, *others]}) == 5


def test_a_reading_says_itself_in_lines_for_people():
    reading = BoardReading(
        board="Raspberry Pi 4",
        soc="bcm2711",
        mode=PowerMode(name="15W", id=0),
        clocks=(Clock(name="cpu0", lowest_mhz=600, highest_mhz=1500), Clock(name="cpu1", online=False)),
        temperatures=(Temperature(zone="gpu", celsius=None), Temperature(zone="cpu", celsius=61.25)),
        rails=(Rail(name="VDD_IN", power_mw=5251.0),),
        held_back=("throttled",),
        was_held_back=("under-voltage",),
        unknown=("vcgencmd: ?",),
    )
    assert reading.words() == (
        "Raspberry Pi 4 bcm2711",
        "power mode 15W (0); cpu0 600-1500 MHz; cpu1 off",
        "clocks free to change",
        "hottest: cpu 61.2 C",
        "VDD_IN 5.25 W",
        "slowed now: throttled",
        "was slowed since it started: under-voltage",
        "not understood: vcgencmd: ?",
    )
    assert BoardReading().words() == ()


@pytest.mark.parametrize(
    ("clocks", "held"),
    [
        ((), None),
        ((Clock(name="cpu0", current_mhz=1.0),), None),
        (
            (Clock(name="cpu0", lowest_mhz=2, highest_mhz=2), Clock(name="emc", lowest_mhz=1, highest_mhz=2)),
            True,
        ),
        (
            (Clock(name="cpu0", lowest_mhz=2, highest_mhz=2), Clock(name="gpu", lowest_mhz=1, highest_mhz=2)),
            False,
        ),
    ],
)
def test_clocks_are_held_where_no_core_and_no_gpu_can_change(clocks: tuple[Clock, ...], held: bool | None):  # noqa: FBT001
    assert BoardReading(clocks=clocks).clocks_held is held


def test_cores_are_named_in_their_order_whatever_order_they_were_told_in():
    clocks = tuple(Clock(name=f"cpu{at}", lowest_mhz=1, highest_mhz=2) for at in (0, 1, 10, 11, 2, 3))
    assert BoardReading(clocks=clocks).fingerprint_part == "cpu0..cpu11 1-2 MHz"


def test_puzzling_words_are_each_said_once_and_without_control_characters():
    assert puzzling("tool", ["a", "a", "\x1b[2J", "  ", "b" * 100]) == (
        "tool: a",
        "tool: ?[2J",
        f"tool: {'b' * 64}",
    )


def test_a_trace_without_readings_has_no_power():
    trace = Trace(source="x", at_s=(), energy_mj=())
    assert (trace.duration_s, trace.total_mj, trace.power_mw) == (0.0, 0.0, 0.0)
