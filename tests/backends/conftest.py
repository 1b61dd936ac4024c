"""The fakes of TensorRT and of the CUDA driver, for the tests of backends."""

from __future__ import annotations

from tests.backends.faked import driver, faked

__all__ = ["driver", "faked"]
