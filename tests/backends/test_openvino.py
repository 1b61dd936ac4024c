from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edgekd import backends
from edgekd.backends import openvino
from edgekd.errors import BuildError, ModelError
from edgekd.timing.sampling import varied_inputs
from edgekd.values.model import Precision
from tests.contracts import models
from tests.contracts.backend import BackendContract, real_models


class TestOpenVino(BackendContract):
    runtime = "openvino"

    @pytest.mark.parametrize("path", real_models())
    def test_a_model_nobody_here_wrote_gives_the_reference_answers(
        self, backend: backends.Backend, path: Path
    ):
        self.assert_right(backend, path, most_off=1e-4, count=2)

    def test_fp32_is_fp32_even_where_the_processor_prefers_bf16(
        self, backend: backends.Backend, tmp_path: Path
    ):
        self.assert_right(backend, models.conv_net(tmp_path / "m.onnx", width=64), most_off=1e-5)

    def test_bf16_is_offered_only_where_the_processor_has_it_and_then_rounds(
        self, backend: backends.Backend, tmp_path: Path
    ):
        path = models.conv_net(tmp_path / "m.onnx", width=64)
        if Precision.BF16 not in backend.precisions():
            with pytest.raises(BuildError, match="bf16"), backend.open(self.engine(path, Precision.BF16)):
                pass
            return
        with (
            backend.open(self.engine(path)) as exact,
            backend.open(self.engine(path, Precision.BF16)) as rounded,
        ):
            feeds = varied_inputs(exact.signature, seed=0, count=1)[0]
            right, found = exact.run(feeds)["logits"], rounded.run(feeds)["logits"]
        assert 0 < np.abs(found - right).max() < 0.03 * np.abs(right).max()

    def test_an_ir_file_runs_like_the_onnx_file_it_came_from(self, backend: backends.Backend, tmp_path: Path):
        source = models.fused_outputs(tmp_path / "m.onnx")
        path = tmp_path / "m.xml"
        ov.save_model(ov.Core().read_model(str(source)), str(path), compress_to_fp16=False)
        with backend.open(self.engine(source)) as one, backend.open(self.engine(path)) as other:
            feeds = varied_inputs(one.signature, seed=0, count=1)[0]
            right, found = one.run(feeds), other.run(feeds)
            assert openvino.read_signature(path) == one.signature
        for name in right:
            np.testing.assert_allclose(found[name], right[name], atol=1e-6)

    def test_a_signature_of_garbage_is_a_model_error(self, tmp_path: Path):
        path = tmp_path / "m.xml"
        path.write_text("<net")
        with pytest.raises(ModelError, match="openvino"):
            openvino.read_signature(path)
