"""Put a board's power mode and clocks back: what is pending lies in a file, and whoever comes first restores it.

Restoring twice is harmless. The watchdog is a process of its own, apart from the connection: it looks at a file that the
session touches, by its own monotonic clock, so that a step of the wall clock neither wakes it nor puts it to sleep.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import edgekd
from edgekd.errors import ConfigError, DeviceError
from edgekd.timing.boards.asking import Answer, ask, find
from edgekd.timing.boards.nvpmodel import parse_nvpmodel, reboot_needed
from edgekd.values import codec

# Root's own folder: what `jetson_clocks --restore` reads is written to any path it names, so no user may write it.
STORE = "/root/.edgekd_clocks.conf"
_LOOK_S = 0.25
_BEATS_A_PATIENCE = 6
_START_S = 20.0  # for the watchdog to say that it is there: importing on a slow board
_COMMAND_S = 20.0
_PENDING, _PULSE, _LOCK = "tuning.json", "tuning.pulse", "tuning.lock"
_MOST_BYTES = 4096
NUMBER = re.compile(r"[0-9]{1,2}")  # of a power mode


@dataclass(frozen=True, kw_only=True)
class Command:
    """Arguments of a program, and what to type where it asks a question."""

    arguments: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What has to be put back: plain numbers, from which the commands are made anew."""

    mode: int | None  # the power mode that was there before; None: it is not changed
    clocks: bool  # they are held, and were stored before


def commands(pending: Pending) -> tuple[Command, ...]:
    """Give the commands that put back what is pending.

    With both changed, clocks are restored on either side of the mode: held clocks keep nvpmodel from lowering
    limits, and nvpmodel writes limits of its own over what was stored.
    """
    clocks = [Command(arguments=("jetson_clocks", "--restore", STORE))] if pending.clocks else []
    if pending.mode is None:
        return tuple(clocks)
    return (*clocks, set_mode(pending.mode), *clocks)


def set_mode(number: int) -> Command:
    """Set a power mode; to the question whether to reboot now, the answer is no."""
    return Command(arguments=("nvpmodel", "-m", str(number)), answer="no\n")


def beat(folder: Path) -> None:
    """Tell the watchdog that the session is there."""
    with contextlib.suppress(OSError):  # a full or vanished disk must not end a measurement
        (folder / _PULSE).write_text(str(time.monotonic_ns()), encoding="ascii")


@contextmanager
def beating(folder: Path, patience_s: float) -> Iterator[None]:
    """Tell it from a thread, for as long as the context lasts."""
    gone = threading.Event()

    def beats() -> None:
        while not gone.wait(patience_s / _BEATS_A_PATIENCE):
            beat(folder)

    thread = threading.Thread(target=beats, daemon=True)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


def pending_mark(folder: Path) -> tuple[int, int] | None:
    """Name what is pending now: as long as it stays equal, nothing was put back; None where nothing is pending."""
    try:
        found = (folder / _PENDING).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def mend(folder: Path) -> bool:
    """Put back what is pending, once, whoever asks; return whether anything was.

    Raises:
        DeviceError: it could not be put back; it stays pending.

    """
    if not (folder / _PENDING).exists():
        return False
    with _alone(folder):
        pending = _read(folder / _PENDING)
        if pending is None:  # another has done it meanwhile
            return False
        put_back(pending)
        (folder / _PENDING).unlink(missing_ok=True)
        return True


def put_back(pending: Pending) -> None:
    """Run the commands that put it back, and none for a power mode that is there already.

    Raises:
        DeviceError: sudo refuses, or a command fails.

    """
    there = pending.mode is not None and power_mode() == pending.mode
    for command in commands(pending):
        if not (there and command == set_mode(pending.mode or 0)):
            run(command)


def power_mode() -> int | None:
    """Ask the board which power mode it has."""
    mode = parse_nvpmodel(ask(["nvpmodel", "-q"]).text).mode
    return mode.id if mode else None


def run(command: Command) -> Answer:
    """Run a command as root, without ever asking for a password.

    Raises:
        DeviceError: sudo refuses, or the command fails.

    """
    privilege = () if os.geteuid() == 0 else ("sudo", "-n")
    name = find(command.arguments[0]) or command.arguments[0]  # sudo's rules hold paths
    answer = ask(
        (*privilege, name, *command.arguments[1:]), timeout_s=_COMMAND_S, answer=command.answer or "no\n"
    )
    said = " ".join(answer.text.split())[-300:]
    if answer.code == 0:
        return answer
    if privilege and ("sudo:" in said or find("sudo") is None):
        lines = " | ".join(sudoers(getpass.getuser()))
        raise DeviceError(
            f"sudo refuses `{' '.join(command.arguments)}`",
            cause=said or "there is no sudo",
            mend=f"ask an administrator for these three lines in /etc/sudoers.d/edgekd: {lines}",
        )
    if reboot_needed(answer.text):
        raise DeviceError(
            "the board must be rebooted for that power mode",
            cause=said,
            mend=f"run `sudo {' '.join(command.arguments)}` there, let it reboot, and leave the mode out of --tune",
        )
    late = f"it did not end in {_COMMAND_S:g} s" if answer.code is None else "it said nothing"
    raise DeviceError(f"`{' '.join(command.arguments)}` failed on the device", cause=said or late)


def sudoers(user: str) -> tuple[str, str, str]:
    """Give the rules that allow exactly what tuning runs, and nothing else."""
    restore = f"/usr/bin/jetson_clocks --restore {STORE}"
    return (
        f"{user} ALL=(root) NOPASSWD: /usr/sbin/nvpmodel -m [0-9], /usr/sbin/nvpmodel -m [0-9][0-9]",
        f'{user} ALL=(root) NOPASSWD: /usr/bin/jetson_clocks ""',
        f"{user} ALL=(root) NOPASSWD: /usr/bin/jetson_clocks --store {STORE}, {restore}",
    )


def may_tune() -> bool | None:
    """Ask sudo whether this user may run what tuning runs, unasked; None where there is nothing to tune."""
    if not find("nvpmodel") or not find("jetson_clocks"):
        return None
    if os.geteuid() == 0:
        return True
    if not find("sudo"):
        return False
    whole = Pending(mode=0, clocks=True)
    wanted = (*commands(whole), Command(arguments=("jetson_clocks",)))
    wanted = (*wanted, Command(arguments=("jetson_clocks", "--store", STORE)))
    free = _without_password(ask(("sudo", "-n", "-ll")).text)
    return all(_allowed(command, free) for command in dict.fromkeys(wanted))


def _allowed(command: Command, free: Sequence[str]) -> bool:
    """Ask sudo whether a command may be run; it is not run.

    That it may says nothing of a password, so a rule that asks for none must name the program as well.
    """
    name = find(command.arguments[0]) or command.arguments[0]
    named = any(rule == "ALL" or rule.split()[:1] == [name] for rule in free)
    return named and ask(("sudo", "-n", "-l", name, *command.arguments[1:])).code == 0


def _without_password(listed: str) -> tuple[str, ...]:
    """Return the commands of those rules in `sudo -ll` that ask for no password."""
    entries = [entry for entry in listed.split("Sudoers entry:") if "!authenticate" in entry]
    return tuple(line.strip() for entry in entries for line in entry.partition("Commands:")[2].splitlines())


def watch(
    folder: Path,
    patience_s: float,
    whole: Pending,
    *,
    clock_s: Callable[[], float] = time.monotonic,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until nothing is pending; restore when the pulse has stood still for `patience_s`, or we are `ended`.

    Args:
        folder: where it is written what is pending.
        patience_s: how long a session may be silent.
        whole: what to put back where somebody has taken the folder away.
        clock_s: a monotonic clock.
        ended: whether this process is to end.

    """
    pulse, since_s = b"", clock_s()
    while (folder / _PENDING).exists() or not folder.exists():
        now = _bytes(folder / _PULSE)
        if now != pulse:
            pulse, since_s = now, clock_s()
        elif clock_s() - since_s >= patience_s or ended():
            with contextlib.suppress(DeviceError, OSError):
                if folder.exists():
                    mend(folder)
                else:
                    put_back(whole)
                return
            since_s = clock_s()  # it failed: again, after as long
            if ended():
                return
        time.sleep(min(_LOOK_S, patience_s / 4))


def start_watchdog(folder: Path, patience_s: float, whole: Pending) -> None:
    """Start the watchdog apart from this session, and wait until it says that it watches.

    Raises:
        DeviceError: it does not.

    """
    places = [str(Path(edgekd.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edgekd.devices.restoring",
            str(folder.resolve()),
            str(patience_s),
            codec.encode(whole),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    with process.stdout as stdout:
        ready, _, _ = select.select([stdout], [], [], _START_S)
        watches = bool(ready) and stdout.read(1) == b"w"
    if not watches:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child of its own, too
    process.wait()  # it leaves a child that watches: no thread here, in a process that forks, and no zombie
    if not watches:
        raise DeviceError("the watchdog that puts the clocks back did not start", mend="leave --tune out")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_down(pending: Pending, folder: Path) -> None:
    """Write what has to be put back, so that a power cut cannot lose it."""
    path, text = folder / _PENDING, codec.encode(pending)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Pending | None:
    """Return what is pending; None where nothing is.

    Raises:
        DeviceError: the file is not one of ours.

    """
    text = _bytes(path).decode(errors="replace")
    if not text:
        return None
    try:
        pending = codec.decode(Pending, json.loads(text))
        if pending.mode is not None and not NUMBER.fullmatch(str(pending.mode)):
            raise ValueError(f"{pending.mode} is no power mode")
    except (ConfigError, ValueError) as error:
        mend = f"look at the power mode by hand, then remove {path}"
        raise DeviceError(f"{path} does not say what to put back", cause=str(error), mend=mend) from error
    return pending


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return b""


def main(arguments: Sequence[str]) -> None:
    """Be the watchdog: `python -m edgekd.devices.restoring FOLDER SECONDS WHAT`."""
    folder, patience_s, whole = Path(arguments[0]), float(arguments[1]), json.loads(arguments[2])
    if os.fork():
        os._exit(0)  # who started us need not wait for us
    ended = threading.Event()  # the machine shuts down: restore before it does
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.write(1, b"w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    watch(folder, patience_s, codec.decode(Pending, whole), ended=ended.is_set)


if __name__ == "__main__":
    main(sys.argv[1:])
