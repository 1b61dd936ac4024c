"""The whole of edgekd on an ARM64 board, emulated: `tools/test -m slow tests/devices/test_arm64_board.py`, as root."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "arm64-board"
NEEDED = ("qemu-aarch64-static", "sshd", "apt-get", "unshare")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="making a board takes root"),
    pytest.mark.skipif(
        not all(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") for name in NEEDED),
        reason="needs apt-get install qemu-user-static openssh-server",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Arm64:
    """A board that is served, and the settings of a user who has added it."""

    folder: Path
    environment: dict[str, str]
    added: dict[str, Any]

    def edgekd(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return _run([sys.executable, "-m", "edgekd", *arguments], self.environment)

    def there(self, command: str) -> str:
        ssh = ["ssh", "-F", self.folder / "ssh" / "config", "edgekd-arm64", command]
        return _run(ssh, self.environment).stdout.strip()


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arm64]:
    folder, home = tmp_path_factory.mktemp("board"), tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    try:
        made = _run([TOOL, folder], environment)
        assert made.returncode == 0, made.stderr
        command = next(line for line in made.stdout.splitlines() if "devices add" in line)
        words = [*shlex.split(command)[1:], "--json"]
        added = _run([sys.executable, "-m", "edgekd", *words], environment)
        assert added.returncode == 0, added.stderr
        yield Arm64(folder=folder, environment=environment, added=json.loads(added.stdout))
    finally:
        _run([TOOL, folder, "--stop"], environment)


@pytest.fixture(scope="module")
def run_folder(arm64: Arm64, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits-arm64"
    done = arm64.edgekd("run", ROOT / "tools" / "jobs" / "digits-arm64.toml", "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    return out


def test_a_login_lands_on_another_kind_of_machine(arm64: Arm64):
    assert arm64.there("uname -m") == "aarch64"
    assert arm64.there("id -u") != "0"
    assert arm64.there("cat /proc/sys/kernel/random/boot_id") != _text(
        Path("/proc/sys/kernel/random/boot_id")
    )


def test_the_second_command_gives_a_latency_of_a_file(arm64: Arm64):
    done = arm64.edgekd("profile", ROOT / "edgekd" / "worker" / "health.onnx", "--target", "arm64", "--json")
    assert done.returncode == 0, done.stderr
    profile = json.loads(done.stdout)
    text = json.dumps(profile)
    assert '"aarch64"' in text
    assert '"x86_64"' not in text


def test_the_loop_closes_with_measurements_from_the_board(run_folder: Path):
    manifest = json.loads((run_folder / "bundle" / "manifest.json").read_text())
    machines = {one["latency"]["conditions"]["hardware"]["machine"] for one in manifest["deployments"]}
    assert machines == {"aarch64"}
    assert {one["runtime"] for one in manifest["deployments"]} == {"onnxruntime"}


def test_a_thousand_labels_are_those_of_x86(arm64: Arm64, run_folder: Path):
    bench = ROOT / "tools" / "bench" / "arm64_labels.py"
    done = _run([sys.executable, bench, run_folder / "bundle", "--target", "arm64"], arm64.environment)
    found = json.loads(done.stdout or "{}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert found["images"] == 1000
    assert found["there"].startswith("aarch64")
    assert found["fp32"]["changed_labels"] == 0
    assert found["int8"]["agreement"] >= 0.995


def test_the_bundle_runs_there_without_edgekd(arm64: Arm64, run_folder: Path):
    """`run.py` needs Pillow for image files, which the board has not; its benchmark needs numpy and the runtime."""
    ssh = ["ssh", "-F", arm64.folder / "ssh" / "config", "edgekd-arm64", "tar -x"]
    with subprocess.Popen(["tar", "-c", "-C", run_folder, "bundle"], stdout=subprocess.PIPE) as bundle:
        subprocess.run(ssh, stdin=bundle.stdout, check=True)
    script = (
        "import sys; sys.path.insert(0, 'bundle'); import numpy, run; "
        "kept = numpy.load('bundle/samples.npz'); "
        "student = run.Student('bundle'); "
        "found = run.logits_of(student, run.prepare(kept['images'], student.recipe)); "
        "print((found.argmax(1) == kept['logits'].argmax(1)).mean())"
    )
    assert float(arm64.there(f'python3 -B -c "{script}"')) >= 0.95


def test_nothing_is_left_when_it_is_stopped(arm64: Arm64):
    before = arm64.there("cat /proc/sys/kernel/random/boot_id")
    assert _run([TOOL, arm64.folder, "--reboot"], arm64.environment).returncode == 0
    assert arm64.there("cat /proc/sys/kernel/random/boot_id") not in {"", before}
    assert _run([TOOL, arm64.folder, "--stop"], arm64.environment).returncode == 0
    assert not _commands_with(str(arm64.folder))
    assert str(arm64.folder) not in _text(Path("/proc/mounts"))
    assert _run([TOOL, arm64.folder, "--check"], arm64.environment).returncode == 1


def _run(command: list[str | Path], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _commands_with(word: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [command for command in found if word in command]


def _text(file: Path) -> str:
    return file.read_text().strip()
