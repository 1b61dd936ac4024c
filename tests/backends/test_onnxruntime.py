from pathlib import Path

import pytest

from edgekd import backends
from tests.contracts.backend import BackendContract, real_models


class TestOnnxRuntime(BackendContract):
    runtime = "onnxruntime"

    @pytest.mark.parametrize("path", real_models())
    def test_a_model_nobody_here_wrote_gives_the_reference_answers(
        self, backend: backends.Backend, path: Path
    ):
        self.assert_right(backend, path, most_off=1e-4, count=2)
