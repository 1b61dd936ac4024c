"""What a cassette holds since its second schema: energy, layers, weights beside a model, and how a board was tuned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.devices.cassette import CassetteDevice, record
from edgekd.devices.cassette.questions import building, listing
from edgekd.devices.cassette.records import Entry
from edgekd.devices.cassette.tape import begin
from edgekd.errors import DeviceError, IntegrityError, UsageError
from edgekd.values.layer import Layer
from edgekd.values.power import Energy
from tests.contracts import models
from tests.devices.test_cassette import SESSION, TARGET, Scripted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.cassette"


def test_energy_and_layers_are_replayed_as_they_were(file: Path, tmp_path: Path):
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
    energy = Energy(
        source="VDD_IN (ina)", inferences=9, energy_mj=5.0, uncertainty_mj=0.5, busy_mw=900.0, idle_mw=400.0, busy_s=1.0
    )  # fmt: skip
    layers = (Layer(name="conv", kind="Conv", time_ms=0.5), Layer(name="relu"))
    with record(Scripted(energy, None, layers), file) as live:
        assert live.energy(engine, seconds=2.0) == energy
        assert live.energy(engine, seconds=2.0) is None
        assert live.layers(engine, passes=7) == layers
    with CassetteDevice(file, TARGET) as replayed:
        assert replayed.energy(engine, seconds=2.0) == energy
        assert replayed.energy(engine, seconds=2.0) is None
        assert replayed.layers(engine, passes=7) == layers
        with pytest.raises(DeviceError, match="no answer") as caught:
            replayed.layers(engine, passes=8)
        assert "passes is 8 and not 7" in caught.value.cause
        with pytest.raises(DeviceError, match="no answer"):
            replayed.energy(engine, seconds=3.0)


def test_layers_that_cannot_be_are_no_layers(file: Path, tmp_path: Path):
    engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
    asked = listing(engine, 50).asked
    tape = begin(file, SESSION)
    tape.append([Entry(asked=asked, device_ns=0, reply={"layers": [{"name": "conv", "time_ms": -1.0}]})])
    with CassetteDevice(file, TARGET) as device, pytest.raises(IntegrityError, match="cannot be used"):
        device.layers(engine)


def test_a_board_that_was_tuned_otherwise_is_another(file: Path):
    record(Scripted(), file, tune="25W")
    with pytest.raises(UsageError, match="recorded with tune = '25W', not with ''"):
        record(Scripted(), file)
    with pytest.raises(UsageError, match="not recorded with tune = ''") as caught:
        CassetteDevice(file, TARGET)
    assert "give tune = '25W'" in caught.value.mend
    assert CassetteDevice(file, replace(TARGET, tune="25W")).name == "board"


def test_weights_beside_a_model_are_part_of_the_question(tmp_path: Path):
    engine = models.spread_engine(models.spread_net(tmp_path / "m.onnx"))
    other = replace(engine, model=replace(engine.model, external=engine.model.external[::-1]))
    assert building(engine).asked.key != building(other).asked.key
    assert {file.sha256 for file in engine.model.files} == building(engine).asked.digests


def test_a_cassette_of_the_schema_before_is_read(file: Path):
    old = {"schema_version": 1, "device": "board", "edgekd": "0.1.0"}
    asked = {"order": "probe", "engines": [], "protocol": None, "files": {}, "recipe": None, "runtimes": []}
    failure = {"kind": "DeviceError", "what": "gone", "cause": "", "mend": ""}
    digest, lines = "", b""
    for name, record_ in (("session", old), ("entry", {"asked": asked, "device_ns": 7, "failure": failure})):
        body = json.dumps({name: record_}).encode()
        digest = hashlib.sha256(digest.encode() + body).hexdigest()
        lines += b'{"sha256":"' + digest.encode() + b'","record":' + body + b"}\n"
    file.write_bytes(lines)
    with (
        CassetteDevice(file, replace(TARGET, runtimes=())) as device,
        pytest.raises(DeviceError, match="gone"),
    ):
        device.probe()
