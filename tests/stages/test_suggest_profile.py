from __future__ import annotations

import pytest

from edgekd.stages import suggest_profile as stage
from edgekd.stages.configure import shipped
from edgekd.stages.suggest_profile import suggest_profile

JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
JETPACK_7 = "# R39 (release), REVISION: 1.0, GCID: 1, BOARD: generic, EABI: aarch64"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), "x86-cpu"),
        (("avx2",), "x86-cpu"),
        (("avx2", "avx512_vnni"), "x86-cpu-vnni"),
        (("avx_vnni",), "x86-cpu-vnni"),
        (("avx512_vnni", "amx_int8"), "x86-cpu-amx"),
    ],
)
def test_an_x86_processor_is_told_by_its_features(features: tuple[str, ...], expected: str):
    assert suggest_profile("x86_64", features=features) == expected


@pytest.mark.parametrize(
    ("model", "release", "expected"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "", "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "", "raspberry-pi-4"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", JETPACK_6, "jetson-orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", JETPACK_6, "jetson-orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "", "jetson-agx-orin"),
        ("NVIDIA Jetson AGX Orin Developer Kit", JETPACK_7, "jetson-orin-jp7"),
        ("NVIDIA Jetson AGX Thor Developer Kit", JETPACK_7, "jetson-thor"),
        ("Raspberry Pi 3 Model B", "", "arm-cpu"),
        ("Florin's board", JETPACK_7, "arm-cpu"),
        ("", "", "arm-cpu"),
        ("Raspberry Pi 5", "# R999999999 \x1b", "raspberry-pi-5"),
    ],
)
def test_an_arm_board_is_told_by_its_model_and_its_system(model: str, release: str, expected: str):
    assert suggest_profile("aarch64", model=model, release=release) == expected


@pytest.mark.parametrize("machine", ["riscv64", "", "armv7l"])
def test_nothing_is_suggested_for_a_machine_that_no_profile_describes(machine: str):
    assert suggest_profile(machine, model="Raspberry Pi 5") == ""


def test_every_profile_that_may_be_suggested_is_shipped():
    for name in (*stage._BOARDS.values(), stage._ORIN_JETPACK_7, "arm-cpu", "x86-cpu-amx"):
        assert shipped("hardware_profiles", name).is_file()
