"""What every backend must do; a backend's own test file subclasses `BackendContract`."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd import backends
from edgekd.backends import rehearsal
from edgekd.errors import BuildError
from edgekd.timing import conditions
from edgekd.timing.sampling import varied_inputs
from edgekd.values.artifact import Artifact
from edgekd.values.layer import shares
from edgekd.values.model import Engine, Model, Precision
from tests.contracts import models


class BackendContract:
    """Subclass it with the runtime's name."""

    runtime: str
    tolerance = 2e-5  # of the largest output

    @pytest.fixture
    def backend(self) -> backends.Backend:
        return backends.load(self.runtime)

    def engine(self, path: Path, precision: Precision = Precision.FP32, **shapes: tuple[int, ...]) -> Engine:
        return models.engine(path, self.runtime, precision, shapes=shapes or None)

    def assert_right(
        self, backend: backends.Backend, path: Path, *, most_off: float | None = None, count: int = 4
    ) -> None:
        """Compare answers to varied inputs with the ONNX reference."""
        reference = ReferenceEvaluator(onnx.load(str(path)))
        with backend.open(self.engine(path)) as session:
            names = [spec.name for spec in session.signature.outputs]
            for feeds in varied_inputs(session.signature, seed=3, count=count):
                found = session.run(feeds)
                assert list(found) == names
                for name, right in zip(reference.output_names, reference.run(None, dict(feeds)), strict=True):
                    off = np.abs(found[name] - right).max()
                    assert off <= (most_off or self.tolerance) * max(1.0, np.abs(right).max())

    def test_it_is_listed_and_says_its_version(self, backend: backends.Backend):
        assert self.runtime in backends.NAMES
        assert backend.version()[0].isdigit()
        assert Precision.FP32 in backend.precisions()

    def test_a_small_network_gives_the_reference_answers(self, backend: backends.Backend, tmp_path: Path):
        self.assert_right(backend, models.conv_net(tmp_path / "m.onnx"))

    def test_several_inputs_and_recurrent_state_go_by_name(self, backend: backends.Backend, tmp_path: Path):
        self.assert_right(backend, models.recurrent_cell(tmp_path / "m.onnx"))

    def test_integers_go_in(self, backend: backends.Backend, tmp_path: Path):
        self.assert_right(backend, models.embedding(tmp_path / "m.onnx"))

    def test_outputs_keep_their_authors_names_and_order(self, backend: backends.Backend, tmp_path: Path):
        path = models.fused_outputs(tmp_path / "m.onnx")
        self.assert_right(backend, path)
        with backend.open(self.engine(path)) as session:
            assert [spec.name for spec in session.signature.outputs] == ["score", "copy", "box"]

    def test_different_inputs_give_different_answers(self, backend: backends.Backend, tmp_path: Path):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            ring = varied_inputs(session.signature, seed=0)
            answers = {session.run(feeds)["logits"].tobytes() for feeds in ring}
        assert len(answers) == len(ring)

    def test_int8_from_explicit_quantization_gives_the_reference_answers(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = models.quantized_net(tmp_path / "m.onnx")
        reference = rehearsal.reference(onnx.load(str(path)))
        with backend.open(self.engine(path, Precision.INT8)) as session:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            right = reference.run(None, dict(feeds))[0]
            assert np.abs(session.run(feeds)["maps"] - right).max() <= 0.02 * np.abs(right).max()

    def test_a_dynamic_dimension_is_one_unless_given(self, backend: backends.Backend, tmp_path: Path):
        path = models.conv_net(tmp_path / "m.onnx", batch="n")
        for engine, size in ((self.engine(path), 1), (self.engine(path, image=(3, 3, 8, 8)), 3)):
            with backend.open(engine) as session:
                assert session.signature.inputs[0].shape == (size, 3, 8, 8)
                feeds = varied_inputs(session.signature, seed=0, count=1)[0]
                assert session.run(feeds)["logits"].shape == (size, 5)

    @pytest.mark.parametrize(
        "shapes", [{"image": (1, 3, 9, 9)}, {"image": (1, 3)}, {"picture": (1, 3, 8, 8)}]
    )
    def test_a_shape_that_contradicts_the_model_is_refused(
        self, backend: backends.Backend, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
    ):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"), **shapes)
        with pytest.raises(BuildError, match=r"image|picture"), backend.open(engine):
            pass

    def test_answers_are_copies_and_inputs_are_left_alone(self, backend: backends.Backend, tmp_path: Path):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            first, second = varied_inputs(session.signature, seed=0, count=2)
            before = first["image"].copy()
            answer = session.run(first)["logits"]
            kept = answer.copy()
            session.run(second)
            np.testing.assert_array_equal(answer, kept)
            answer[:] = 0.0
            np.testing.assert_array_equal(session.run(first)["logits"], kept)
            np.testing.assert_array_equal(first["image"], before)

    @pytest.mark.parametrize(
        "make", [models.conv_net, models.recurrent_cell, models.embedding, models.fused_outputs]
    )
    def test_in_parts_an_inference_gives_what_it_gives_as_one(
        self, backend: backends.Backend, tmp_path: Path, make: Any
    ):
        with backend.open(self.engine(make(tmp_path / "m.onnx"))) as session:
            for feeds in varied_inputs(session.signature, seed=0, count=3):
                right, parts = session.run(feeds), session.run_in_parts(feeds)
                assert list(parts.outputs) == list(right)
                for name, array in right.items():
                    np.testing.assert_array_equal(parts.outputs[name], array)
                assert parts.compute_ns > 0
                assert min(parts.copy_in_ns, parts.copy_out_ns) >= 0

    def test_in_parts_answers_are_copies_and_inputs_are_left_alone(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = models.conv_net(tmp_path / "m.onnx", batch="n")
        for engine in (self.engine(path), self.engine(path, image=(3, 3, 8, 8))):
            with backend.open(engine) as session:
                first, second = varied_inputs(session.signature, seed=0, count=2)
                before = first["image"].copy()
                answer = session.run_in_parts(first).outputs["logits"]
                kept = answer.copy()
                session.run_in_parts(second)
                np.testing.assert_array_equal(answer, kept)
                answer[:] = 0.0
                np.testing.assert_array_equal(session.run_in_parts(first).outputs["logits"], kept)
                np.testing.assert_array_equal(first["image"], before)

    @pytest.mark.parametrize("shape", [(1, 3, 8, 1), (1, 1, 1, 1), (8, 8)])
    def test_an_input_of_another_shape_is_not_broadcast(
        self, backend: backends.Backend, tmp_path: Path, shape: tuple[int, ...]
    ):
        feeds = {"image": np.zeros(shape, dtype=np.float32)}
        path = models.conv_net(tmp_path / "m.onnx")
        with (
            backend.open(self.engine(path)) as session,
            pytest.raises(Exception, match=r"image|shape|rank|dimension"),
        ):
            session.run(feeds)
        with backend.open(self.engine(path)) as session, pytest.raises(ValueError, match="image"):
            session.run_in_parts(feeds)

    def test_the_clock_never_goes_back_and_inference_moves_it(
        self, backend: backends.Backend, tmp_path: Path
    ):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            readings = []
            for _ in range(20):
                readings.append((session.clock_ns(), session.cpu_clock_ns()))
                session.run(feeds)
        for before, after in pairwise(readings):
            assert after[0] > before[0]
            assert after[1] >= before[1]

    @pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>404</html>", b"\x08\x08:\x02zz"])
    def test_garbage_is_a_build_error(self, backend: backends.Backend, tmp_path: Path, content: bytes):
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with (
            pytest.raises(BuildError, match=r"cannot read|cannot compile|no graph"),
            backend.open(self.engine(path)),
        ):
            pass

    def test_another_format_is_a_build_error_that_says_what_it_reads(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = tmp_path / "m.tflite"
        path.write_bytes(b"TFL3")
        with pytest.raises(BuildError) as caught, backend.open(self.engine(path)):
            pass
        assert ".onnx" in caught.value.mend

    def test_an_unsupported_precision_is_a_build_error_that_names_the_others(
        self, backend: backends.Backend, tmp_path: Path
    ):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"), Precision.FP16)
        with pytest.raises(BuildError, match="fp16") as caught, backend.open(engine):
            pass
        assert "fp32" in caught.value.mend

    def test_a_float_model_does_not_pass_for_int8(self, backend: backends.Backend, tmp_path: Path):
        model = Model(file=Artifact.of(models.conv_net(tmp_path / "m.onnx")))
        engine = Engine(model=model, runtime=self.runtime, precision=Precision.INT8)
        with pytest.raises(BuildError, match="int8"), backend.open(engine):
            pass

    def test_it_tells_the_layers_it_runs_and_what_each_takes(self, backend: backends.Backend, tmp_path: Path):
        (folder := tmp_path / "alone").mkdir()
        found = backend.layers(self.engine(models.conv_net(folder / "m.onnx", width=64)), 5)
        assert any("conv" in layer.kind.lower() for layer in found)
        assert all(layer.name for layer in found)
        assert all(layer.time_ms is not None for layer in found)
        assert sum(part or 0.0 for part in shares(found)) == pytest.approx(1.0)
        assert {path.name for path in folder.iterdir()} == {"m.onnx"}  # a profile is a file of nobody's

    def test_layers_that_nobody_timed_have_no_time(self, backend: backends.Backend, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        untimed, timed = backend.layers(engine, 0), backend.layers(engine, 1)
        found = [[one.kind for one in layers if "conv" in one.kind.lower()] for layers in (untimed, timed)]
        assert found[0] == found[1] != []  # names may have counters, and what takes no time may be left out
        assert all(layer.time_ms is None for layer in untimed)

    def test_a_model_that_is_refused_has_no_layers(self, backend: backends.Backend, tmp_path: Path):
        path = tmp_path / "m.onnx"
        path.write_bytes(b"<html>404</html>")
        with pytest.raises(BuildError, match=r"cannot read|cannot compile|no graph"):
            backend.layers(self.engine(path), 1)

    def test_leaving_the_context_frees_what_it_took(self, backend: backends.Backend, tmp_path: Path):
        path = models.conv_net(tmp_path / "m.onnx", width=384)  # 5 MB of weights
        sizes = []
        for _ in range(16):
            with backend.open(self.engine(path)):
                pass
            gc.collect()
            sizes.append(conditions.memory_mib())
        assert sizes[-1] - sizes[3] < 30, f"12 openings of 5 MB kept {sizes[-1] - sizes[3]:.0f} MiB"


def real_models() -> list[Any]:
    """Return models nobody here wrote, as parameters; skipped where they are absent."""
    paths = sorted(models.SHARED.glob("*.onnx"))
    absent = pytest.mark.skip(
        reason=f"no models in {models.SHARED}: they come with the workplace, not with edgekd"
    )
    return [pytest.param(path, id=path.stem) for path in paths] or [pytest.param(None, marks=absent)]
