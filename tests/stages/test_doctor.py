from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from edgekd.cli import tables
from edgekd.stages import doctor as module
from edgekd.stages.doctor import Examination, Finding, Grade, cpu_quota, doctor
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Signature
from edgekd.values.order import OpenReply, ProbeReply, RuntimeHealth

CONDITIONS = Conditions(
    hardware=Hardware(machine="x86_64", processor="AMD EPYC", cores=2, memory_mib=8192, features=()),
    software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="performance"),
    load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
)
WORKS = RuntimeHealth(name="openvino", version="2026.4", works=True, max_error=0.0)
BROKEN = RuntimeHealth(
    name="onnxruntime", version="1.32", works=False, problem="wrong output", mend="reinstall"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A device that answers the probe, and is asked for nothing else."""

    reply: ProbeReply
    name: str = "machine"

    def probe(self) -> ProbeReply:
        return self.reply

    def inspect(self, model: Artifact) -> Signature:
        raise NotImplementedError

    def build(self, engine: Engine) -> OpenReply:
        raise NotImplementedError

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        raise NotImplementedError

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        raise NotImplementedError


def examine(root: Path, *health: RuntimeHealth, conditions: Conditions = CONDITIONS) -> Examination:
    machine = Machine(reply=ProbeReply(conditions=conditions, runtimes=health))
    return doctor(machine, root, root=root)


def finding(examination: Examination, name: str) -> Finding:
    return next(one for one in examination.findings if one.name == name)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="ascii")


def test_one_runtime_that_works_is_enough(tmp_path: Path) -> None:
    assert examine(tmp_path, BROKEN, WORKS).healthy
    assert not examine(tmp_path, BROKEN).healthy
    assert not examine(tmp_path).healthy


def test_a_quota_of_the_container_is_found_and_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user/job\n")
    write(tmp_path, "sys/fs/cgroup/user/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
    assert cpu_quota(tmp_path) == 1.5
    cores = finding(examine(tmp_path, WORKS), "cores")
    assert cores.grade is Grade.WARNING
    assert "1.5" in cores.value
    assert "cpuset" in cores.mend


def test_a_quota_of_cgroup_v1_is_found(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:memory:/x\n2:cpu,cpuacct:/docker/1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "50000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) == 0.5


@pytest.mark.parametrize("text", ["0::/\n", "", "garbage"])
def test_no_quota_is_no_limit(tmp_path: Path, text: str) -> None:
    write(tmp_path, "proc/self/cgroup", text)
    assert cpu_quota(tmp_path) is None
    assert finding(examine(tmp_path, WORKS), "cores").grade is Grade.GOOD


@pytest.mark.parametrize(("available_kib", "grade"), [(8 << 20, Grade.GOOD), (1 << 20, Grade.WARNING)])
def test_little_memory_is_warned_of(tmp_path: Path, available_kib: int, grade: Grade) -> None:
    write(tmp_path, "proc/meminfo", f"MemTotal: 16777216 kB\nMemAvailable: {available_kib} kB\n")
    found = finding(examine(tmp_path, WORKS), "memory")
    assert found.grade is grade
    assert f"{available_kib >> 20}.0 of 16.0 GiB" in found.value


def test_a_machine_that_does_not_tell_its_memory_is_examined_all_the_same(tmp_path: Path) -> None:
    assert finding(examine(tmp_path, WORKS), "memory").value == "unknown"


def test_a_governor_that_saves_power_and_a_busy_machine_are_warned_of(tmp_path: Path) -> None:
    conditions = dataclasses.replace(
        CONDITIONS,
        software=dataclasses.replace(CONDITIONS.software, governor="powersave"),
        load=dataclasses.replace(CONDITIONS.load, load_average=1.7),
    )
    found = examine(tmp_path, WORKS, conditions=conditions)
    for name in ("CPU governor", "load"):
        assert finding(found, name).grade is Grade.WARNING
        assert finding(found, name).mend
        assert finding(examine(tmp_path, WORKS), name).grade is Grade.GOOD


def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module.importlib.metadata, "requires", lambda _: ["nosuchthing>=1", "rich>=13", "x; extra == 'y'"]
    )
    monkeypatch.setattr(module, "_version", lambda name: "" if name == "nosuchthing" else "1.0")
    found = examine(tmp_path, WORKS)
    assert found.packages == {"edgekd": "1.0", "nosuchthing": "", "rich": "1.0"}
    packages = finding(found, "packages")
    assert packages.grade is Grade.BAD
    assert packages.mend.endswith("pip install nosuchthing")


def test_a_folder_to_be_made_is_examined_where_it_will_be(tmp_path: Path) -> None:
    machine = Machine(reply=ProbeReply(conditions=CONDITIONS, runtimes=(WORKS,)))
    found = doctor(machine, tmp_path / "a" / "b", root=tmp_path)
    assert str(tmp_path) in finding(found, "disk").value


@pytest.mark.parametrize(("allowed", "lines"), [(True, 0), (False, 3), (None, 0)])
def test_whether_the_clocks_may_be_held_is_told_where_there_are_any(
    tmp_path: Path, *, allowed: bool | None, lines: int
) -> None:
    machine = Machine(reply=ProbeReply(conditions=CONDITIONS, runtimes=(WORKS,), may_tune=allowed))
    found = doctor(machine, tmp_path, root=tmp_path)  # type: ignore[arg-type]
    assert [one.grade for one in found.findings if one.name == "--tune"] == [Grade.GOOD] * (
        allowed is not None
    )
    assert len(found.sudoers) == lines
    console = Console(width=80)
    with console.capture() as shown:
        console.print(tables.examined(found))
    copied = re.sub(r" *\\ *\n *", " ", shown.get())  # as sudoers joins what is continued
    for line in found.sudoers:
        assert line in copied
    assert ("visudo" in shown.get()) == (lines > 0)
