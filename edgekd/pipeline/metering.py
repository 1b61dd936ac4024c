"""Energy of an inference: ask a device whether it can tell, and measure it in passes of its own."""

from __future__ import annotations

import logging

from edgekd.devices import Device
from edgekd.errors import DeviceError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from edgekd.values.power import Energy
from edgekd.worker.health import MODEL

log = logging.getLogger(__name__)

_PASS_S = 10.0  # idle, busy, idle
_TRIAL_S = 2.0  # the same, for a meter that is asked whether it answers: at least six times a second


def require_meter(device: Device, runtime: str, *, asked: str, mend: str) -> None:
    """Measure a tiny network's energy, to learn before the work begins whether the device can.

    Args:
        device: is asked.
        runtime: one that works there.
        asked: what wants the energy, for the message.
        mend: what to do without it.

    Raises:
        DeviceError: the device has no meter that can be read, or one that answers too slowly.

    """
    log.info("looking for a meter of energy on %s", device.name)
    tiny = Engine(model=Model(file=Artifact.of(MODEL)), runtime=runtime, precision=Precision.FP32)
    if device.energy(tiny, seconds=_TRIAL_S) is None:
        raise _absent(device, asked, mend)


def energy_of(device: Device, engine: Engine, *, asked: str, mend: str) -> Energy:
    """Measure what an inference of an engine costs above the idle device.

    Raises:
        DeviceError: the device has no meter that can be read, or it stopped to answer.
        BuildError: the engine cannot be opened or dies while it runs.

    """
    log.info("measuring the energy of %s: idle, busy, idle", engine.name)
    found = device.energy(engine, seconds=_PASS_S)
    if found is None:
        raise _absent(device, asked, mend)
    log.info("  %.3f mJ an inference, +/- %.3f", found.energy_mj, found.uncertainty_mj)
    return found


def _absent(device: Device, asked: str, mend: str) -> DeviceError:
    return DeviceError(
        f"{device.name} has no meter of energy that can be read, and {asked}",
        cause="no power monitor (INA), no processor counter (RAPL), no Raspberry Pi 5 and no tegrastats answered",
        mend=f"{mend}; where it has RAPL, root lets others read it: sudo chmod a+r "
        "/sys/class/powercap/intel-rapl:*/energy_uj",
    )
