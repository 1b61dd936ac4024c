from pathlib import Path

import pytest

from edgekd import backends
from edgekd.timing.sampling import sample, varied_inputs
from edgekd.values.model import Engine, Precision
from tests.contracts import models
from tests.contracts.backend import BackendContract


def times_ns(engine: Engine, count: int = 200) -> tuple[int, ...]:
    with backends.load("rehearsal").open(engine) as session:
        return sample(session, varied_inputs(session.signature, seed=0), count).wall_ns


def median(values: tuple[int, ...]) -> int:
    return sorted(values)[len(values) // 2]


class TestRehearsal(BackendContract):
    runtime = "rehearsal"

    def test_only_inference_moves_the_clock(self, backend: backends.Backend, tmp_path: Path):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            assert not session.real_time
            assert session.clock_ns() == session.clock_ns()

    def test_the_same_file_takes_the_same_times(self, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))
        assert times_ns(engine) == times_ns(engine)

    def test_times_vary_a_little_and_have_a_tail(self, tmp_path: Path):
        found = sorted(times_ns(self.engine(models.conv_net(tmp_path / "m.onnx")), 1000))
        assert len(set(found)) > 300
        assert found[-1] < 1.2 * found[500]
        assert found[-3] > 1.05 * found[500]

    def test_a_larger_network_takes_longer(self, tmp_path: Path):
        found = [
            median(times_ns(self.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width, side=16))))
            for width in (8, 16, 32)
        ]
        assert found == sorted(found)
        assert found[-1] > 1.5 * found[0]

    def test_int8_is_faster_than_fp32(self, tmp_path: Path):
        path = models.conv_net(tmp_path / "m.onnx", width=64, side=16)
        floating = self.engine(path)
        integer = self.engine(path, Precision.INT8)  # the clock goes by the label
        assert median(times_ns(integer)) < 0.6 * median(times_ns(floating))

    def test_a_batch_takes_longer_than_one_image(self, tmp_path: Path):
        path = models.conv_net(tmp_path / "m.onnx", batch="n", width=32, side=16)
        assert median(times_ns(self.engine(path, image=(8, 3, 16, 16)))) > 3 * median(
            times_ns(self.engine(path))
        )

    def test_threads_help(self, tmp_path: Path):
        path = models.conv_net(tmp_path / "m.onnx", width=64, side=16)
        two = models.engine(path, threads=2)
        assert median(times_ns(two)) < 0.8 * median(times_ns(self.engine(path)))

    @pytest.mark.parametrize("seed", range(3))
    def test_remembered_answers_are_the_right_ones(
        self, backend: backends.Backend, tmp_path: Path, seed: int
    ):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            ring = varied_inputs(session.signature, seed=seed, count=40)  # more than are remembered
            first = [session.run(feeds)["logits"].tobytes() for feeds in ring]
            assert [session.run(feeds)["logits"].tobytes() for feeds in ring] == first
