from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.timing.boards import (
    parse_jetson_clocks,
    parse_modes,
    parse_nvpmodel,
    parse_tegrastats,
    parse_vcgencmd,
)
from edgekd.timing.boards.nvpmodel import reboot_needed
from edgekd.values.power import BoardReading, Clock, PowerMode, Rail

RECORDED = Path(__file__).with_name("recorded")


def recorded(name: str) -> str:
    """Return a recorded sample; lines that start with # say where it was recorded, but for nvpmodel.conf's own."""
    lines = (RECORDED / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("# "))


def clock(reading: BoardReading, name: str) -> Clock:
    return next(clock for clock in reading.clocks if clock.name == name)


def degrees(reading: BoardReading) -> dict[str, float | None]:
    return {one.zone: one.celsius for one in reading.temperatures}


def milliwatts(reading: BoardReading) -> dict[str, float]:
    return {rail.name: rail.power_mw for rail in reading.rails}


@pytest.mark.parametrize("sample", sorted(RECORDED.glob("*.txt")), ids=lambda path: path.stem)
def test_every_sample_says_where_it_was_recorded(sample: Path):
    head = sample.read_text(encoding="utf-8").splitlines()[:3]
    source = " ".join(line for line in head if line.startswith("# "))
    assert "https://" in source or "no address" in source or "in the same report as" in source


@pytest.mark.parametrize("sample", sorted(RECORDED.glob("tegrastats-*.txt")), ids=lambda path: path.stem)
def test_nothing_in_a_recorded_line_of_tegrastats_is_unknown(sample: Path):
    reading = parse_tegrastats(recorded(sample.stem))
    assert reading.unknown == ()
    assert reading.memory_mib is not None
    assert {"gpu", "emc", "cpu0"} <= {one.name for one in reading.clocks}
    assert reading.temperatures


def test_jetpack_5_on_a_xavier_nx():
    reading = parse_tegrastats(recorded("tegrastats-jetpack5-xavier-nx"))
    assert (reading.memory_used_mib, reading.memory_mib, reading.swap_used_mib) == (3168, 6851, 161)
    assert clock(reading, "cpu1") == Clock(name="cpu1", online=True, load_percent=17, current_mhz=1192)
    assert clock(reading, "emc") == Clock(name="emc", load_percent=2, current_mhz=204)
    assert clock(reading, "gpu") == Clock(name="gpu", load_percent=0, current_mhz=114)
    assert clock(reading, "vic").current_mhz == 115
    assert degrees(reading)["CPU"] == 46.5
    assert reading.rails[0] == Rail(name="VDD_IN", power_mw=2763, average_mw=2846)


def test_a_sensor_of_a_part_without_power_has_no_temperature_and_a_free_channel_is_no_rail():
    reading = parse_tegrastats(recorded("tegrastats-agx-orin-capitals"))
    assert degrees(reading)["GPU"] is None
    assert degrees(reading)["CV0"] is None
    assert degrees(reading)["tj"] == 44.343
    assert milliwatts(reading) == {
        "VDD_GPU_SOC": 2340,
        "VDD_CPU_CV": 390,
        "VIN_SYS_5V0": 4025,
        "VDDQ_VDD2_1V8AO": 301,
    }


def test_jetpack_6_on_an_agx_orin():
    reading = parse_tegrastats(recorded("tegrastats-jetpack6-agx-orin"))
    assert len([one for one in reading.clocks if one.name.startswith("cpu")]) == 12
    assert clock(reading, "nvenc") == Clock(name="nvenc", load_percent=79, current_mhz=166)
    assert clock(reading, "nvdla1") == Clock(name="nvdla1", online=False)
    assert clock(reading, "pva0").online is False
    assert clock(reading, "ape").current_mhz == 174
    assert degrees(reading)["tj"] == 52.562


def test_jetpack_6_on_an_orin_of_8_gb():
    reading = parse_tegrastats(recorded("tegrastats-jetpack6-orin"))
    assert (clock(reading, "gpu").load_percent, clock(reading, "gpu").current_mhz) == (84, 713)
    assert milliwatts(reading)["VDD_IN"] == 17946


def test_jetpack_7_on_a_thor_gives_clocks_without_loads():
    reading = parse_tegrastats(recorded("tegrastats-jetpack7-thor"))
    assert clock(reading, "gpu") == Clock(name="gpu", current_mhz=0)
    assert clock(reading, "nvenc1") == Clock(name="nvenc1", current_mhz=0)
    assert clock(reading, "cpu9") == Clock(name="cpu9", online=True, load_percent=17, current_mhz=2601)
    assert milliwatts(reading) == {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 4923, "VIN_SYS_5V0": 4327}


def test_jetpack_7_on_an_orin_gives_a_load_with_several_clocks_and_each_temperature_twice():
    reading = parse_tegrastats(recorded("tegrastats-jetpack7-agx-orin"))
    assert clock(reading, "gpu") == Clock(name="gpu", load_percent=12, current_mhz=1300)
    assert degrees(reading)["cpu"] == 52.968
    assert reading.rails[0] == Rail(name="VDD_GPU_SOC", power_mw=5139, average_mw=5139)


def test_jetpack_4_gives_rails_without_a_unit_and_cores_that_are_off():
    reading = parse_tegrastats(recorded("tegrastats-jetpack4-tx2"))
    assert milliwatts(reading)["VDD_SYS_GPU"] == 182
    reading = parse_tegrastats(recorded("tegrastats-jetpack4-tx2-off"))
    assert clock(reading, "cpu1") == Clock(name="cpu1", online=False)
    assert clock(reading, "gpu") == Clock(name="gpu", load_percent=0)


@pytest.mark.parametrize(
    "word",
    ["NPU_FREQ 3%@900", "WARP 9", "FOO 3/4", "GR3D_FREQ x%@[1]", "VDD_IN 12W", "cpu@hotC", "RAM 1/2GB", "CPU [1%@2,?]"],
)  # fmt: skip
def test_an_unknown_field_is_a_warning_and_changes_nothing_else(word: str):
    known = recorded("tegrastats-jetpack6-orin")
    plain, odd = parse_tegrastats(known), parse_tegrastats(f"{known} {word}")
    assert odd.unknown == tuple(f"tegrastats: {part}" for part in word.split())
    assert (odd.clocks, odd.rails, odd.temperatures) == (plain.clocks, plain.rails, plain.temperatures)


def test_numbers_too_long_to_be_true_are_unknown():
    reading = parse_tegrastats(f"VDD_IN {'9' * 5000}mW RAM 1/{'8' * 30}MB")
    assert reading.rails == ()
    assert reading.memory_mib is None
    assert len(reading.unknown) == 4


def test_what_a_hostile_board_says_stays_short_and_printable():
    reading = parse_tegrastats(" ".join(f"\x1b[31m{at}{'x' * 500}" for at in range(1000)))
    assert 0 < len(reading.unknown) <= 32
    assert all(len(word) < 100 and word.isprintable() for word in reading.unknown)


@pytest.mark.parametrize(
    ("sample", "mode"),
    [
        ("nvpmodel-jetpack7-thor", PowerMode(name="MAXN", id=0)),
        ("nvpmodel-jetpack7-thor-default", PowerMode(name="120W", id=1)),
        ("nvpmodel-verbose-jetpack6-orin-nano", PowerMode(name="25W", id=1)),
    ],
)
def test_the_power_mode_is_read_from_either_form(sample: str, mode: PowerMode):
    assert parse_nvpmodel(recorded(sample)) == BoardReading(mode=mode)


def test_a_warning_of_nvpmodel_is_passed_on():
    reading = parse_nvpmodel(recorded("nvpmodel-agx-orin-warning"))
    assert reading.mode == PowerMode(name="MAXN", id=0)
    assert reading.unknown == ("nvpmodel: NVPM WARN: fan mode is not set to cool",)


def test_a_fan_mode_as_jetpack_4_says_it_is_read():  # written by us after the vendor's format, not recorded
    reading = parse_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_2CORE\n5\n")
    assert (reading.fan, reading.mode) == ("quiet", PowerMode(name="MODE_15W_2CORE", id=5))


def test_the_modes_of_a_board_are_listed():
    conf = (RECORDED / "nvpmodel-conf-jetson-nano.txt").read_text(encoding="utf-8")
    assert parse_modes(conf) == (PowerMode(name="MAXN", id=0), PowerMode(name="5W", id=1))


def test_a_mode_that_needs_a_reboot_is_recognised():
    assert reboot_needed(recorded("nvpmodel-reboot"))
    assert not reboot_needed(recorded("nvpmodel-jetpack7-thor"))


def test_clocks_of_jetpack_6_are_read_in_mhz():
    reading = parse_jetson_clocks(recorded("jetson_clocks-jetpack6-orin-nano"))
    assert reading.unknown == ()
    assert reading.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert reading.soc == "tegra234"
    assert clock(reading, "cpu2") == Clock(
        name="cpu2",
        online=True,
        governor="schedutil",
        lowest_mhz=729.6,
        highest_mhz=1344,
        current_mhz=1190.4,
    )
    assert clock(reading, "gpu") == Clock(name="gpu", lowest_mhz=306, highest_mhz=918, current_mhz=306)
    assert clock(reading, "emc").highest_mhz == 3199
    assert reading.fan == "nvfancontrol hwmon0_pwm1=69"
    assert reading.mode == PowerMode(name="25W")
    assert reading.clocks_held is False


def test_clocks_of_jetpack_5_are_read_in_the_order_of_the_cores():
    reading = parse_jetson_clocks(recorded("jetson_clocks-jetpack5-orin"))
    assert reading.unknown == ()
    assert reading.fingerprint_part == "cpu0..cpu11 115-2202 MHz"


def test_clocks_of_jetpack_7_that_are_held():
    reading = parse_jetson_clocks(recorded("jetson_clocks-jetpack7-thor"))
    assert reading.unknown == ()
    assert reading.clocks_held is True
    assert clock(reading, "gpu").current_mhz == 1575  # of gpu-gpc-0; gpu-nvd-0 is video
    assert clock(reading, "pva0_axi").online is False
    assert reading.fan == "nvfancontrol hwmon1_pwm1=73"


def test_lines_that_jetson_clocks_never_said_are_warnings():
    reading = parse_jetson_clocks(
        "Failed to retrieve unit state: Access denied\nGPU MinFreq=low MaxFreq=-1\n"
    )
    assert reading.unknown == ("jetson_clocks: Failed to retrieve unit state: Access denied",)
    assert clock(reading, "gpu") == Clock(name="gpu")


def test_a_raspberry_pi_4_that_was_slowed_before():
    reading = parse_vcgencmd(recorded("vcgencmd-pi4"))
    assert reading.unknown == ()
    assert reading.held_back == ()
    assert reading.was_held_back == ("frequency capped", "throttled", "soft temperature limit")
    assert clock(reading, "arm").current_mhz == 1500.345728
    assert degrees(reading) == {"soc": 67.2}
    assert reading.core_volts == 0.85


def test_a_raspberry_pi_4_that_is_slowed_now():
    reading = parse_vcgencmd(recorded("vcgencmd-pi4-throttled"))
    assert (reading.held_back, reading.was_held_back) == (("soft temperature limit",),) * 2


def test_a_raspberry_pi_5():
    reading = parse_vcgencmd(recorded("vcgencmd-pi5"))
    assert (reading.held_back, reading.was_held_back, reading.unknown) == ((), (), ())
    assert clock(reading, "arm").current_mhz == 2000.00512


def test_power_of_a_raspberry_pi_5_is_current_times_voltage_of_rails_that_have_both():
    reading = parse_vcgencmd(recorded("vcgencmd-pi5-pmic"))
    assert reading.unknown == ()
    found = milliwatts(reading)
    assert len(found) == 12
    assert found["VDD_CORE"] == pytest.approx(5.03652 * 0.8936988 * 1e3)
    assert "EXT5V" not in found


def test_what_a_firmware_does_not_know_and_bits_without_a_meaning_are_warnings():
    assert len(parse_vcgencmd(recorded("vcgencmd-pi5-unregistered")).unknown) == 2
    reading = parse_vcgencmd("throttled=0x100010")
    assert reading.unknown == ("vcgencmd: throttled bits 0x100010",)
    assert reading.held_back == ()


PIECES = st.sampled_from(
    [word for path in sorted(RECORDED.glob("*.txt")) for word in path.read_text(encoding="utf-8").split()]
)
ODD = st.text(st.characters(codec="utf-8"), max_size=60)
TEXTS = st.one_of(
    st.text(max_size=400),
    st.lists(st.one_of(PIECES, ODD), max_size=60).map(" ".join),
    st.lists(st.one_of(PIECES, ODD), max_size=60).map("\n".join),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_no_text_makes_a_parser_fail(text: str):
    for parse in (parse_tegrastats, parse_nvpmodel, parse_jetson_clocks, parse_vcgencmd):
        reading = parse(text)
        assert all(word.isprintable() for word in reading.unknown)
        assert all(rail.power_mw >= 0 for rail in reading.rails)
    assert all(mode.id is not None for mode in parse_modes(text))


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=40), st.integers(0, 3))
def test_cut_or_repeated_lines_never_give_a_number_that_was_not_said(pieces: list[str], cut: int):
    text = " ".join(pieces)[cut:]
    for rail in parse_tegrastats(text).rails:
        assert f"{rail.power_mw:.0f}" in text
    for one in parse_tegrastats(text).temperatures:
        assert one.celsius is None or f"{one.celsius:g}".removeprefix("-") in text


@pytest.mark.slow
def test_ten_thousand_mutated_samples_never_make_a_parser_fail():
    chance = random.Random(4)  # noqa: S311 - mutations, not a secret
    texts = [path.read_text(encoding="utf-8") for path in sorted(RECORDED.glob("*.txt"))]
    for _ in range(10_000):
        text = list(chance.choice(texts))
        for _ in range(chance.randrange(1, 30)):
            at = chance.randrange(len(text))
            text[at : at + chance.choice((0, 1, 1, 5))] = chance.choice(
                ("", "9" * 20, "\0", "\x1b", "@", "%", "/", "é", "٣", " ")
            )
        for parse in (parse_tegrastats, parse_nvpmodel, parse_jetson_clocks, parse_vcgencmd, parse_modes):
            parse("".join(text))
