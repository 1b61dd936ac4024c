"""The contract of devices, kept by this machine, by one that is recorded, and by what was recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.devices import Device
from edgekd.devices.cassette import CassetteDevice, record
from edgekd.devices.local import LocalDevice
from tests.contracts.device import DeviceContract, target
from tests.pipeline.rehearsed import WorkerHere


class TestLocal(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[Device]:
        with LocalDevice(target(self.runtime)) as device:
            yield device


class TestRecorded(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
        monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
        with record(LocalDevice(target(self.runtime)), tmp_path / "session.cassette") as device:
            yield device


class TestReplayed(DeviceContract):
    """Each test runs on a device that is recorded, and then on the recording, with other paths and no processes."""

    @pytest.fixture
    def device(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Device]:
        file, before = tmp_path / "session.cassette", tmp_path / "before"
        before.mkdir()
        with monkeypatch.context() as patch, record(LocalDevice(target(self.runtime)), file) as live:
            patch.setattr("edgekd.devices.local.Child", WorkerHere)
            given = {"device": live, "tmp_path": before}
            wanted = inspect.signature(request.function).parameters
            request.function(**{name: given[name] for name in wanted})
        monkeypatch.setattr("subprocess.Popen", None)
        monkeypatch.setattr("edgekd.devices.local.Child", None)
        with CassetteDevice(file, target(self.runtime)) as device:
            yield device
