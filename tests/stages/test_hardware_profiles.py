from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekd import backends
from edgekd.errors import ConfigError
from edgekd.stages import origins
from edgekd.stages.configure import shipped, target_from
from edgekd.values.codec import decode
from edgekd.values.job import TargetSection
from edgekd.values.model import Precision
from edgekd.values.target import Profile

FILES = sorted(shipped("hardware_profiles", "x86-cpu").parent.glob("*.toml"))
REAL = [path for path in FILES if path.stem != "rehearsal"]
ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDERS = re.compile(r"\b(?:TODO|TBD|FIXME|XXX|lorem|placeholder|example\.com|unknown)\b", re.IGNORECASE)
EVERYBODY_ASKS_FOR = {
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-orin-jp7",
    "jetson-thor",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "x86-cpu",
    "x86-cpu-vnni",
    "x86-cpu-amx",
    "arm-cpu",
}

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_real = pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)


def read(path: Path) -> Profile:
    return decode(Profile, origins.read_toml(path), path.name)


def test_every_device_that_we_promise_has_a_profile():
    assert {path.stem for path in FILES} >= EVERYBODY_ASKS_FOR


@each
def test_a_profile_is_found_by_its_name_and_makes_a_target(path: Path):
    profile = read(path)
    assert profile.name == path.stem
    target = target_from(TargetSection(profile=profile.name), Path())
    assert target.runtimes == tuple(profile.runtimes)
    assert target.threads == profile.threads >= 1


@each
def test_its_runtimes_are_ours_and_each_computes_in_fp32_which_the_others_are_held_against(path: Path):
    for runtime, precisions in read(path).runtimes.items():
        assert runtime in backends._MODULES
        assert precisions[0] is Precision.FP32
        assert len(set(precisions)) == len(precisions)


@each
def test_it_names_its_traps_and_where_its_numbers_come_from(path: Path):
    profile = read(path)
    assert profile.traps
    assert profile.sources
    assert profile.description
    lines = [profile.description, *profile.traps, *profile.sources]
    assert all(len(line) > 20 for line in lines)
    assert not [line for line in lines if PLACEHOLDERS.search(line)]


@each_real
def test_what_nobody_measured_is_said_or_all_of_it_was(path: Path):
    sources = read(path).sources
    measured = [line for line in sources if line.startswith("edgekd measurements on")]
    guessed = [line for line in sources if line.startswith("Nobody measured for us:")]
    assert measured or guessed
    assert guessed or len(sources) == len(measured)


@each_real
def test_a_source_is_an_address_a_file_here_or_a_measurement_of_ours(path: Path):
    for line in read(path).sources:
        files = re.findall(r"tests/\S+\.txt", line)
        assert all((ROOT / file).is_file() for file in files)
        assert (
            files or "https://" in line or line.startswith(("edgekd measurements", "Nobody measured for us:"))
        )


@each_real
def test_its_limits_are_possible(path: Path):
    profile = read(path)
    assert 512 <= profile.memory_mib <= 65536
    assert 60 <= profile.build_timeout_s <= 3600


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("jetson-")], ids=lambda path: path.stem
)
def test_a_jetson_builds_with_tensorrt_and_warns_of_engines_made_elsewhere(path: Path):
    profile = read(path)
    assert set(profile.runtimes) == {"tensorrt", "tensorrt-graph"}
    assert all(Precision.BF16 not in precisions for precisions in profile.runtimes.values())
    assert any("never on the host" in trap for trap in profile.traps)
    assert profile.build_timeout_s >= 2 * 60 * 7.25 or profile.name == "jetson-thor"


def test_an_unknown_key_in_a_profile_suggests_the_known_one(tmp_path: Path):
    text = (shipped("hardware_profiles", "jetson-orin-nano")).read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("memory_mib", "memory_mb"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        target_from(TargetSection(profile=str(tmp_path / "mine.toml")), Path())
    assert "did you mean 'memory_mib'?" in caught.value.mend
