"""Quantisation-aware distillation: students that compute as integer kernels do, and learn by it."""

from __future__ import annotations

from edgekd.distillation.quantized.student import QuantizedStudent

__all__ = ["QuantizedStudent"]
