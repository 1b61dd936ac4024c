"""Say which bundles that shipped still keep to their limits, here and with today's software."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.devices import Device
from edgekd.errors import BuildError, DeviceError, EdgekdError, IntegrityError, ModelError
from edgekd.stages.bundle import read_manifest
from edgekd.stages.verify import verify_bundle
from edgekd.store.files import write_text
from edgekd.values.artifact import Artifact
from edgekd.values.budget import RANKS
from edgekd.values.bundle import Check, Deployment, LatencySummary, Manifest, summarise
from edgekd.values.codec import encode
from edgekd.values.conditions import Conditions, TrustVerdict
from edgekd.values.fleet import BundleVerdict, Change, HeldLimit, Requalified, Standing
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Engine, Model

__all__ = ["ACCEPTANCE", "changes_between", "held", "requalify"]

log = logging.getLogger(__name__)

ACCEPTANCE = Protocol(launches=3, blocks=4, samples=100)
_TOGETHER = 8  # engines in one measurement: each is a process, and has its memory
_CHANCES = 2  # a noisy measurement is taken once more, whatever it said
_OF_ONE_BUNDLE = (IntegrityError, ModelError, DeviceError)  # they end one bundle, and no other

Now = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """A bundle on its way to a verdict; what ended it early is its verdict."""

    folder: Path
    manifest: Manifest | None = None
    checks: tuple[Check, ...] = ()
    latency: Latency | None = None
    ended: Standing | None = None
    reasons: tuple[str, ...] = ()


def requalify(
    folder: Path,
    device: Device,
    bundles: Sequence[Path],
    *,
    scratch: Path,
    same_hardware: bool = False,
    now: Now = time.monotonic,
) -> Requalified:
    """Verify bundles, measure their accepted files in turns, and hold them against their own limits.

    Args:
        folder: for raw latencies, in `latencies/`.
        device: where.
        bundles: folders; each is judged, whatever becomes of the others.
        scratch: for inputs and outputs of the models.
        same_hardware: judge none that was measured on other hardware.
        now: a monotonic clock in seconds.

    """
    start = now()
    machine = device.probe().conditions
    entrants = [_checked(scratch / str(at), device, path) for at, path in enumerate(bundles)]
    if same_hardware:
        entrants = [_compared(one, machine) for one in entrants]
    measured = _measured(device, [_built(device, one) for one in entrants])
    for at, one in enumerate(measured):
        if one.latency is not None:
            path = folder / "latencies" / f"{at}-{_file_name(one)}.json"
            write_text(path, encode(one.latency) + "\n")
    verdicts = tuple(_judged(one, machine) for one in measured)
    return Requalified(device=device.name, bundles=verdicts, seconds=now() - start)


def held(manifest: Manifest, latency: Latency) -> tuple[HeldLimit, ...]:
    """Hold a latency against the limits of a bundle, at the confidence that it was accepted with.

    It meets a limit where the upper bound of the percentile does, and breaks it where the lower bound is above.
    """
    confidence = manifest.accepted.latency.confidence
    return tuple(_held(name, limit_ms, latency, confidence) for name, limit_ms in manifest.limits_ms.items())


def changes_between(then: LatencySummary, now: Conditions) -> tuple[Change, ...]:
    """Name what differs of the machine, its software and the way of timing; load is not part of it."""
    before = {**_facts(then.conditions), "timing protocol": str(then.protocol.version)}
    after = {**_facts(now), "timing protocol": str(ACCEPTANCE.version)}
    return tuple(
        Change(what=name, then=before.get(name, "absent"), now=after.get(name, "absent"))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


def _facts(conditions: Conditions) -> dict[str, str]:
    hardware, software = conditions.hardware, conditions.software
    return {
        **dict(sorted(software.runtimes.items())),
        "kernel": software.kernel,
        "governor": software.governor,
        "python": software.python,
        "system": software.system,
        "processor": hardware.processor,
        "machine": hardware.machine,
        "cores": str(hardware.cores),
        "memory": f"{hardware.memory_mib} MiB",
        "instructions": " ".join(hardware.features) or "none known",
    }


def _checked(scratch: Path, device: Device, folder: Path) -> _Entrant:
    """Check digests and numerics; what is wrong with one bundle must not keep the others from being judged."""
    log.info("checking %s", folder)
    entrant = _Entrant(folder=folder)
    try:
        entrant = replace(entrant, manifest=_sane(folder))
        report = verify_bundle(folder, device, scratch)
    except _OF_ONE_BUNDLE as error:
        return _ended(entrant, error)
    failed = tuple(f"{check.name}: {check.detail}" for check in report.checks if check.passed is False)
    entrant = replace(entrant, checks=tuple(_finite(check) for check in report.checks))
    return replace(entrant, ended=Standing.BREAKS, reasons=failed) if failed else entrant


def _finite(check: Check) -> Check:
    """Leave an infinite error to the words: JSON has no number for it."""
    return (
        replace(check, parity=None) if check.parity and not math.isfinite(check.parity.max_error) else check
    )


def _sane(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.deployments:
        raise IntegrityError(f"{folder} has no accepted deployment", mend="make it again with `edgekd run`")
    if not manifest.limits_ms or not manifest.limits_ms.keys() <= RANKS.keys():
        known = ", ".join(RANKS)
        cause = f"its manifest limits {', '.join(manifest.limits_ms) or 'nothing'}; known are {known}"
        raise IntegrityError(f"{folder} has no limits to be held to", cause=cause)
    return manifest


def _ended(entrant: _Entrant, error: EdgekdError) -> _Entrant:
    """Give the verdict that an error means for the bundle it came from."""
    if isinstance(error, BuildError):  # it was built when it shipped
        standing = Standing.BREAKS
    elif isinstance(error, DeviceError):
        standing = Standing.UNAVAILABLE
    else:
        standing = Standing.REFUSED
    told = f"{error.what}: {error.cause}" if error.cause else error.what
    reasons = tuple(" ".join(text.split())[:1000] for text in (told, error.mend) if text)
    return replace(entrant, ended=standing, reasons=reasons)


def _compared(entrant: _Entrant, machine: Conditions) -> _Entrant:
    if entrant.ended or entrant.manifest is None or _same_hardware(entrant.manifest, machine):
        return entrant
    reason = "it was measured on other hardware, and only the same was to be judged"
    return replace(entrant, ended=Standing.INCOMPARABLE, reasons=(reason,))


def _built(device: Device, entrant: _Entrant) -> _Entrant:
    if entrant.ended:
        return entrant
    try:
        device.build(_engine(entrant))
    except _OF_ONE_BUNDLE as error:
        return _ended(entrant, error)
    return entrant


def _measured(device: Device, entrants: Sequence[_Entrant]) -> list[_Entrant]:
    """Measure what can be measured, some at a time in turns, so that what the machine does meets them alike."""
    running = [at for at, one in enumerate(entrants) if not one.ended]
    found = list(entrants)
    for first in range(0, len(running), _TOGETHER):
        group = running[first : first + _TOGETHER]
        for chance in range(_CHANCES):
            for at, one in zip(group, _timed(device, [entrants[at] for at in group], seed=chance)):
                found[at] = one
            group = [at for at in group if _is_noisy(found[at])]
            if not group:
                break
            if chance + 1 < _CHANCES:
                log.info("  the machine was busy: measuring %d of them again", len(group))
    return found


def _timed(device: Device, entrants: Sequence[_Entrant], seed: int) -> list[_Entrant]:
    engines = [_engine(one) for one in entrants]
    names = ", ".join(one.folder.name for one in entrants)
    log.info("timing %s%s", names, " in turns" if len(engines) > 1 else "")
    try:
        latencies = device.time(engines, replace(ACCEPTANCE, seed=seed))
    except _OF_ONE_BUNDLE as error:
        if len(entrants) == 1:
            return [_ended(entrants[0], error)]
        return [one for entrant in entrants for one in _timed(device, [entrant], seed)]  # which was it?
    return [replace(entrant, latency=latency) for entrant, latency in zip(entrants, latencies)]


def _is_noisy(entrant: _Entrant) -> bool:
    return entrant.latency is not None and entrant.latency.trust.verdict is TrustVerdict.NOISY


def _judged(entrant: _Entrant, machine: Conditions) -> BundleVerdict:
    if entrant.manifest is None:
        standing = entrant.ended or Standing.REFUSED
        return BundleVerdict(bundle=entrant.folder, standing=standing, reasons=entrant.reasons)
    manifest, latency = entrant.manifest, entrant.latency
    shipped = manifest.accepted
    limits = held(manifest, latency) if latency else ()
    return BundleVerdict(
        bundle=entrant.folder,
        standing=entrant.ended or _standing(limits, entrant),
        reasons=(*entrant.reasons, *_reasons(limits, entrant, machine)),
        name=manifest.name,
        runtime=shipped.runtime,
        precision=shipped.precision,
        threads=shipped.threads,
        then=shipped.latency,
        now=summarise(latency, shipped.latency.confidence) if latency else None,
        limits=limits,
        changes=changes_between(shipped.latency, machine),
        same_hardware=_same_hardware(manifest, machine),
        checks=entrant.checks,
    )


def _standing(limits: Sequence[HeldLimit], entrant: _Entrant) -> Standing:
    """Return what the limits say together; nothing is said of a machine that was too busy to be trusted."""
    found = {limit.standing for limit in limits}
    if _is_noisy(entrant) or not found:
        return Standing.INCONCLUSIVE
    return next(one for one in (Standing.BREAKS, Standing.INCONCLUSIVE, Standing.MEETS) if one in found)


def _reasons(limits: Sequence[HeldLimit], entrant: _Entrant, machine: Conditions) -> Iterator[str]:
    for limit in limits:
        if limit.standing is not Standing.MEETS:
            yield _words(limit, entrant)
    if entrant.latency and _is_noisy(entrant):
        kept = all(limit.standing is Standing.MEETS for limit in limits)
        begin = "it keeps to its limits, but the machine was too busy to be trusted" if kept else "too noisy"
        yield f"{begin}: {'; '.join(entrant.latency.trust.reasons)}"
    if entrant.manifest and not entrant.ended and not _same_hardware(entrant.manifest, machine):
        yield "its limits were accepted on OTHER HARDWARE: they say little about this machine"


def _words(limit: HeldLimit, entrant: _Entrant) -> str:
    low, high = (_bound(one) for one in (limit.low_ms, limit.high_ms))
    confidence = entrant.manifest.accepted.latency.confidence if entrant.manifest else 0.0
    return (
        f"{limit.percentile} is {limit.measured_ms:.3f} ms, at {confidence:.0%} each at least {low} and "
        f"at most {high}; the limit is {limit.limit_ms:.3f} ms"
    )


def _bound(bound_ms: float | None) -> str:
    return "unknown" if bound_ms is None else f"{bound_ms:.3f}"


def _held(name: str, limit_ms: float, latency: Latency, confidence: float) -> HeldLimit:
    low_ms = latency.lower_bound(RANKS[name], confidence)
    high_ms = latency.upper_bound(RANKS[name], confidence)
    if high_ms <= limit_ms:
        standing = Standing.MEETS
    else:
        standing = Standing.BREAKS if low_ms > limit_ms else Standing.INCONCLUSIVE
    return HeldLimit(
        percentile=name,
        limit_ms=limit_ms,
        measured_ms=latency.percentile(RANKS[name]),
        low_ms=low_ms or None,
        high_ms=high_ms if math.isfinite(high_ms) else None,
        standing=standing,
    )


def _same_hardware(manifest: Manifest, machine: Conditions) -> bool:
    return manifest.accepted.latency.conditions.hardware == machine.hardware


def _engine(entrant: _Entrant) -> Engine:
    assert entrant.manifest is not None  # noqa: S101 - or it ended before
    shipped: Deployment = entrant.manifest.accepted
    file, *weights = (
        Artifact(path=entrant.folder / name, sha256=entrant.manifest.files[name]) for name in shipped.files
    )
    return Engine(
        model=Model(file=file, weights=weights[0] if weights else None, precision=shipped.precision),
        runtime=shipped.runtime,
        precision=shipped.precision,
        threads=shipped.threads,
    )


def _file_name(entrant: _Entrant) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", entrant.folder.name) or "bundle"
