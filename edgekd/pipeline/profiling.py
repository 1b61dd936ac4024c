"""Measure a bundle as it ships: its own file, runtime and threads, and where the time of a request goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.devices import connect
from edgekd.errors import UsageError
from edgekd.pipeline.single import measured
from edgekd.stages.bundle import read_manifest
from edgekd.stages.itemise import itemise
from edgekd.stages.subject import is_bundle, subject
from edgekd.values.latency import Protocol
from edgekd.values.model import Precision
from edgekd.values.outcome import Profile
from edgekd.values.target import Target


def profile_bundle(
    folder: Path,
    target: Target,
    *,
    precisions: Sequence[Precision] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    protocol: Protocol | None = None,
) -> Profile:
    """Measure a bundle's accepted deployment on its own runtime and threads, with the ledger of a request.

    Args:
        folder: the bundle.
        target: the device; where it names fewer runtimes than its profile, the first deployment for one of them
            is measured instead.
        precisions: none may be given: a deployment fixes its own.
        shapes: none may be given: the pre-processing fixes them.
        protocol: how long and how often; None: as for a model file.

    Raises:
        UsageError: the folder is no bundle, it holds nothing for the runtime, or a precision or a shape is given.
        IntegrityError: a file is not what the manifest says.
        ModelError: the runtime refuses the model, or it does not take what the pre-processing makes.
        BackendMissing: the runtime is not installed on the device.

    """
    if precisions or shapes:
        mend = "leave --precision and --shape out, or give the model file inside"
        raise UsageError(f"{folder} is measured as it ships", mend=mend)
    with connect(target) as device, TemporaryDirectory(prefix="edgekd-") as scratch:
        found = subject(device, folder, target, runtime=_narrowed(folder, target))
        ledger = itemise(folder, found.engine, device, Path(scratch))
        (result,) = measured(device, [found.engine], protocol)
    return Profile(signature=found.signature, results=(replace(result, ledger=ledger),))


def _narrowed(folder: Path, target: Target) -> str:
    """Return the runtime that was asked for, one the bundle has if possible; empty where none was."""
    if not is_bundle(folder) or target.runtimes == tuple(target.profile.runtimes):
        return ""
    held = [one.runtime for one in read_manifest(folder).deployments if one.runtime in target.runtimes]
    return (held or list(target.runtimes))[0]
