from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.devices.local import LocalDevice
from edgekd.errors import BuildError, DeviceError
from edgekd.stages.configure import target_from
from edgekd.stages.write_profile import draft_profile, write_profile
from edgekd.values.conditions import Conditions, Hardware, Load, Software
from edgekd.values.job import TargetSection
from edgekd.values.model import Engine, Precision, Signature
from edgekd.values.order import OpenReply, ProbeReply, RuntimeHealth
from edgekd.values.target import Profile, Target
from tests.pipeline.rehearsed import WorkerHere

TODAY = "2026-02-03T04:05:06+00:00"
CONDITIONS = Conditions(
    hardware=Hardware(machine="aarch64", processor='A "76"\x7f', cores=4, memory_mib=7900, features=()),
    software=Software(system="Linux", kernel="6", python="3.10", runtimes={}, governor="performance"),
    load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
)
WORKS = RuntimeHealth(name="onnxruntime", version="1.26.0-dev", works=True)
ABSENT = RuntimeHealth(name="openvino", version="", works=False, mend="pip install openvino")
REPLY = ProbeReply(conditions=CONDITIONS, runtimes=(WORKS, ABSENT))


@dataclass
class Builder:
    """A device that builds in some precisions."""

    precisions: tuple[Precision, ...]
    asked: list[Engine] = field(default_factory=list)
    name: str = "pi"

    def build(self, engine: Engine) -> OpenReply:
        self.asked.append(replace(engine, model=replace(engine.model, file=engine.model.file.verified())))
        if engine.precision not in self.precisions:
            raise BuildError("not here")
        return OpenReply(signature=Signature(inputs=(), outputs=()), open_ms=1.0, memory_mib=1.0)


def written(folder: Path, device: Builder, reply: ProbeReply = REPLY) -> Profile:
    draft = draft_profile(reply, name="my-board")
    path = write_profile(folder, device, draft, reply, today=TODAY)  # type: ignore[arg-type]
    return target_from(TargetSection(profile=str(path)), Path()).profile


def test_a_profile_names_what_was_built_and_can_be_read_as_one(tmp_path: Path):
    device = Builder((Precision.FP32, Precision.INT8))
    found = written(tmp_path, device)
    assert (found.name, found.runtimes) == ("my-board", {"onnxruntime": (Precision.FP32, Precision.INT8)})
    assert (found.threads, found.memory_mib) == (1, 3904)  # half of 7,900, in steps of 64
    assert found.description.startswith('A "76"\N{REPLACEMENT CHARACTER}, aarch64')
    (source,) = found.sources
    assert TODAY in source
    assert "onnxruntime 1.26.0" in source
    assert [one.precision for one in device.asked] == list(Precision)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "my-board.toml"]


def test_without_a_runtime_that_works_there_is_no_profile_and_the_mend_is_told(tmp_path: Path):
    with pytest.raises(DeviceError) as caught:
        written(tmp_path, Builder(()), replace(REPLY, runtimes=(ABSENT,)))
    assert caught.value.mend == ABSENT.mend
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_int8_network_is_one_that_real_runtimes_build(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    profile = Profile(name="x", description="", runtimes={runtime: (Precision.FP32,)})
    device = LocalDevice(Target(profile=profile, device="local", runtimes=(runtime,), threads=1))
    reply = ProbeReply(conditions=CONDITIONS, runtimes=(replace(WORKS, name=runtime),))
    path = write_profile(tmp_path, device, draft_profile(reply, name="here"), reply, today=TODAY)
    found = target_from(TargetSection(profile=str(path)), Path()).profile
    assert {Precision.FP32, Precision.INT8} <= set(found.runtimes[runtime])


def test_a_runtime_that_reads_the_precision_from_the_graph_is_given_one_in_fp16(tmp_path: Path):
    class Reading(Builder):
        def build(self, engine: Engine) -> OpenReply:
            if engine.precision is Precision.INT8:
                return super().build(engine)
            model = onnx.load(engine.model.file.verified())
            onnx.checker.check_model(model, full_check=True)
            kinds[engine.precision] = {one.data_type for one in model.graph.initializer}
            pixels = np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)
            (answers[engine.precision],) = ReferenceEvaluator(model).run(None, {"image": pixels})
            return super().build(engine)

    kinds: dict[Precision, set[int]] = {}
    answers: dict[Precision, np.ndarray] = {}
    reply = replace(REPLY, runtimes=(replace(WORKS, name="tensorrt"),))
    found = written(tmp_path, Reading((Precision.FP32, Precision.FP16)), reply)
    assert found.runtimes == {"tensorrt": (Precision.FP32, Precision.FP16)}
    assert kinds[Precision.FP16] == {onnx.TensorProto.FLOAT16}
    scale = np.abs(answers[Precision.FP32]).max()
    np.testing.assert_allclose(answers[Precision.FP16], answers[Precision.FP32], atol=1e-2 * scale)
    assert (answers[Precision.FP16] != answers[Precision.FP32]).any()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "my-board.toml"]


def test_a_runtime_that_builds_nothing_within_the_limits_is_no_part_of_the_profile(tmp_path: Path):
    class Picky(Builder):
        def build(self, engine: Engine) -> OpenReply:
            if engine.runtime == "openvino":
                raise BuildError("out of memory")
            return super().build(engine)

    both = replace(REPLY, runtimes=(WORKS, replace(WORKS, name="openvino")))
    assert written(tmp_path, Picky((Precision.FP32,)), both).runtimes == {"onnxruntime": (Precision.FP32,)}
    (tmp_path / "my-board.toml").unlink()
    with pytest.raises(DeviceError, match="no runtime builds a network on pi") as caught:
        written(tmp_path, Picky(()), both)
    assert "3904 MiB" in caught.value.cause
    assert not list(tmp_path.iterdir())
