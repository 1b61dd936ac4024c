"""The order of what concerns one board: add, probe, doctor, lock, clean, remove."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd import backends
from edgekd.devices import by_trtexec, hostkeys, registry, ssh
from edgekd.devices.hostkeys import HostKey, printable
from edgekd.devices.link_command import forget_master
from edgekd.errors import DeviceError, EdgekdError, IntegrityError, UsageError
from edgekd.stages.configure import target_from
from edgekd.stages.examine_board import BoardExamination, examine_board, shortcomings
from edgekd.stages.suggest_profile import suggest_profile
from edgekd.stages.write_profile import draft_profile, write_profile
from edgekd.values.board import Board, Survey
from edgekd.values.conditions import Conditions
from edgekd.values.fleet import Added, Cleaned, Leased, Probed
from edgekd.values.job import TargetSection
from edgekd.values.model import Precision
from edgekd.values.order import ProbeReply
from edgekd.values.target import Profile, Target

log = logging.getLogger(__name__)

_REHEARSAL = "rehearsal"  # is no runtime of a board


def add(
    asked: Board, *, config: Path, agree: Callable[[HostKey], bool], today: str, wanted: str = ""
) -> Added:
    """Write a board down, once its host key is agreed to and it can be logged into.

    Args:
        asked: name and destination; a profile, or empty for the one that fits.
        config: the folder of edgekd's settings.
        agree: is shown the host key, and says whether it is the board's.
        today: UTC, ISO 8601.
        wanted: the fingerprint that the host key must have; empty: any that is agreed to.

    Raises:
        UsageError: a device has this name already, or the key was not agreed to.
        ConfigError: there is no such profile.
        DeviceError: the board cannot be reached or logged into; nothing is written then.
        IntegrityError: the host has another key than the one wanted or known.

    """
    if asked.name in registry.boards(config):
        mend = f"give another name, or first run: edgekd devices remove {asked.name}"
        raise UsageError(f"a device is called {asked.name} already", mend=mend)
    if asked.profile:
        target_from(TargetSection(profile=asked.profile), Path())
    own = registry.known_hosts(config)
    key = hostkeys.host_key(replace(asked, known_hosts=own), wanted=wanted)
    if not agree(key):
        raise UsageError(f"{asked.name} was not added", cause="its host key was not agreed to")
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        trial = replace(asked, known_hosts=Path(scratch) / "known_hosts", fingerprint=key.fingerprint)
        hostkeys.keep(Path(scratch) / "known_hosts", key, asked.name)
        log.info("logging in to %s", asked.destination)
        try:
            found = ssh.survey(trial)
            reply, problems = _first_look(trial, found)
        finally:
            forget_master(trial)
    conditions = reply.conditions if reply else None
    board = _seen(trial, found, conditions, today)
    board = replace(board, profile=asked.profile or _fitting(found, conditions))
    if not board.profile:
        problems = (*problems, f"no hardware profile fits {found.machine}: see `edgekd devices probe --help`")
    hostkeys.keep(own, key, board.name)
    registry.remember(config, board)
    return Added(
        board=replace(board, known_hosts=own),
        key_kind=key.kind,
        survey=found,
        conditions=conditions,
        runtimes=reply.runtimes if reply else (),
        problems=problems,
    )


def probe(name: str, *, config: Path, today: str, profile_file: Path | None = None) -> Probed:
    """Say what a board is now, with a real inference on each runtime; write a profile of it where one is asked for.

    A board that had no profile has the new one from then on.

    Raises:
        UsageError: the profile's file exists, or is no .toml.
        DeviceError: the board is unknown or cannot be measured on.

    """
    board = registry.known_board(config, name)
    _check_profile_file(profile_file)
    with ssh.SshDevice(board, _everything(board)) as device:
        reply = _told(device.probe())
    if profile_file is not None:
        _write_profile(board, reply, profile_file, today)
    found = ssh.survey(board)
    now = _seen(board, found, reply.conditions, today)
    if profile_file is not None and not now.profile:
        now = replace(now, profile=str(profile_file.absolute()))
    registry.remember(config, now)
    return Probed(
        board=now,
        survey=found,
        conditions=reply.conditions,
        runtimes=reply.runtimes,
        changed=bool(board.conditions) and board.conditions != now.conditions,
        profile_file=profile_file,
    )


def doctor(name: str, *, config: Path) -> BoardExamination:
    """Examine a board by doing what a measurement does, and say what is wrong with it.

    Raises:
        DeviceError: no board has this name.
        IntegrityError: it shows another host key.

    """
    board = registry.known_board(config, name)
    expected = target_from(TargetSection(profile=board.profile), Path()).runtimes if board.profile else ()
    try:
        found = ssh.survey(board)
    except IntegrityError:
        raise
    except EdgekdError as error:
        return examine_board(board, error, None)
    off_s = None if found.clock_s is None else found.clock_s - time.time()
    if shortcomings(board, found):
        return examine_board(board, found, None, clock_off_s=off_s)
    return examine_board(board, found, _tried(board), expected=expected, clock_off_s=off_s)


def lock(name: str, *, config: Path, minutes: float, why: str) -> Leased:
    """Keep others from measuring on a board for a while.

    Raises:
        DeviceError: the board is unknown, cannot be reached, or is held by another.

    """
    board = registry.known_board(config, name)
    return Leased(device=name, lease=ssh.hold(board, seconds=minutes * 60, why=why))


def unlock(name: str, *, config: Path) -> Leased:
    """Let others measure on a board again.

    Raises:
        DeviceError: the board is unknown, cannot be reached, or is held by another.

    """
    ssh.release(registry.known_board(config, name))
    return Leased(device=name, lease=None)


def clean(name: str, *, config: Path) -> Cleaned:
    """Remove everything that edgekd has put on a board.

    Raises:
        DeviceError: the board is unknown, cannot be reached, or is being measured on.

    """
    freed_mib = ssh.clean(registry.known_board(config, name))
    return Cleaned(device=name, freed_mib=freed_mib, forgotten=False)


def remove(name: str, *, config: Path, keep_files: bool) -> Cleaned:
    """Forget a board and its host key, after removing what edgekd has put there.

    Raises:
        DeviceError: the board is unknown; or it cannot be cleaned, and its files were not to be left.
        IntegrityError: it shows another host key, and its files were not to be left.

    """
    board = registry.known_board(config, name)
    freed_mib = None
    if not keep_files:
        try:
            freed_mib = ssh.clean(board)
        except (DeviceError, IntegrityError) as error:
            # What mends the connection may be this very command, such as for a board that was set up anew.
            mend = f"to forget it and leave its files there: edgekd devices remove {name} --keep-files"
            raise type(error)(error.what, cause=error.cause, mend=mend) from error
    forget_master(board)
    registry.forget(config, name)
    hostkeys.drop(registry.known_hosts(config), name)
    return Cleaned(device=name, freed_mib=freed_mib, forgotten=True)


def _first_look(board: Board, found: Survey) -> tuple[ProbeReply | None, tuple[str, ...]]:
    """Run a worker there; what keeps one from running is told, and is no error yet."""
    if missing := shortcomings(board, found):
        return None, tuple(f"{one.name}: {one.value}; {one.mend}" for one in missing)
    reply = _tried(board)
    if isinstance(reply, EdgekdError):
        return None, (str(reply),)
    if any(health.works for health in reply.runtimes):
        return reply, ()
    mends = " or ".join(health.mend for health in reply.runtimes if health.mend)
    return reply, (f"no runtime works there; {mends}",)


def _tried(board: Board) -> ProbeReply | EdgekdError:
    log.info("running a model on each runtime of %s", board.name)
    try:
        with ssh.SshDevice(board, _everything(board)) as device:
            return _told(device.probe())
    except IntegrityError:
        raise
    except EdgekdError as error:
        return error


def _write_profile(board: Board, reply: ProbeReply, file: Path, today: str) -> None:
    """Build within the limits that the profile will set, so that what it lists can be measured with it."""
    draft = draft_profile(reply, name=file.stem)
    target = Target(profile=draft, device=board.name, runtimes=tuple(draft.runtimes), threads=draft.threads)
    log.info("building a small network on %s in every precision", board.name)
    with ssh.SshDevice(board, target) as device:
        write_profile(file.parent, device, draft, reply, today=today)
    target_from(TargetSection(profile=str(file.absolute())), Path())


def _everything(board: Board) -> Target:
    """Name every runtime that a board may have."""
    runtimes = (*(name for name in backends.NAMES if name != _REHEARSAL), by_trtexec.RUNTIME)
    held: dict[str, tuple[Precision, ...]] = dict.fromkeys(runtimes, (Precision.FP32,))
    profile = Profile(name=board.name, description="", runtimes=held)
    return Target(profile=profile, device=board.name, runtimes=runtimes, threads=1)


def _told(reply: ProbeReply) -> ProbeReply:
    """Name trtexec only where it stands in for TensorRT's Python module: it can do less."""
    working = {health.name for health in reply.runtimes if health.works}
    needed = by_trtexec.RUNTIME in working and "tensorrt" not in working
    kept = (health for health in reply.runtimes if needed or health.name != by_trtexec.RUNTIME)
    return replace(reply, runtimes=tuple(kept))


def _seen(board: Board, found: Survey, conditions: Conditions | None, today: str) -> Board:
    if conditions is None:
        return replace(board, machine=printable(found.machine, 100), seen=today)
    hardware = conditions.hardware
    words = f"{hardware.processor}, {hardware.cores} cores, {hardware.memory_mib / 1024:.1f} GiB"
    return replace(board, machine=printable(words, 200), conditions=conditions.fingerprint, seen=today)


def _fitting(found: Survey, conditions: Conditions | None) -> str:
    features = conditions.hardware.features if conditions else ()
    return suggest_profile(found.machine, model=found.model, release=found.release, features=features)


def _check_profile_file(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix != ".toml":
        raise UsageError(f"{path} is no name for a profile", mend="give one that ends in .toml")
    if path.exists():
        raise UsageError(f"{path} exists", mend="give another name, or remove it first")
