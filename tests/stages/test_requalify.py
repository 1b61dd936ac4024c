"""A bundle that shipped is judged against its own limits, and one bad bundle spoils no other's verdict."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.errors import BackendMissing, BuildError, ModelError, WorkerDied
from edgekd.runner import Student
from edgekd.stages import requalify as module
from edgekd.stages.bundle import read_manifest
from edgekd.stages.requalify import ACCEPTANCE, changes_between, held, requalify
from edgekd.timing.conditions import conditions
from edgekd.values.artifact import Artifact, sha256_of
from edgekd.values.bundle import Bundle, Check, Parity, VerifyReport
from edgekd.values.codec import encode
from edgekd.values.conditions import Conditions, Load, Trust, TrustVerdict
from edgekd.values.fleet import Requalified, Standing
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Signature, TensorSpec
from edgekd.values.order import OpenReply, ProbeReply

HERE = conditions(Load(load_average=0.1, others_percent=0.5, steal_percent=0.0, involuntary_switches=0))
GOOD = Trust(verdict=TrustVerdict.GOOD)
BUSY = Trust(verdict=TrustVerdict.NOISY, reasons=("other processes used 90 % of a core",))
SIGNATURE = Signature(
    inputs=(TensorSpec(name="images", dtype="float32", shape=(1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 4)),),
)


@dataclass
class ScriptedDevice:
    """Runs bundles through their own runner, and takes latencies and failures from the test, by folder."""

    p50_ms: dict[str, float] = field(default_factory=dict)
    machine: Conditions = HERE
    missing: tuple[str, ...] = ()  # runtimes
    unbuildable: tuple[str, ...] = ()  # folders
    deadly: tuple[str, ...] = ()  # folders whose engine dies while it is timed
    trusts: list[Trust] = field(default_factory=list)  # of one measurement after the other; then GOOD
    bend: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
    timed: list[tuple[str, ...]] = field(default_factory=list)
    protocols: list[Protocol] = field(default_factory=list)
    name: str = "local"

    def probe(self) -> ProbeReply:
        return ProbeReply(conditions=self.machine, runtimes=())

    def inspect(self, model: Artifact) -> Signature:
        return SIGNATURE

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
        if engine.runtime in self.missing:
            raise BackendMissing(f"the runtime {engine.runtime} does not import", mend="pip install it")
        run = Student(engine.model.file.path.parent, engine.runtime).rows
        rows = np.load(inputs["images"].verified())
        folder.mkdir(parents=True)
        np.save(folder / "logits.npy", self.bend(np.stack([run(row) for row in rows])))
        return {"logits": Artifact.of(folder / "logits.npy")}

    def build(self, engine: Engine) -> OpenReply:
        if engine.runtime in self.missing:
            raise BackendMissing(f"the runtime {engine.runtime} does not import", mend="pip install it")
        if folder_of(engine) in self.unbuildable:
            raise BuildError(f"{engine.name} cannot be built", cause="operator 'Conv' is gone")
        return OpenReply(signature=SIGNATURE, open_ms=1.0, memory_mib=1.0)

    def time(self, engines: Sequence[Engine], protocol: Protocol) -> tuple[Latency, ...]:
        names = tuple(folder_of(engine) for engine in engines)
        self.timed.append(names)
        self.protocols.append(protocol)
        for name in names:
            if name in self.deadly:
                raise BuildError(f"{name} dies", cause="signal 11")
        trust = self.trusts.pop(0) if self.trusts else GOOD
        return tuple(latency(self.p50_ms.get(name, 0.2), trust=trust) for name in names)


def folder_of(engine: Engine) -> str:
    return engine.model.file.path.parent.name


def latency(p50_ms: float, *, samples: int = 1200, trust: Trust = GOOD, spread: float = 0.05) -> Latency:
    rng = random.Random(0)  # noqa: S311 - noise, not a secret
    samples_ms = tuple(p50_ms * math.exp(rng.gauss(0.0, spread)) for _ in range(samples))
    return Latency(
        samples_ms=samples_ms, cpu_ms=samples_ms, protocol=ACCEPTANCE, conditions=HERE, trust=trust
    )


def judge(tmp_path: Path, device: ScriptedDevice, *bundles: Path, **given: Any) -> Requalified:
    return requalify(tmp_path / "out", device, bundles, scratch=tmp_path / "scratch", **given)  # type: ignore[arg-type]


def copies(made: Bundle, count: int) -> list[Path]:
    paths = [made.folder.parent / f"bundle-{at}" for at in range(count)]
    for path in paths:
        shutil.copytree(made.folder, path)
    return paths


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


# The limit of these bundles is a p99 of 1 ms at 95 %.


def test_a_bundle_within_its_limits_meets_them(made_bundle: Bundle, tmp_path: Path):
    found = judge(tmp_path, ScriptedDevice(), made_bundle.folder)
    (one,) = found.bundles
    assert (one.standing, one.reasons, one.same_hardware) == (Standing.MEETS, (), True)
    assert (one.name, one.runtime, one.threads) == ("small", "openvino", 1)
    (limit,) = one.limits
    assert limit.low_ms is not None
    assert limit.high_ms is not None
    assert limit.low_ms < limit.measured_ms < limit.high_ms < limit.limit_ms == 1.0
    assert found.standing is Standing.MEETS
    assert one.now is not None
    assert one.now.p50 == pytest.approx(0.2, rel=0.01)
    assert any(check.name == "digests" for check in one.checks)


def test_one_whose_lower_bound_is_above_the_limit_breaks_it(made_bundle: Bundle, tmp_path: Path):
    (one,) = judge(tmp_path, ScriptedDevice({"bundle": 1.5}), made_bundle.folder).bundles
    assert one.standing is Standing.BREAKS
    assert "p99" in one.reasons[0]
    assert "the limit is 1.000 ms" in one.reasons[0]


def test_one_whose_bounds_lie_around_the_limit_is_inconclusive(made_bundle: Bundle, tmp_path: Path):
    p99_ms = latency(1.0).percentile(99)
    (one,) = judge(tmp_path, ScriptedDevice({"bundle": 1.0 / p99_ms}), made_bundle.folder).bundles
    assert one.standing is Standing.INCONCLUSIVE


def test_it_is_the_accepted_file_that_is_measured_by_the_protocol_of_acceptance(
    made_bundle: Bundle, tmp_path: Path
):
    device = ScriptedDevice()
    judge(tmp_path, device, made_bundle.folder)
    assert device.protocols == [Protocol(launches=3, blocks=4, samples=100)]
    assert device.timed == [("bundle",)]


def test_bundles_of_one_call_are_measured_in_turns_up_to_eight(made_bundle: Bundle, tmp_path: Path):
    device, paths = ScriptedDevice(), copies(made_bundle, 10)
    found = judge(tmp_path, device, *paths)
    assert [len(names) for names in device.timed] == [8, 2]
    assert [one.bundle for one in found.bundles] == paths
    assert {one.standing for one in found.bundles} == {Standing.MEETS}


def test_every_raw_latency_is_kept(made_bundle: Bundle, tmp_path: Path):
    judge(tmp_path, ScriptedDevice(), *copies(made_bundle, 2))
    kept = sorted((tmp_path / "out" / "latencies").iterdir())
    assert [path.name for path in kept] == ["0-bundle-0.json", "1-bundle-1.json"]
    assert len(json.loads(kept[0].read_text())["samples_ms"]) == 1200


@pytest.mark.parametrize("p50_ms", [0.2, 1.5])
def test_a_noisy_measurement_is_taken_once_more_whatever_it_said(
    made_bundle: Bundle, tmp_path: Path, p50_ms: float
):
    device = ScriptedDevice({"bundle": p50_ms}, trusts=[BUSY])
    (one,) = judge(tmp_path, device, made_bundle.folder).bundles
    assert len(device.timed) == 2
    assert device.protocols[0].seed != device.protocols[1].seed
    assert one.standing is (Standing.MEETS if p50_ms < 1 else Standing.BREAKS)


@pytest.mark.parametrize("p50_ms", [0.2, 1.5])
def test_a_machine_that_stays_busy_decides_nothing(made_bundle: Bundle, tmp_path: Path, p50_ms: float):
    device = ScriptedDevice({"bundle": p50_ms}, trusts=[BUSY, BUSY])
    (one,) = judge(tmp_path, device, made_bundle.folder).bundles
    assert (one.standing, len(device.timed)) == (Standing.INCONCLUSIVE, 2)
    assert "90 % of a core" in one.reasons[-1]


def test_a_tampered_bundle_is_refused_and_the_others_are_judged(made_bundle: Bundle, tmp_path: Path):
    bad, good, slow = copies(made_bundle, 3)
    (bad / "run.py").write_text("print('hello')")
    device = ScriptedDevice({slow.name: 3.0})
    found = judge(tmp_path, device, bad, good, slow)
    assert [one.standing for one in found.bundles] == [Standing.REFUSED, Standing.MEETS, Standing.BREAKS]
    assert found.standing is Standing.REFUSED
    assert "run.py" in found.bundles[0].reasons[0]
    assert device.timed == [(good.name, slow.name)]


def test_what_is_no_bundle_of_ours_is_refused_with_its_reason(made_bundle: Bundle, tmp_path: Path):
    newer, unlimited, undeployed, odd, garbled = copies(made_bundle, 5)
    empty = tmp_path / "empty"
    empty.mkdir()
    rewrite(newer, lambda manifest: manifest.update(schema_version=99))
    rewrite(unlimited, lambda manifest: manifest.update(limits_ms={}))
    rewrite(undeployed, lambda manifest: manifest.update(deployments=[]))
    rewrite(odd, lambda manifest: manifest.update(limits_ms={"p75": 1.0}))
    (garbled / "manifest.json").write_text("{")
    found = judge(tmp_path, ScriptedDevice(), empty, newer, unlimited, undeployed, odd, garbled)
    assert {one.standing for one in found.bundles} == {Standing.REFUSED}
    reasons = [" ".join(one.reasons) for one in found.bundles]
    for reason, word in zip(
        reasons, ("not a bundle", "schema version 99", "no limits", "deployment", "p75", "malformed")
    ):
        assert word in reason


def test_a_missing_runtime_is_the_devices_lack_and_not_the_bundles_fault(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(missing=("openvino",))
    (one,) = judge(tmp_path, device, made_bundle.folder).bundles
    assert one.standing is Standing.UNAVAILABLE
    assert any("pip install" in reason for reason in one.reasons)
    assert device.timed == []
    (one,) = judge(
        tmp_path / "b", ScriptedDevice(missing=("openvino", "onnxruntime")), made_bundle.folder
    ).bundles
    assert one.standing is Standing.UNAVAILABLE


def test_one_that_can_no_longer_be_built_breaks(made_bundle: Bundle, tmp_path: Path):
    gone, good = copies(made_bundle, 2)
    found = judge(tmp_path, ScriptedDevice(unbuildable=(gone.name,)), gone, good)
    assert [one.standing for one in found.bundles] == [Standing.BREAKS, Standing.MEETS]
    assert "operator 'Conv' is gone" in found.bundles[0].reasons[0]


def test_one_that_dies_while_it_is_timed_breaks_alone(made_bundle: Bundle, tmp_path: Path):
    paths = copies(made_bundle, 3)
    device = ScriptedDevice(deadly=(paths[1].name,))
    found = judge(tmp_path, device, *paths)
    assert [one.standing for one in found.bundles] == [Standing.MEETS, Standing.BREAKS, Standing.MEETS]
    assert "signal 11" in found.bundles[1].reasons[0]


def test_one_that_computes_something_else_breaks_and_is_not_timed(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(bend=lambda logits: logits + 1)
    (one,) = judge(tmp_path, device, made_bundle.folder).bundles
    assert one.standing is Standing.BREAKS
    assert any("largest error" in reason for reason in one.reasons)
    assert device.timed == []


@pytest.mark.parametrize(
    ("error", "standing"),
    [(ModelError("it is hostile"), Standing.REFUSED), (WorkerDied("no answer"), Standing.UNAVAILABLE)],
)
def test_what_goes_wrong_while_looking_into_it_ends_that_bundle(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, standing: Standing
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "verify_bundle", fail)
    (one,) = judge(tmp_path, ScriptedDevice(), made_bundle.folder).bundles
    assert one.standing is standing


def test_a_file_that_changes_between_the_check_and_the_measurement_is_refused(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    device = ScriptedDevice()
    monkeypatch.setattr(device, "build", lambda engine: engine.model.weights.verified())
    real = module.verify_bundle

    def then_changed(*given: Any) -> Any:
        report = real(*given)
        (made_bundle.folder / "model.bin").write_bytes(b"other weights")
        return report

    monkeypatch.setattr(module, "verify_bundle", then_changed)
    assert judge(tmp_path, device, made_bundle.folder).bundles[0].standing is Standing.REFUSED


def on_other_hardware() -> Conditions:
    return replace(HERE, hardware=replace(HERE.hardware, processor="another", cores=64))


def test_other_hardware_is_said_loudly_and_does_not_block(made_bundle: Bundle, tmp_path: Path):
    (one,) = judge(tmp_path, ScriptedDevice(machine=on_other_hardware()), made_bundle.folder).bundles
    assert (one.standing, one.same_hardware) == (Standing.MEETS, False)
    assert "OTHER HARDWARE" in one.reasons[-1]
    assert {change.what for change in one.changes} >= {"processor", "cores"}


def test_other_hardware_is_not_judged_where_the_same_is_asked_for(made_bundle: Bundle, tmp_path: Path):
    device = ScriptedDevice(machine=on_other_hardware())
    (one,) = judge(tmp_path, device, made_bundle.folder, same_hardware=True).bundles
    assert one.standing is Standing.INCOMPARABLE
    assert device.timed == []
    (one,) = judge(tmp_path / "b", ScriptedDevice(), made_bundle.folder, same_hardware=True).bundles
    assert one.standing is Standing.MEETS


def test_what_changed_in_the_software_is_named(made_bundle: Bundle):
    then = read_manifest(made_bundle.folder).accepted.latency
    software = then.conditions.software
    runtimes = {**software.runtimes, "openvino": "2027.1", "tensorrt": "11.0"}
    del runtimes["onnxruntime"]
    changed = replace(software, runtimes=runtimes, kernel="7.0", governor="powersave")
    now = replace(then.conditions, software=changed)
    found = {change.what: (change.then, change.now) for change in changes_between(then, now)}
    assert found == {
        "openvino": (software.runtimes["openvino"], "2027.1"),
        "onnxruntime": (software.runtimes["onnxruntime"], "absent"),
        "tensorrt": ("absent", "11.0"),
        "kernel": (software.kernel, "7.0"),
        "governor": (software.governor, "powersave"),
    }


def test_a_measurement_by_another_protocol_is_a_change_and_load_is_none(made_bundle: Bundle):
    then = read_manifest(made_bundle.folder).accepted.latency
    assert changes_between(then, replace(HERE, load=replace(HERE.load, load_average=9.0))) == ()
    older = replace(then, protocol=replace(then.protocol, version=ACCEPTANCE.version - 1))
    assert [change.what for change in changes_between(older, HERE)] == ["timing protocol"]


def test_too_few_samples_decide_nothing(made_bundle: Bundle):
    manifest = read_manifest(made_bundle.folder)
    (limit,) = held(manifest, latency(0.5, samples=20))
    assert limit.high_ms is None  # 20 samples say nothing of a p99's upper end
    assert limit.standing is Standing.INCONCLUSIVE
    (limit,) = held(replace(manifest, limits_ms={"p50": 1.0}), latency(2.0, samples=1))
    assert (limit.low_ms, limit.standing) == (None, Standing.INCONCLUSIVE)


def test_nothing_in_a_bundle_is_changed(made_bundle: Bundle, tmp_path: Path):
    before = {path.name: sha256_of(path) for path in made_bundle.folder.iterdir()}
    judge(tmp_path, ScriptedDevice(), made_bundle.folder)
    assert {path.name: sha256_of(path) for path in made_bundle.folder.iterdir()} == before


def test_an_infinite_error_is_told_in_words_that_json_can_hold(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    worst = Parity(max_error=math.inf, scale=1.0, changed_labels=2, samples=2)
    check = Check(name="openvino/fp32", passed=False, detail="largest error inf", parity=worst)
    report = VerifyReport(folder=made_bundle.folder, checks=(check,))
    monkeypatch.setattr(module, "verify_bundle", lambda *_: report)
    found = judge(tmp_path, ScriptedDevice(), made_bundle.folder)
    assert found.standing is Standing.BREAKS
    assert "largest error inf" in encode(found)
