"""Trainings here run in plain arithmetic, so that two of them can be compared bit by bit."""

from __future__ import annotations

import pytest

from edgekd.distillation import loop, teachers
from edgekd.distillation.arithmetic import Arithmetic


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose fp32 on one thread, whatever is fastest at the moment."""
    for module in (loop, teachers):
        monkeypatch.setattr(module, "choose_arithmetic", lambda *_, **__: Arithmetic())
