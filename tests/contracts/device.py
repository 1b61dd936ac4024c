"""What every device must do; a device's own test file subclasses `DeviceContract`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.devices import Device
from edgekd.errors import BuildError, DataError, IntegrityError, ModelError, UsageError
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Precision
from edgekd.values.preprocess import Preprocess
from edgekd.values.target import Profile, Target
from tests.contracts import models

SHORT = Protocol(launches=2, blocks=2, samples=4, warmup_ms=0.1)


def target(*runtimes: str, device: str = "local") -> Target:
    """Name a target that has these runtimes."""
    profile = Profile(
        name="test",
        description="",
        runtimes=dict.fromkeys(runtimes, (Precision.FP32,)),
        build_timeout_s=120.0,
    )
    return Target(profile=profile, device=device, runtimes=runtimes, threads=1)


class DeviceContract:
    """Subclass it with a runtime that the device has, and a fixture `device` that is entered already."""

    runtime = "rehearsal"  # needs the package onnx there; any other will do

    @pytest.fixture
    def device(self) -> Device:
        raise NotImplementedError

    def engine(self, path: Path) -> Engine:
        return models.engine(path, self.runtime)

    def test_it_says_what_the_machine_is_and_that_its_runtime_works(self, device: Device):
        found = device.probe()
        assert device.name
        assert found.conditions.hardware.cores >= 1
        assert {one.name: one.works for one in found.runtimes} == {self.runtime: True}

    def test_orders_take_device_time(self, device: Device, tmp_path: Path):
        before_s = device.device_seconds
        device.build(self.engine(models.conv_net(tmp_path / "m.onnx")))
        assert device.device_seconds > before_s

    def test_a_signature_is_read(self, device: Device, tmp_path: Path):
        (takes,) = device.inspect(Artifact.of(models.embedding(tmp_path / "m.onnx"))).inputs
        assert (takes.name, takes.dtype, takes.shape) == ("tokens", "int64", (1, 7))

    def test_a_hostile_model_is_refused(self, device: Device, tmp_path: Path):
        bad = models.pool_with_huge_stride(tmp_path / "bad.onnx")
        with pytest.raises(ModelError, match="hostile"):
            device.inspect(Artifact.of(bad))
        with pytest.raises(ModelError, match="hostile"):
            device.build(self.engine(bad))

    def test_building_says_what_the_model_takes_and_what_it_costs(self, device: Device, tmp_path: Path):
        found = device.build(self.engine(models.conv_net(tmp_path / "m.onnx")))
        assert [one.name for one in found.signature.outputs] == ["logits"]
        assert found.open_ms > 0
        assert found.memory_mib >= 0

    def test_what_cannot_be_built_is_a_build_error_that_names_the_engine(
        self, device: Device, tmp_path: Path
    ):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        int8 = replace(engine, precision=Precision.INT8)
        with pytest.raises(BuildError) as caught:
            device.build(int8)
        assert int8.name in caught.value.what
        with pytest.raises(BuildError):
            device.time([engine, int8], SHORT)

    def test_a_file_changed_since_it_was_named_is_refused(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        models.conv_net(tmp_path / "m.onnx", width=3)
        with pytest.raises(IntegrityError):
            device.build(engine)

    def test_a_compiled_file_lies_in_the_folder_given_and_can_be_built(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        made = device.compile(engine, tmp_path / "made")
        assert made.file.verified().parent.resolve() == (tmp_path / "made").resolve()
        if made.weights is not None:
            assert made.weights.verified() == made.file.path.with_suffix(".bin")
        assert device.build(replace(engine, model=made)).signature.outputs[0].name == "logits"

    def test_engines_are_timed_together_each_with_all_its_samples(self, device: Device, tmp_path: Path):
        small, large = (
            self.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width, side=16))
            for width in (2, 32)
        )
        found = device.time([small, large], SHORT)
        assert [len(one.samples_ms) for one in found] == [16, 16]
        assert [len(one.cpu_ms) for one in found] == [16, 16]
        assert [one.block_sizes for one in found] == [(4, 4, 4, 4)] * 2
        assert [len(one.launches) for one in found] == [2, 2]
        assert [one.protocol for one in found] == [SHORT, SHORT]
        assert found[0].conditions.fingerprint == found[1].conditions.fingerprint
        assert all(ms > 0 for one in found for ms in one.samples_ms)

    def test_an_engine_is_timed_against_itself(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        assert len(device.time([engine, engine], replace(SHORT, seed=7))) == 2

    def test_a_question_asked_twice_is_answered_twice(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        for _ in range(2):
            assert len(device.time([engine], SHORT)[0].samples_ms) == 16

    def test_whole_requests_are_itemised(self, device: Device, tmp_path: Path):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8))
        recipe = Preprocess(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        found = device.ledger(engine, Artifact.of(tmp_path / "x.npy"), recipe)
        assert found.samples > 0
        assert found.whole_ms > 0

    def test_energy_is_that_of_inferences_or_there_is_no_meter(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        found = device.energy(engine, seconds=0.6)
        assert found is None or (found.inferences > 0 and found.busy_s > 0.3 and found.source)
        with pytest.raises(UsageError, match="cannot be measured over 0 s"):
            device.energy(engine, seconds=0.0)

    def test_layers_are_listed_in_order_with_times_that_are_times(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        found = device.layers(engine, passes=3)
        assert [one.kind for one in found if one.kind.startswith("Conv")] == ["Conv", "Conv"]
        assert all(one.time_ms is None or one.time_ms >= 0 for one in found)
        assert any(one.time_ms for one in found)
        with pytest.raises(UsageError, match="cannot be timed 0 times"):
            device.layers(engine, passes=0)

    def test_weights_beside_an_onnx_go_where_it_goes(self, device: Device, tmp_path: Path):
        engine = models.spread_engine(models.spread_net(tmp_path / "m.onnx"), self.runtime)
        assert [file.path.name for file in engine.model.external] == ["w.bin", "w e.data"]
        whole = self.engine(models.conv_net(tmp_path / "whole.onnx"))
        assert device.inspect(engine.model.file) == device.inspect(whole.model.file)
        assert device.build(engine).signature == device.build(whole).signature
        assert len(device.time([engine, whole], SHORT)) == 2
        np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 1, 3, 8, 8), dtype=np.float32))
        inputs = {"image": Artifact.of(tmp_path / "x.npy")}
        spread, alone = (
            device.infer(one, inputs, tmp_path / f"out{at}")["logits"].verified()
            for at, one in enumerate((engine, whole))
        )
        np.testing.assert_allclose(np.load(spread), np.load(alone), rtol=1e-5)

    def test_what_is_compiled_of_it_is_whole_in_its_folder(self, device: Device, tmp_path: Path):
        engine = models.spread_engine(models.spread_net(tmp_path / "m.onnx"), self.runtime)
        made = device.compile(engine, tmp_path / "made")
        assert all((tmp_path / "made").resolve() in one.verified().resolve().parents for one in made.files)
        assert device.build(replace(engine, model=made)).signature.outputs[0].name == "logits"

    def test_weights_that_were_not_named_or_changed_are_refused(self, device: Device, tmp_path: Path):
        engine = models.spread_engine(models.spread_net(tmp_path / "m.onnx"), self.runtime)
        unnamed = replace(engine, model=replace(engine.model, external=engine.model.external[:1]))
        with pytest.raises(IntegrityError):
            device.build(unnamed)
        (tmp_path / "more" / "w.bin").write_bytes(b"other")
        with pytest.raises(IntegrityError, match=r"w\.bin"):
            device.build(engine)

    def test_outputs_are_right_and_lie_in_the_folder_given(self, device: Device, tmp_path: Path):
        path = models.recurrent_cell(tmp_path / "m.onnx")
        rng, inputs, fed = np.random.default_rng(0), {}, {}
        for name, size in (("frame", 4), ("state", 6)):
            fed[name] = rng.random((5, 1, size)).astype(np.float32)
            np.save(tmp_path / f"{name}.npy", fed[name])
            inputs[name] = Artifact.of(tmp_path / f"{name}.npy")
        outputs = device.infer(self.engine(path), inputs, tmp_path / "out")
        reference = ReferenceEvaluator(onnx.load(str(path)))
        assert list(outputs) == reference.output_names
        for at, name in enumerate(outputs):
            right = [reference.run(None, {one: fed[one][row] for one in fed})[at] for row in range(5)]
            np.testing.assert_allclose(
                np.load(outputs[name].verified(), allow_pickle=False), right, atol=1e-5
            )
        made = {file.resolve() for file in (tmp_path / "out").rglob("*")}
        assert made == {one.path.resolve() for one in outputs.values()}

    def test_inputs_that_do_not_fit_are_data_errors(self, device: Device, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        (tmp_path / "x.npy").write_bytes(b"not an array")
        with pytest.raises(DataError, match=r"x\.npy"):
            device.infer(engine, {"image": Artifact.of(tmp_path / "x.npy")}, tmp_path / "out")
        with pytest.raises(DataError, match=r"'imgae' is no input|'image' has no"):
            device.infer(engine, {"imgae": Artifact.of(tmp_path / "x.npy")}, tmp_path / "out")
