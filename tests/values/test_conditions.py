from __future__ import annotations

from dataclasses import replace

from edgekd.values.conditions import Conditions


def test_hardware_and_software_are_named_apart(conditions: Conditions) -> None:
    updated = replace(conditions, software=replace(conditions.software, runtimes={"r": "2"}))
    assert updated.hardware_fingerprint == conditions.hardware_fingerprint
    assert updated.software_fingerprint != conditions.software_fingerprint
    assert updated.fingerprint != conditions.fingerprint
    moved = replace(conditions, hardware=replace(conditions.hardware, cores=4))
    assert moved.hardware_fingerprint != conditions.hardware_fingerprint
    assert moved.software_fingerprint == conditions.software_fingerprint


def test_load_is_in_no_fingerprint(conditions: Conditions) -> None:
    busy = replace(conditions, load=replace(conditions.load, throttled=3, governor="powersave"))
    for name in ("fingerprint", "hardware_fingerprint", "software_fingerprint"):
        assert getattr(busy, name) == getattr(conditions, name)
    assert busy.load.throttle == "throttled 3 times"
