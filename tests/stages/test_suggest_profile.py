from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.pipeline.boards import _fitting
from edgekd.stages import suggest_profile as stage
from edgekd.stages.configure import shipped
from edgekd.stages.suggest_profile import suggest_profile
from edgekd.timing.conditions import _features, conditions
from edgekd.values.board import Survey
from edgekd.values.conditions import Load

FILES = sorted(shipped("hardware_profiles", "x86-cpu").parent.glob("*.toml"))
HERE = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))

JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
JETPACK_7_0 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64"
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
        ("NVIDIA Jetson T5000", JETPACK_7, "jetson-thor"),
        ("NVIDIA Orin NX Developer Kit", JETPACK_6, "jetson-orin-nx"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", JETPACK_7_0, "jetson-orin-jp7"),
        ("Raspberry Pi 400 Rev 1.0", "", "raspberry-pi-4"),
        ("Raspberry Pi 500 Rev 1.0", "", "raspberry-pi-5"),
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


# What each machine says of itself: /proc/cpuinfo's flags, the firmware's model, the first line of nv_tegra_release.
HASWELL = "fpu sse4_2 fma avx avx2 bmi2"
CASCADE_LAKE = f"{HASWELL} avx512f avx512dq avx512bw avx512vl avx512_vnni"
ALDER_LAKE = f"{HASWELL} avx_vnni"
ZEN_4 = f"{HASWELL} avx512f avx512_bf16 avx512_vbmi2 avx512_vnni"
SAPPHIRE_RAPIDS = f"{HASWELL} avx512f avx_vnni avx512_bf16 avx512_vnni avx512_fp16 amx_bf16 amx_tile amx_int8"
CORTEX_A76 = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
MACHINES = {
    "x86-cpu": [("x86_64", HASWELL, "", "")],
    "x86-cpu-vnni": [("x86_64", flags, "", "") for flags in (CASCADE_LAKE, ALDER_LAKE, ZEN_4)],
    "x86-cpu-amx": [("x86_64", SAPPHIRE_RAPIDS, "", "")],
    "arm-cpu": [("aarch64", CORTEX_A76, "", ""), ("aarch64", "fp asimd", "Radxa ROCK 5B", "")],
    "raspberry-pi-4": [("aarch64", "fp asimd evtstrm crc32 cpuid", "Raspberry Pi 4 Model B Rev 1.5", "")],
    "raspberry-pi-5": [("aarch64", CORTEX_A76, "Raspberry Pi Compute Module 5 Rev 1.0", "")],
    "jetson-orin-nano": [("aarch64", CORTEX_A76, "NVIDIA Jetson Orin Nano Developer Kit", JETPACK_6)],
    "jetson-orin-nx": [("aarch64", CORTEX_A76, "NVIDIA Jetson Orin NX", JETPACK_6)],
    "jetson-agx-orin": [("aarch64", CORTEX_A76, "NVIDIA Jetson AGX Orin Developer Kit", JETPACK_6)],
    "jetson-orin-jp7": [("aarch64", CORTEX_A76, "NVIDIA Jetson Orin Nano Developer Kit Super", JETPACK_7)],
    "jetson-thor": [("aarch64", CORTEX_A76, "NVIDIA Jetson AGX Thor Developer Kit", JETPACK_7_0)],
}


@pytest.mark.parametrize("profile", [path.stem for path in FILES if path.stem != "rehearsal"])
def test_each_shipped_profile_is_what_a_machine_of_its_kind_is_given_when_it_is_added(profile: str):
    for machine, flags, model, release in MACHINES[profile]:
        word = "flags" if machine == "x86_64" else "Features"
        survey = Survey(
            boot_id="b", python="3.10", machine=machine, numpy="1", free_mib=1, worker="", used_mib=0.0,
            lease=None, model=model, release=release,
        )  # fmt: skip
        hardware = replace(HERE.hardware, features=_features(f"processor\t: 0\n{word}\t\t: {flags}\n"))
        assert _fitting(survey, replace(HERE, hardware=hardware)) == profile
