from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.timing.boards import power_modes, read_board
from edgekd.timing.boards.asking import ask
from edgekd.timing.boards.sysfs import read_sysfs
from edgekd.values import codec
from edgekd.values.power import BoardReading, Clock, PowerMode, Temperature

RECORDED = Path(__file__).with_name("recorded")


def put(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that comes first on the PATH; what the system has of such tools is hidden."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def says(folder: Path, name: str, sample: str) -> None:
    tool(folder, name, f"grep -v '^# ' '{RECORDED / sample}.txt'")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """Return a root like that of an Orin Nano; written by us after what such boards are known to have."""
    root = tmp_path / "root"
    put(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    put(
        root,
        "proc/device-tree/compatible",
        "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    )
    put(
        root,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    )
    put(root, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n")
    for core in (0, 1, 10):
        folder = f"sys/devices/system/cpu/cpu{core}"
        put(root, f"{folder}/online", "1\n")
        for name, khz in (("min", 729600), ("max", 1344000), ("cur", 1190400)):
            put(root, f"{folder}/cpufreq/scaling_{name}_freq", f"{khz}\n")
        put(root, f"{folder}/cpufreq/scaling_governor", "schedutil\n")
    put(root, "sys/devices/system/cpu/cpufreq/boost", "0\n")
    put(root, "sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
    put(root, "sys/class/devfreq/17000000.gpu/max_freq", "918000000\n")
    put(root, "sys/class/devfreq/17000000.gpu/cur_freq", "612000000\n")
    put(root, "sys/class/devfreq/15340000.vic/max_freq", "115200000\n")
    put(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    put(root, "sys/class/thermal/thermal_zone0/temp", "49468\n")
    put(root, "sys/class/thermal/thermal_zone2/type", "cv0-thermal\n")  # its temperature cannot be read
    return root


def test_the_kernel_tells_the_board_its_clock_limits_and_heat(orin: Path):
    reading = read_sysfs(orin)
    assert (reading.board, reading.soc) == ("NVIDIA Jetson Orin Nano Developer Kit", "tegra234")
    assert reading.release == "L4T 36.4.3"
    assert [clock.name for clock in reading.clocks] == ["cpu0", "cpu1", "cpu10", "gpu"]
    assert reading.clocks[-1] == Clock(name="gpu", lowest_mhz=306, highest_mhz=918, current_mhz=612)
    assert reading.temperatures == (
        Temperature(zone="cpu", celsius=49.468),
        Temperature(zone="cv0", celsius=None),
    )


def test_a_machine_without_words_of_its_own_has_no_reading(tmp_path: Path, tools: Path):
    put(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "3000000\n")
    assert tools.is_dir()
    assert read_board(tmp_path) is None
    assert power_modes(tmp_path) == ()


def test_a_jetson_tells_its_power_mode_and_what_the_mode_means(orin: Path, tools: Path):
    says(tools, "nvpmodel", "nvpmodel-verbose-jetpack6-orin-nano")
    reading = read_board(orin)
    assert reading is not None
    conf = hashlib.sha256((orin / "etc/nvpmodel.conf").read_bytes()).hexdigest()
    assert reading.mode == PowerMode(name="25W", id=1, conf_sha256=conf)
    assert power_modes(orin) == (PowerMode(name="15W", id=0), PowerMode(name="25W", id=1))
    assert reading.fingerprint_part == (
        f"power mode 25W (1) {conf[:12]}; cpu0..cpu10 730-1344 MHz; gpu 306-918 MHz"
    )


def test_slow_tools_are_asked_only_where_it_may_take_time(orin: Path, tools: Path):
    says(tools, "nvpmodel", "nvpmodel-verbose-jetpack6-orin-nano")
    says(tools, "tegrastats", "tegrastats-jetpack6-orin")
    quick, thorough = read_board(orin), read_board(orin, thorough=True)
    assert quick is not None
    assert thorough is not None
    assert quick.rails == ()
    assert [rail.name for rail in thorough.rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert thorough.fingerprint_part == quick.fingerprint_part


def test_a_raspberry_pi_tells_whether_it_is_slowed(tmp_path: Path, tools: Path):
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.5\0")
    says(tools, "vcgencmd", "vcgencmd-pi4-throttled")
    reading = read_board(tmp_path)
    assert reading is not None
    assert reading.held_back == ("soft temperature limit",)
    assert "slowed now: soft temperature limit" in reading.words()


def test_a_tool_that_hangs_is_stopped_with_all_it_started(tmp_path: Path, tools: Path):
    tool(tools, "slow", f"echo first; sleep 1000 & echo $! > {tmp_path}/child; wait")
    answer = ask(["slow"], timeout_s=0.3)
    assert (answer.text, answer.code) == ("first\n", None)
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_tool_that_never_stops_talking_is_cut_short(tools: Path):
    tool(tools, "loud", "yes")
    answer = ask(["loud"], timeout_s=20.0)
    assert len(answer.text) == 1 << 16
    assert answer.code is None


def test_one_line_is_enough_of_a_tool_that_goes_on(tools: Path):
    tool(tools, "stats", "while :; do echo RAM 1/2MB; sleep 0.01; done")
    assert ask(["stats"], timeout_s=20.0, one_line=True).text == "RAM 1/2MB"


def test_a_question_is_answered_and_the_exit_code_kept(tools: Path):
    tool(tools, "asks", 'read answer; echo "you said $answer"; exit 3')
    answer = ask(["asks"], answer="no\n", timeout_s=20.0)
    assert (answer.text, answer.code) == ("you said no\n", 3)


@pytest.mark.parametrize("content", [None, "no program at all"])
def test_a_tool_that_is_missing_or_broken_says_nothing(tools: Path, content: str | None):
    if content is not None:
        (tools / "nvpmodel").write_bytes(b"\x7fELF" + content.encode())
        (tools / "nvpmodel").chmod(0o755)
    assert ask(["nvpmodel", "-q"]).code is None


def test_a_reading_crosses_the_wire(orin: Path, tools: Path):
    says(tools, "nvpmodel", "nvpmodel-jetpack7-thor")
    reading = read_board(orin)
    assert codec.decode(BoardReading, codec.plain(reading)) == reading


def test_reading_a_board_imports_nothing_heavy():
    script = "import sys, edgekd.timing.boards; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
