"""What was timed on this device, in a form that another device's predictor can learn from, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import DataError
from edgekd.store.exchange import export_measurements, import_measurements
from edgekd.store.journal import append, read
from edgekd.values.measurement import Measurement
from edgekd.values.student import Space
from edgekd.values.trial import Trial

OWN, FOREIGN = "measured.jsonl", "imported.jsonl"  # in the folder of a run


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """What went out or came in."""

    path: str  # of the file
    measurements: int
    devices: int
    new: int  # of an import, those that were not there before


def keep(out: Path, trials: Iterable[Trial], space: Space) -> None:
    """Add what trials measured to the run's measurements that may be exported."""
    for trial in trials:
        if (found := measurement_of(trial, space)) is not None:
            append(out / OWN, found)


def measured(trials: Iterable[Trial], space: Space) -> tuple[Measurement, ...]:
    """Return what trials say of their device."""
    return tuple(found for trial in trials if (found := measurement_of(trial, space)) is not None)


def measurement_of(trial: Trial, space: Space) -> Measurement | None:
    """Return what a trial says of its device; None where nothing was timed."""
    if trial.latency is None:
        return None
    proposal, taken = trial.proposal, trial.latency
    return Measurement(
        device=taken.conditions.fingerprint,
        processor=taken.conditions.hardware.processor,
        runtime=proposal.runtime,
        version=taken.conditions.software.runtimes.get(proposal.runtime, ""),
        precision=proposal.precision,
        spec=proposal.spec,
        channels=space.channels,
        classes=space.classes,
        p50_ms=taken.percentile(50),
        samples=len(taken.undisturbed_ms),
        protocol=taken.protocol.fingerprint,
    )


def export(out: Path, file: Path) -> Exchanged:
    """Write the measurements of a run, and those that it had imported, to one file.

    Raises:
        DataError: the run measured nothing.

    """
    found = {*read(out / OWN, Measurement), *foreign(out)}
    if not found:
        raise DataError(f"{out} holds no measurements", mend="give the folder of a run or a plan with --out")
    export_measurements(file, found)
    return _exchanged(file, found, len(found))


def import_(file: Path, out: Path) -> Exchanged:
    """Take measurements of other devices into the folder of a run, as prior for its device.

    Raises:
        DataError: there is no such file, or it is none of ours.
        IntegrityError: another schema version, or tampered digests; nothing was taken.

    """
    found = import_measurements(file)
    known = set(foreign(out))
    export_measurements(out / FOREIGN, {*known, *found})
    return _exchanged(file, set(found), len(set(found) - known))


def foreign(out: Path) -> tuple[Measurement, ...]:
    """Return what was imported into the folder of a run.

    Raises:
        IntegrityError: the file was changed since.

    """
    return import_measurements(out / FOREIGN) if (out / FOREIGN).exists() else ()


def _exchanged(file: Path, found: set[Measurement], new: int) -> Exchanged:
    devices = len({one.device for one in found})
    return Exchanged(path=str(file), measurements=len(found), devices=devices, new=new)
