"""A run, a gate and single steps, recorded on the rehearsal and replayed with no device: the same decisions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd import devices, pipeline
from edgekd.cli.options import target_from_options
from edgekd.devices import Device
from edgekd.devices.cassette import CassetteDevice, record, results, tape
from edgekd.devices.local import LocalDevice
from edgekd.errors import BudgetError, DeviceError
from edgekd.pipeline.carrying import carried
from edgekd.stages.configure import configure, load_target
from edgekd.store import Store
from edgekd.values.artifact import Artifact
from edgekd.values.codec import fingerprint
from edgekd.values.gate import Gate, GateVerdict, Question
from edgekd.values.job import Job
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.outcome import Outcome
from edgekd.values.target import Target
from tests.contracts import models
from tests.pipeline import rehearsed
from tests.pipeline.test_loop import trials_in
from tests.stages import gated

Connect = Callable[[Target], Device]
_MODULES = ("workbench", "checking", "single")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.cassette"


def connecting(patch: pytest.MonkeyPatch, connect: Connect) -> None:
    for module in _MODULES:
        patch.setattr(f"edgekd.pipeline.{module}.connect", connect)


def recording(patch: pytest.MonkeyPatch, file: Path) -> None:
    """Let every device be recorded."""
    real = devices.connect
    connecting(patch, lambda target: record(real(target), file))


def replaying(patch: pytest.MonkeyPatch, file: Path) -> None:
    """Let every device be the cassette, under the name of the device that was recorded; processes are forbidden."""
    forbid_processes(patch)
    connecting(patch, lambda target: CassetteDevice(file, target))


def forbid_processes(patch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a replay starts no process of the device's")

    patch.setattr("edgekd.devices.local.Child", forbidden)
    patch.setattr("edgekd.devices.local.LocalDevice.__init__", forbidden)


def run(job: Job, out: Path) -> Outcome:
    return pipeline.run(
        job, name="small", out=out, teacher=rehearsed.teacher(), data=rehearsed.digits(), command="edgekd run"
    )


def learnt(out: Path) -> list[str]:
    """Name every trial by all that it holds, raw samples and device seconds included, but the wall time here."""
    return [fingerprint(replace(trial, seconds=0.0)) for trial in trials_in(out)]


def bundled(outcome: Outcome) -> dict[str, str]:
    return {
        str(path.relative_to(outcome.bundle)): Artifact.of(path).sha256
        for path in sorted(outcome.bundle.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, Path, Outcome]]:
    """Give a job, the folder of its run, which holds the cassette, and what came of it."""
    folder = tmp_path_factory.mktemp("recorded")
    job = rehearsed.with_(
        rehearsed.JOB, target={"profile": rehearsed.float_profile(folder)}, search={"probes": 3}
    )
    with pytest.MonkeyPatch.context() as patch:
        rehearsed.stay_in_this_process(patch)
        recording(patch, folder / "session.cassette")
        yield job, folder, run(job, folder / "run")


@pytest.mark.usefixtures("here")
class TestRun:
    def test_a_replayed_run_learns_and_ships_the_same_to_the_byte(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        job, folder, live = session
        replaying(monkeypatch, folder / "session.cassette")
        again = run(job, tmp_path / "again")
        assert learnt(tmp_path / "again") == learnt(folder / "run")
        assert bundled(again) == bundled(live)
        assert again.device_seconds == live.device_seconds > 0
        assert again.latency_ms == live.latency_ms
        assert again.trials == live.trials

    def test_a_job_may_name_the_cassette(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        job, folder, live = session
        shutil.copytree(folder / "run" / "store", tmp_path / "again" / "store")
        forbid_processes(monkeypatch)
        named = rehearsed.with_(job, target={"device": f"cassette:{folder / 'session.cassette'}"})
        again = run(named, tmp_path / "again")
        assert learnt(tmp_path / "again") == learnt(folder / "run")
        models_ = [
            {name: sha for name, sha in bundled(one).items() if "model" in name} for one in (live, again)
        ]
        assert models_[0] == models_[1]

    def test_a_replayed_run_trains_and_exports_nothing_so_that_another_arithmetic_here_changes_nothing(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        job, folder, live = session
        monkeypatch.setattr("edgekd.distillation.loop.take_step", None)
        monkeypatch.setattr("edgekd.stages.export.export_module", None)
        replaying(monkeypatch, folder / "session.cassette")
        assert bundled(run(job, tmp_path / "again")) == bundled(live)

    def test_a_result_that_leads_out_of_its_folder_is_not_taken_from_a_cassette(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path
    ):
        _, folder, _ = session
        copy, secret = tmp_path / "copy.cassette", tmp_path / "secret"
        shutil.copyfile(folder / "session.cassette", copy)
        secret.write_text("mine")
        held = Artifact.of(secret)
        text = json.dumps({"path": str(secret), "sha256": held.sha256})
        record(LocalDevice(gated.target()), copy).keep("distill", "0" * 32, text, {})
        with carried(Store(tmp_path / "store"), CassetteDevice(copy, gated.target())):
            assert len([*(tmp_path / "store" / "distill").iterdir()]) > 0
            assert not (tmp_path / "store" / "distill" / ("0" * 32)).exists()
        names = {"../../escape": held}
        assert not results.write_result(tape.read(copy), "distill", "1" * 32, "{}", names)

    def test_a_search_with_another_seed_is_told_what_the_cassette_lacks(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        job, folder, _ = session
        replaying(monkeypatch, folder / "session.cassette")
        with pytest.raises(DeviceError, match="has no answer to time") as caught:
            run(rehearsed.with_(job, search={"seed": 7}), tmp_path / "again")
        assert "nearest is time" in caught.value.cause

    def test_a_budget_that_nothing_meets_is_refused_in_the_same_words(
        self, session: tuple[Job, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        job, _, _ = session
        hopeless = replace(
            job, budget=rehearsed.with_(job, budget={"latency_ms": rehearsed.LatencyBudget(p99=1e-6)}).budget
        )
        refusals = []
        for at, arrange in enumerate((recording, replaying)):
            with monkeypatch.context() as patch:
                arrange(patch, tmp_path / "session.cassette")
                with pytest.raises(BudgetError) as caught:
                    run(hopeless, tmp_path / str(at))
            refusals.append(str(caught.value))
        assert refusals[0] == refusals[1]
        assert learnt(tmp_path / "0") == learnt(tmp_path / "1")

    def test_the_cassette_names_no_folder_of_the_run(self, session: tuple[Job, Path, Outcome]):
        _, folder, _ = session
        text = (folder / "session.cassette").read_text(encoding="utf-8")
        for word in (str(folder), folder.name, str(Path.home()), "store/"):
            assert word not in text


class TestGate:
    @pytest.fixture(autouse=True)
    def _device(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
        yield from gated.rehearsal(monkeypatch, tmp_path)

    def ask(self, tmp_path: Path, out: str, target: Target, slowdown: str) -> Gate:
        base = gated.network(tmp_path / "base.onnx", seed=1)
        candidate = gated.network(tmp_path / "candidate.onnx", seed=2, slowdown=slowdown)
        found = pipeline.check(Question(models=(base, candidate)), target, out=tmp_path / out)
        timeless = tuple(replace(one, seconds=0.0) for one in found.comparisons)
        return replace(found, seconds=0.0, comparisons=timeless)

    @pytest.mark.parametrize(("slowdown", "verdict"), [("1.06", "FAIL"), ("1", "PASS"), ("0.9", "IMPROVED")])
    def test_a_replayed_gate_comes_to_the_same_verdict_by_the_same_pairs(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowdown: str, verdict: str
    ):
        with monkeypatch.context() as patch:
            recording(patch, file)
            live = self.ask(tmp_path, "live", gated.target(), slowdown)
        forbid_processes(monkeypatch)
        named = replace(gated.target(), device=f"cassette:{file}")
        again = self.ask(tmp_path, "again", named, slowdown)
        assert again == live
        assert live.verdict is GateVerdict(verdict)
        pairs = [sorted((tmp_path / out / "pairs").rglob("*.jsonl")) for out in ("live", "again")]
        assert [path.read_bytes() for path in pairs[0]] == [path.read_bytes() for path in pairs[1]]
        assert pairs[0]

    def test_another_candidate_is_not_judged_by_what_was_recorded(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with monkeypatch.context() as patch:
            recording(patch, file)
            self.ask(tmp_path, "live", gated.target(), "1")
        named = replace(gated.target(), device=f"cassette:{file}")
        with pytest.raises(DeviceError, match="has no answer to inspect") as caught:
            self.ask(tmp_path, "again", named, "1.01")
        assert "never seen" in caught.value.mend

    def test_a_recording_that_was_cut_short_replays_up_to_there(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with monkeypatch.context() as patch:
            recording(patch, file)
            self.ask(tmp_path, "live", gated.target(), "1")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        named = replace(gated.target(), device=f"cassette:{file}")
        with pytest.raises(DeviceError, match="has no answer to time"):
            self.ask(tmp_path, "again", named, "1")
        kept = tmp_path / "again" / "pairs" / "candidate.onnx-base-rehearsal" / "pairs.jsonl"
        assert json.loads(kept.read_text(encoding="utf-8").splitlines()[0])["number"] == 0


@pytest.mark.usefixtures("here")
def test_a_profile_and_a_compiled_file_are_replayed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from edgekd.pipeline import single

    monkeypatch.setattr(single, "PROFILING", Protocol(launches=1, blocks=2, samples=20, warmup_ms=0.1))
    path, found = models.conv_net(tmp_path / "net.onnx"), []
    for at, arrange in enumerate((recording, replaying)):
        with monkeypatch.context() as patch:
            arrange(patch, file)
            told = pipeline.profile(path, gated.target(), precisions=(Precision.FP32,))
        with monkeypatch.context() as patch:
            copy = file.with_suffix(".compile")
            arrange(patch, copy)
            made = pipeline.compile_(
                path, runtime="rehearsal", target=gated.target(), out=tmp_path / f"made{at}"
            )
        found.append((told, [*made.files.values()], made.max_error, made.open_ms))
    assert found[0] == found[1]
    assert len(tape.read(file).sessions) == 1


def test_a_cassette_brings_the_hardware_profile_along_that_it_was_recorded_with(file: Path, tmp_path: Path):
    own = replace(gated.target().profile, name="a board of mine", memory_mib=777)
    with devices.connect(replace(gated.target(), profile=own, record=str(file))) as device:
        assert device.name == "local"
    name = f"cassette:{file}"
    assert target_from_options(None, None, None, name).profile == own
    asked = configure("digits", [f"target.device={name}"], {}, None)  # the job names another profile
    assert load_target(asked.job, asked.beside).profile == own
    both = configure("digits", [f"target.device={name}", "target.profile=arm-cpu"], {}, None)
    assert load_target(both.job, both.beside).profile.name == "arm-cpu"
    gone = configure("digits", [f"target.device=cassette:{tmp_path / 'gone'}"], {}, None)
    assert gone.job.target.profile == "x86-cpu"
    with pytest.raises(DeviceError, match="there is no cassette"):
        target_from_options(None, None, None, f"cassette:{tmp_path / 'gone'}")
