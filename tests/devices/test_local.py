from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.devices import Device, connect, local
from edgekd.devices.local import LocalDevice
from edgekd.errors import BuildError, DataError, DeviceError, IntegrityError, ModelError, UsageError
from edgekd.timing import conditions, cores
from edgekd.values.artifact import Artifact
from edgekd.values.conditions import TrustVerdict
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.order import SampleOrder
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Profile, Target
from edgekd.wire import Child
from tests.contracts import models

R = TypeVar("R")
SHORT = Protocol(launches=2, blocks=3, samples=20, warmup_ms=0.1)


def target(*runtimes: str, device: str = "local", build_timeout_s: float = 60.0) -> Target:
    precisions = dict.fromkeys(runtimes, (Precision.FP32,))
    profile = Profile(name="test", description="", runtimes=precisions, build_timeout_s=build_timeout_s)
    return Target(profile=profile, device=device, runtimes=runtimes, threads=1)


@pytest.fixture
def device() -> LocalDevice:
    return LocalDevice(target("rehearsal"))


def test_connecting_to_this_machine_gives_a_device():
    with connect(target("rehearsal")) as device:
        assert device.name == "local"


def test_connecting_to_a_name_that_nobody_added_says_how_to_add_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(DeviceError, match="jetson-1") as caught:
        connect(target("rehearsal", device="jetson-1"))
    assert "edgekd devices add" in caught.value.mend
    assert caught.value.exit_code == 4


def test_a_session_that_is_recorded_is_answered_again_without_the_machine(tmp_path: Path):
    asked = target("rehearsal")
    path = models.conv_net(tmp_path / "m.onnx")
    with connect(replace(asked, record=str(tmp_path / "tape.jsonl"))) as device:
        (live,) = device.time([models.engine(path)], SHORT)
    with connect(replace(asked, device=f"cassette:{tmp_path / 'tape.jsonl'}")) as device:
        assert device.time([models.engine(path)], SHORT) == (live,)


def test_a_local_device_is_a_device():
    device: Device = LocalDevice(target("rehearsal"))  # held by mypy; here only that it is made
    assert device.device_seconds == 0


def test_building_says_what_it_costs_and_takes_device_time(device: LocalDevice, tmp_path: Path):
    reply = device.build(models.engine(models.conv_net(tmp_path / "m.onnx")))
    assert reply.signature.outputs[0].name == "logits"
    assert device.device_seconds > 0


def test_times_come_in_run_order_with_their_conditions(device: LocalDevice, tmp_path: Path):
    (latency,) = device.time([models.engine(models.conv_net(tmp_path / "m.onnx"))], SHORT)
    assert len(latency.samples_ms) == len(latency.cpu_ms) == 2 * 3 * 20
    assert latency.protocol == SHORT
    assert latency.trust.verdict is TrustVerdict.GOOD, latency.trust.reasons
    assert latency.conditions.hardware.cores >= 1
    assert latency.percentile(99) >= latency.percentile(50) > 0


def test_the_smaller_network_is_the_faster_one_whatever_the_order(device: LocalDevice, tmp_path: Path):
    engines = [
        models.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width, side=16))
        for width in (32, 8, 16)
    ]
    large, small, middle = (latency.percentile(50) for latency in device.time(engines, SHORT))
    assert small < middle < large


def test_the_rehearsed_times_are_the_same_each_time(device: LocalDevice, tmp_path: Path):
    engines = [models.engine(models.conv_net(tmp_path / "m.onnx"))]
    assert device.time(engines, SHORT)[0].samples_ms == device.time(engines, SHORT)[0].samples_ms


def test_turns_are_interleaved_in_a_seeded_random_order(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    turns: list[int] = []

    class Watched(Child):
        def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
            if name == "sample":
                turns.append(self.pid)
            return super().ask(name, order, reply, timeout_s=timeout_s)

    monkeypatch.setattr(local, "Child", Watched)
    engines = [models.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width)) for width in (2, 4, 6)]
    device.time(engines, Protocol(launches=1, blocks=8, samples=1, warmup_ms=0.1))
    rounds = [tuple(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert all(len(set(one)) == 3 for one in rounds)  # a turn each, in every round
    assert len(set(rounds)) > 1  # and not always in the same order


def test_every_launch_is_a_fresh_process(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[int] = []

    class Watched(Child):
        def __init__(
            self, module: str, *, memory_mib: int = 0, threads: int | None = None, runtime: str = ""
        ) -> None:
            super().__init__(module, memory_mib=memory_mib, threads=threads, runtime=runtime)
            started.append(self.pid)

    monkeypatch.setattr(local, "Child", Watched)
    device.time([models.engine(models.conv_net(tmp_path / "m.onnx"))], SHORT)
    assert len(set(started)) == SHORT.launches


ONE_CORE = Protocol(launches=2, blocks=1, samples=1, warmup_ms=0.1, one_core=True)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins nothing")
@pytest.mark.parametrize(
    ("protocol", "threads"), [(ONE_CORE, 1), (ONE_CORE, 2), (replace(ONE_CORE, one_core=False), 1)]
)
def test_single_threaded_engines_of_a_launch_share_a_core_where_the_protocol_says_so(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: Protocol, threads: int
):
    seen: list[set[int]] = []

    class Watched(Child):
        def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
            if name == "sample":
                seen.append(os.sched_getaffinity(self.pid))
            return super().ask(name, order, reply, timeout_s=timeout_s)

    monkeypatch.setattr(local, "Child", Watched)
    paths = [models.conv_net(tmp_path / f"{width}.onnx", width=width) for width in (2, 4)]
    first, _ = device.time([replace(models.engine(path), threads=threads) for path in paths], protocol)
    allowed = os.sched_getaffinity(0)
    large = cores.fastest(allowed)
    own = [{large[launch % len(large)]} for launch in (0, 0, 1, 1)]
    assert seen == (own if protocol.one_core and threads == 1 else [allowed] * 4)
    assert first.conditions.hardware.cores == conditions.cores()  # the machine's, not the launch's


def test_launches_take_their_turns_in_other_orders(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[str]] = []

    class Watched(Child):
        def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
            if name == "open":
                self.file = order.engine.model.file.path.name
                if self.file == "2.onnx":
                    asked.append([])
            if name == "sample":
                asked[-1].append(self.file)
            return super().ask(name, order, reply, timeout_s=timeout_s)

    monkeypatch.setattr(local, "Child", Watched)
    engines = [models.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width)) for width in (2, 4)]
    device.time(engines, Protocol(launches=2, blocks=12, samples=1, warmup_ms=0.1))
    assert len(asked) == 2
    assert asked[0] != asked[1]


def test_all_workers_of_a_launch_have_started_before_the_first_opens(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    runtimes: list[str] = []

    class Watched(Child):
        def __init__(
            self, module: str, *, memory_mib: int = 0, threads: int | None = None, runtime: str = ""
        ) -> None:
            super().__init__(module, memory_mib=memory_mib, threads=threads, runtime=runtime)
            runtimes.append(runtime)

        def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
            asked.append(name)
            return super().ask(name, order, reply, timeout_s=timeout_s)

    monkeypatch.setattr(local, "Child", Watched)
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
    device.time([engine, engine], Protocol(launches=1, blocks=1, samples=1, warmup_ms=0.1))
    assert asked[:4] == ["probe", "probe", "open", "open"]
    assert runtimes == ["rehearsal", "rehearsal"]


def test_throttling_in_one_arm_is_told_of_that_arm(device: LocalDevice, tmp_path: Path):
    engines = [
        models.engine(models.conv_net(tmp_path / "good.onnx")),
        models.engine(models.rehearsing(models.conv_net(tmp_path / "hot.onnx"), throttle="2:1.3")),
    ]
    good, hot = device.time(engines, SHORT)
    assert not good.throttle
    assert hot.throttle.startswith("throttled")
    assert hot.throttle in hot.trust.reasons


def test_an_arm_that_gives_no_number_in_the_middle_is_named(device: LocalDevice, tmp_path: Path):
    engines = [
        models.engine(models.conv_net(tmp_path / "good.onnx")),
        models.engine(models.rehearsing(models.conv_net(tmp_path / "bad.onnx"), nan_after=60)),
    ]
    with pytest.raises(BuildError, match=r"bad\.onnx.*NaN"):
        device.time(engines, SHORT)


def test_an_arm_that_crashes_in_the_middle_is_named(device: LocalDevice, tmp_path: Path):
    engines = [
        models.engine(models.conv_net(tmp_path / "good.onnx")),
        models.engine(models.rehearsing(models.conv_net(tmp_path / "bad.onnx"), crash_after=60)),
    ]
    with pytest.raises(BuildError, match=r"rehearsal/fp32 cannot run bad\.onnx"):
        device.time(engines, SHORT)


def test_an_answer_that_changed_is_a_reason_to_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = """
import sys
from edgekd.timing import sampling
from edgekd.worker import __main__
sampling.Answers.agree = lambda self, asked, answer: False
__main__.main(sys.argv[1:])
"""
    (tmp_path / "a_worker_that_doubts.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "_WORKER", "a_worker_that_doubts")
    (latency,) = LocalDevice(target("rehearsal")).time(
        [models.engine(models.conv_net(tmp_path / "m.onnx"))], SHORT
    )
    assert "another answer" in latency.trust.reasons[0]


def test_a_period_and_a_soak_reach_the_worker(
    device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    orders: list[SampleOrder] = []

    class Watched(Child):
        def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
            if isinstance(order, SampleOrder):
                orders.append(order)
                assert timeout_s > order.soak_s + order.samples * order.period_ms / 1e3
            return super().ask(name, order, reply, timeout_s=timeout_s)

    monkeypatch.setattr(local, "Child", Watched)
    protocol = Protocol(launches=1, blocks=4, samples=2, warmup_ms=0.1, period_ms=40_000.0, soak_s=600.0)
    device.time([models.engine(models.conv_net(tmp_path / "m.onnx"))], protocol)
    assert orders == [SampleOrder(samples=2, period_ms=40_000.0, soak_s=150.0)] * 4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_ledger_comes_from_a_process_of_its_own(runtime: str, tmp_path: Path):
    device = LocalDevice(target(runtime))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8))
    recipe = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"), runtime)
    found = device.ledger(engine, Artifact.of(tmp_path / "x.npy"), recipe)
    assert all(ms > 0 for ms in found.parts_ms.values())
    assert found.whole_ms > 0
    assert device.device_seconds > 0


def test_a_ledger_of_a_model_that_takes_other_images_is_refused(device: LocalDevice, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 1), dtype=np.uint8))
    recipe = Preprocess(height=8, width=8, mean=(0.4,), std=(0.3,))
    with pytest.raises(ModelError, match="pre-processing"):
        device.ledger(
            models.engine(models.conv_net(tmp_path / "m.onnx")), Artifact.of(tmp_path / "x.npy"), recipe
        )


def test_inferring_gives_a_row_an_input_row(device: LocalDevice, tmp_path: Path):
    path = models.conv_net(tmp_path / "m.onnx")
    given = np.random.default_rng(0).random((5, 1, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", given)
    inputs = {"image": Artifact.of(tmp_path / "x.npy")}
    outputs = device.infer(models.engine(path), inputs, tmp_path / "out")
    found = np.load(outputs["logits"].verified(), allow_pickle=False)
    right = [ReferenceEvaluator(onnx.load(str(path))).run(None, {"image": image})[0] for image in given]
    np.testing.assert_allclose(found, right, atol=1e-6)


def test_relative_paths_work(device: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models.conv_net(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 3, 8, 8), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    inputs = {"image": Artifact.of(Path("x.npy"))}
    outputs = device.infer(models.engine(Path("m.onnx")), inputs, Path("out"))
    assert outputs["logits"].path.resolve() == (tmp_path / "out" / "output_0.npy").resolve()


def test_inputs_that_are_no_arrays_are_data_errors(device: LocalDevice, tmp_path: Path):
    (tmp_path / "x.npy").write_bytes(b"not an array")
    inputs = {"image": Artifact.of(tmp_path / "x.npy")}
    with pytest.raises(DataError, match=r"x\.npy"):
        device.infer(models.engine(models.conv_net(tmp_path / "m.onnx")), inputs, tmp_path / "out")


def test_a_file_changed_since_it_was_named_is_refused(device: LocalDevice, tmp_path: Path):
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
    models.conv_net(tmp_path / "m.onnx", width=3)
    with pytest.raises(IntegrityError):
        device.build(engine)


def test_inspecting_reads_a_signature_and_refuses_a_hostile_file(device: LocalDevice, tmp_path: Path):
    found = device.inspect(Artifact.of(models.embedding(tmp_path / "m.onnx")))
    assert found.inputs[0].dtype == "int64"
    with pytest.raises(ModelError, match="hostile"):
        device.inspect(Artifact.of(models.pool_with_huge_stride(tmp_path / "bad.onnx")))


@pytest.mark.parametrize("make", [models.conv_without_weights, models.pool_with_huge_stride])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_hostile_model_is_refused_before_the_runtime_sees_it(
    make: models.Make, runtime: str, tmp_path: Path
):
    with pytest.raises(ModelError, match="hostile"):
        LocalDevice(target(runtime)).build(models.engine(make(tmp_path / "m.onnx"), runtime))


UNGUARDED = """
import sys
from edgekd.worker import guard, __main__
guard.check = lambda *_: None
__main__.main(sys.argv[1:])
"""


@pytest.mark.parametrize("make", [models.conv_without_weights, models.pool_with_huge_stride])
def test_a_model_that_kills_its_runtime_is_a_build_error_that_names_the_engine(
    make: models.Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "an_unguarded_worker.py").write_text(UNGUARDED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "_WORKER", "an_unguarded_worker")
    device = LocalDevice(target("openvino"))
    with pytest.raises(BuildError, match="openvino/fp32") as caught:
        device.build(models.engine(make(tmp_path / "m.onnx"), "openvino"))
    assert "SIG" in caught.value.cause
    healthy = models.engine(models.conv_net(tmp_path / "good.onnx"), "openvino")
    assert device.build(healthy).signature.outputs[0].shape == (1, 5)


DYING = """
import os, signal, sys
from edgekd.worker import orders, __main__
orders.Worker.{order} = lambda self, order: os.kill(os.getpid(), signal.SIGSEGV)
__main__.main(sys.argv[1:])
"""


@pytest.mark.parametrize("order", ["warm_up", "sample", "infer"])
def test_an_engine_that_dies_later_is_a_build_error_that_names_it(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a_dying_worker.py").write_text(DYING.format(order=order))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "_WORKER", "a_dying_worker")
    device = LocalDevice(target("rehearsal"))
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
    ordered = (
        (lambda: device.infer(engine, {}, tmp_path))
        if order == "infer"
        else (lambda: device.time([engine], SHORT))
    )
    with pytest.raises(BuildError, match="rehearsal/fp32") as caught:
        ordered()
    assert "SIGSEGV" in caught.value.cause


def test_a_probe_reports_one_runtime_that_dies_and_the_others_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = """
import os, signal, sys
from edgekd.worker import orders, __main__
health = orders.health
orders.health = lambda name: os.kill(os.getpid(), signal.SIGILL) if name == "openvino" else health(name)
__main__.main(sys.argv[1:])
"""
    (tmp_path / "a_half_broken_worker.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "_WORKER", "a_half_broken_worker")
    reply = LocalDevice(target("openvino", "rehearsal")).probe()
    broken, working = reply.runtimes
    assert working.works
    assert not broken.works
    assert "SIGILL" in broken.problem
    assert "openvino" in broken.mend


def test_a_build_that_takes_too_long_is_a_build_error_that_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = """
import sys
from edgekd.worker import orders, __main__
def forever(self, order):
    while True: pass
orders.Worker.open = forever
__main__.main(sys.argv[1:])
"""
    (tmp_path / "a_hanging_worker.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "_WORKER", "a_hanging_worker")
    device = LocalDevice(target("rehearsal", build_timeout_s=0.5))
    with pytest.raises(BuildError, match="rehearsal/fp32") as caught:
        device.build(models.engine(models.conv_net(tmp_path / "m.onnx")))
    assert "build_timeout_s" in caught.value.mend


def test_an_unknown_runtime_is_named(device: LocalDevice, tmp_path: Path):
    with pytest.raises(UsageError, match="tvm"):
        device.build(models.engine(models.conv_net(tmp_path / "m.onnx"), "tvm"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_real_runtime_is_timed_with_real_conditions(runtime: str, tmp_path: Path):
    engines = [
        models.engine(models.conv_net(tmp_path / f"{w}.onnx", width=w, side=16), runtime) for w in (4, 128)
    ]
    small, large = LocalDevice(target(runtime)).time(
        engines, Protocol(launches=1, blocks=2, samples=20, warmup_ms=5.0)
    )
    assert min(small.samples_ms) < min(large.samples_ms)
    assert runtime in small.conditions.software.runtimes
    assert all(ms > 0 for ms in small.cpu_ms)
