from pathlib import Path

import numpy as np
import pytest

from edgekd import backends
from edgekd.errors import BuildError
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

    def test_other_inputs_bring_other_noise_and_the_same_ones_the_same(self, tmp_path: Path):
        engine = self.engine(models.conv_net(tmp_path / "m.onnx"))

        def launch(seed: int) -> tuple[int, ...]:
            with backends.load("rehearsal").open(engine) as session:
                return sample(session, varied_inputs(session.signature, seed), 50).wall_ns

        assert launch(1) == launch(1) != launch(2)

    def test_a_slowdown_and_noise_can_be_asked_for(self, tmp_path: Path):
        plain = times_ns(self.engine(models.conv_net(tmp_path / "m.onnx")), 1000)
        slow = models.rehearsing(models.conv_net(tmp_path / "s.onnx"), slowdown=1.05)
        assert median(times_ns(self.engine(slow), 1000)) == pytest.approx(1.05 * median(plain), rel=0.005)
        noisy = sorted(times_ns(self.engine(models.rehearsing(slow, noise=0.3)), 1000))
        assert noisy[750] / noisy[250] > 1.3 > plain[750] / plain[250]

    def test_throttling_slows_a_stretch_and_counts(self, backend: backends.Backend, tmp_path: Path):
        path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), throttle="3:2.0", noise=0.0)
        with backend.open(self.engine(path)) as session:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            taken, counts = [], []
            for _ in range(6):
                start = session.clock_ns()
                for _ in range(50):
                    session.run(feeds)
                taken.append(session.clock_ns() - start)
                counts.append(session.throttle_count())
        assert counts == [0, 0, 1, 1, 1, 2]
        assert taken[2] == pytest.approx(2 * taken[0], rel=0.02)
        assert taken[3] == pytest.approx(taken[0], rel=0.02)

    def test_throttling_may_come_in_a_share_of_the_launches(self, backend: backends.Backend, tmp_path: Path):
        path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), throttle="1:2.0:0.5", noise=0.0)
        hot = []
        for seed in range(20):  # a launch is known by its inputs
            with backend.open(self.engine(path)) as session:
                feeds = varied_inputs(session.signature, seed=seed, count=1)[0]
                session.run(feeds)
                hot.append(session.throttle_count())
        assert set(hot) == {0, 1}
        assert 4 <= sum(hot) <= 16

    def test_a_device_that_throttles_all_the_time_can_be_rehearsed(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), always_throttled=1)
        with backend.open(self.engine(path)) as session:
            session.run(varied_inputs(session.signature, seed=0, count=1)[0])
            assert session.throttle_count() == 1

    def test_answers_spoil_after_so_many(self, backend: backends.Backend, tmp_path: Path):
        path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), nan_after=2)
        with backend.open(self.engine(path)) as session:
            feeds = varied_inputs(session.signature, seed=0, count=1)[0]
            spoilt = [bool(np.isnan(session.run(feeds)["logits"]).any()) for _ in range(4)]
        assert spoilt == [False, False, True, True]

    @pytest.mark.parametrize(
        "knobs", [{"slowdown": "fast"}, {"throttle": "2"}, {"nan_after": 1.5}, {"sleep": 1}]
    )
    def test_what_it_cannot_rehearse_is_refused(
        self, backend: backends.Backend, tmp_path: Path, knobs: dict[str, object]
    ):
        path = models.rehearsing(models.conv_net(tmp_path / "m.onnx"), **knobs)
        with pytest.raises(BuildError, match="rehearsal"), backend.open(self.engine(path)):
            pass

    @pytest.mark.parametrize("seed", range(3))
    def test_remembered_answers_are_the_right_ones(
        self, backend: backends.Backend, tmp_path: Path, seed: int
    ):
        with backend.open(self.engine(models.conv_net(tmp_path / "m.onnx"))) as session:
            ring = varied_inputs(session.signature, seed=seed, count=40)  # more than are remembered
            first = [session.run(feeds)["logits"].tobytes() for feeds in ring]
            assert [session.run(feeds)["logits"].tobytes() for feeds in ring] == first
