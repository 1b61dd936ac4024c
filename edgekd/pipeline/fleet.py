"""The order of what concerns machines and bundles that shipped: list devices, calibrate one, requalify bundles."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.devices import Device, connect, registry, ssh
from edgekd.errors import BackendMissing, EdgekdError, UsageError
from edgekd.stages.calibrate_device import calibrating, resolutions
from edgekd.stages.requalify import requalify
from edgekd.store import write_text
from edgekd.store.measurements import GateLog
from edgekd.values.board import Board
from edgekd.values.codec import encode
from edgekd.values.fleet import (
    BundleVerdict,
    Calibrated,
    CalibrationReport,
    Fleet,
    KnownBoard,
    KnownCalibration,
    KnownDevice,
    Requalified,
    Standing,
)
from edgekd.values.gate import Calibration, Clock, GateRules
from edgekd.values.target import Target

log = logging.getLogger(__name__)

_AT_ONCE = 16  # boards asked at the same time
_FRESH_DAYS = 7  # noise is the neighbours' too, and they change


def list_devices(
    target: Target, *, history: Path, today: str, config: Path | None = None, reach: bool = False
) -> Fleet:
    """Say which devices there are, and what was calibrated on them.

    Args:
        target: names the device that is asked what it is now.
        history: the SQLite file of calibrations; it need not exist, and is not made.
        today: UTC, ISO 8601.
        config: the folder of edgekd's settings, with the boards that were added; None: none were.
        reach: ask each board whether it answers.

    Raises:
        ConfigError: the file of boards is broken.
        IntegrityError: the history cannot be read.

    """
    boards = tuple(registry.boards(config).values()) if config is not None else ()
    with connect(replace(target, runtimes=())) as device:
        found = device.probe().conditions
        known = KnownDevice(name=device.name, fingerprint=found.fingerprint, conditions=found)
    prints = {one.name: one.conditions for one in boards if one.conditions} | {known.name: known.fingerprint}
    kept = GateLog(history).calibrations() if history.is_file() else ()
    calibrations = tuple(
        KnownCalibration(calibration=one, outdated=_outdated(one, prints, today)) for one in kept
    )
    return Fleet(
        devices=(known,),
        calibrations=calibrations,
        history=history,
        boards=_reached(boards) if reach else tuple(KnownBoard(board=one) for one in boards),
    )


def calibrate_devices(
    target: Target, *, pairs: int, rules: GateRules, history: Path, today: str, chosen: bool = False
) -> CalibrationReport:
    """Calibrate the target's device for each of its runtimes that works, and keep what is found.

    What was found so far is kept after every 10 pairs, unless that would displace a longer calibration.

    Args:
        target: the device, its runtimes and threads.
        pairs: of the reference model against itself, for each runtime.
        rules: of the comparisons to come.
        history: the SQLite file that keeps calibrations; made where it is absent.
        today: UTC, ISO 8601.
        chosen: the runtimes were asked for by name, so that one that does not work is an error.

    Raises:
        BackendMissing: a runtime that was asked for, or every one of the target's, does not work.
        DeviceError: the machine throttles all the time.

    """
    gates = GateLog(history)  # before the minutes of measuring: a file that cannot be used shows now
    with connect(target) as device:
        working, problems = _working(device, chosen=chosen)
        calibrated = []
        for runtime in working:
            log.info("calibrating %s on %s: %d pairs of one model", runtime, device.name, pairs)
            calibration = _calibrated(device, runtime, gates, target, pairs=pairs, rules=rules, today=today)
            clocks = (Clock.WALL, Clock.CPU) if target.threads == 1 else (Clock.WALL,)
            found = resolutions(calibration, rules, clocks)
            calibrated.append(Calibrated(calibration=calibration, resolutions=found))
        return CalibrationReport(
            device=device.name,
            threads=target.threads,
            history=history,
            calibrated=tuple(calibrated),
            problems=problems,
        )


def requalify_bundles(
    bundles: Sequence[Path], target: Target, *, out: Path | None, same_hardware: bool = False
) -> Requalified:
    """Say which bundles still keep to their limits on the target's device.

    Args:
        bundles: their folders; one given twice is judged once.
        target: names the device; runtimes and threads are the bundles' own.
        out: where `requalified.json` and every raw latency go; None: nowhere.
        same_hardware: judge none that was measured on other hardware.

    Raises:
        UsageError: no bundle is given, or one is no folder.
        DeviceError: the device cannot be reached.

    """
    folders = _distinct(bundles)
    with (
        connect(replace(target, runtimes=())) as device,
        TemporaryDirectory(prefix="edgekd-") as scratch,
    ):
        folder = out or Path(scratch) / "out"
        found = requalify(folder, device, folders, scratch=Path(scratch), same_hardware=same_hardware)
    for one in found.bundles:
        log.info("  %s: %s", one.bundle, one.standing.value)
        if one.same_hardware is False and one.standing is not Standing.INCOMPARABLE:
            log.warning("%s was accepted on other hardware: %s", one.bundle, _hardware_words(one))
    if out is not None:
        write_text(out / "requalified.json", encode(found) + "\n")
    return found


def utc_now() -> str:
    """Return the time of day, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _calibrated(
    device: Device,
    runtime: str,
    gates: GateLog,
    target: Target,
    *,
    pairs: int,
    rules: GateRules,
    today: str,
) -> Calibration:
    found = None
    for found in calibrating(device, runtime, threads=target.threads, pairs=pairs, rules=rules, today=today):
        older = gates.calibration(found.fingerprint, runtime, found.decade, found.threads)
        if found.pairs == pairs or older is None or older.decade != found.decade or older.date == today:
            gates.calibrate(found)
    assert found is not None  # noqa: S101 - there is one for the last pair at least
    return found


def _working(device: Device, *, chosen: bool) -> tuple[list[str], tuple[str, ...]]:
    """Return the runtimes that work, and why each of the others does not."""
    health = device.probe().runtimes
    broken = [one for one in health if not one.works]
    if broken and (chosen or len(broken) == len(health)):
        names = ", ".join(one.name for one in broken)
        raise BackendMissing(
            f"{names} cannot be calibrated on {device.name}",
            cause="; ".join(f"{one.name}: {one.problem or 'it is not installed'}" for one in broken),
            mend=" or ".join(one.mend for one in broken if one.mend),
        )
    problems = tuple(f"{one.name} was left out: {one.problem or 'it is not installed'}" for one in broken)
    for problem in problems:
        log.warning("%s", problem)
    return [one.name for one in health if one.works], problems


def _reached(boards: Sequence[Board]) -> tuple[KnownBoard, ...]:
    """Ask all boards at once: one that is switched off keeps no other waiting."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return tuple(pool.map(_asked, boards))


def _asked(board: Board) -> KnownBoard:
    try:
        return KnownBoard(board=board, survey=ssh.survey(board))
    except EdgekdError as error:
        return KnownBoard(board=board, problem=f"{error.what}: {error.cause}" if error.cause else error.what)


def _outdated(calibration: Calibration, prints: Mapping[str, str], today: str) -> str:
    if prints.get(calibration.device, calibration.fingerprint) != calibration.fingerprint:
        return "of another machine, or of other software on it"
    days = (_day(today) - _day(calibration.date)).days
    return f"{days} days old" if days > _FRESH_DAYS else ""


def _day(text: str) -> date:
    return datetime.fromisoformat(text).date()


def _distinct(bundles: Sequence[Path]) -> list[Path]:
    if not bundles:
        raise UsageError("no bundle is given", mend="give the folders that `edgekd run` made")
    folders: dict[Path, Path] = {}
    for path in bundles:
        folders.setdefault(path.resolve(), path)
        if not path.is_dir():
            cause = "it is a file" if path.exists() else "there is nothing at that path"
            mend = "give the folder that holds manifest.json"
            raise UsageError(f"{path} is not the folder of a bundle", cause=cause, mend=mend)
    return list(folders.values())


def _hardware_words(one: BundleVerdict) -> str:
    told = {"processor", "machine", "cores", "memory", "instructions"}
    return "; ".join(
        f"{change.what} {change.then} then, {change.now} now" for change in one.changes if change.what in told
    )
