"""Set a Jetson's power mode and hold its clocks, only when asked, and put everything back whatever happens.

Runs on the device. What was there before is written down before anything is changed; it is restored when the context is
left, by the watchdog (`restoring`) when the host has vanished, and by the next session after a power cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd.devices.restoring import (
    NUMBER,
    STORE,
    Command,
    Pending,
    beat,
    beating,
    commands,
    mend,
    pending_mark,
    power_mode,
    run,
    set_mode,
    start_watchdog,
    write_down,
)
from edgekd.errors import ConfigError, DeviceError
from edgekd.timing.boards import power_modes, read_board
from edgekd.timing.boards.asking import find
from edgekd.values import codec
from edgekd.values.power import BoardReading, PowerMode

CLOCKS = "clocks"  # a target's `tune` that changes no power mode
_STOOD_STILL = "this process stood still for more than {:g} s, and the watchdog took it for dead"
PATIENCE_S = 30.0  # without a sign from the session, the watchdog restores


@dataclass(frozen=True, kw_only=True)
class Change:
    """A command that changes the board, and what has to be put back from the moment that it starts."""

    command: Command
    pending: Pending


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to run, in order, and what the board should say afterwards."""

    prepare: tuple[Command, ...]  # changes nothing: it stores what is there
    changes: tuple[Change, ...]
    mode: PowerMode | None  # afterwards; None: as before

    @property
    def pending(self) -> Pending:
        """Say what has to be put back once all is changed."""
        return self.changes[-1].pending if self.changes else Pending(mode=None, clocks=False)

    def words(self) -> tuple[str, ...]:
        """Say for people what is run, and then what is run to undo it."""
        there = [*self.prepare, *(change.command for change in self.changes)]
        return tuple(" ".join(command.arguments) for command in (*there, *commands(self.pending)))


def plan(
    reading: BoardReading | None, modes: Sequence[PowerMode] = (), *, mode: str = "", clocks: bool = True
) -> Tuning:
    """Make the commands from what was read before.

    Args:
        reading: of `read_board`.
        modes: those that the board knows, of `power_modes`.
        mode: the name or number of the power mode to set; empty: as it is.
        clocks: hold them at the highest that the power mode allows.

    Raises:
        DeviceError: this machine has nothing that could be set, or does not say what to put back.
        ConfigError: it has no such power mode.

    """
    if reading is None or not find("nvpmodel"):
        raise DeviceError(
            "this machine has no power mode to set",
            cause="there is no nvpmodel on it",
            mend="leave --tune out; set the governor by hand where the processor has one",
        )
    if clocks and not find("jetson_clocks"):
        raise DeviceError("clocks cannot be held", cause="there is no jetson_clocks", mend="leave --tune out")
    wanted = _mode(mode, modes) if mode else None
    before = reading.mode.id if reading.mode else None
    if wanted and before is None:
        mend = "run `nvpmodel -q` there and see what it says"
        raise DeviceError("the board does not say which power mode it has now", mend=mend)
    changes: list[Change] = []
    to_put_back = before if wanted and wanted.id != before else None
    if wanted and wanted.id is not None and to_put_back is not None:
        pending = Pending(mode=to_put_back, clocks=False)
        changes.append(Change(command=set_mode(wanted.id), pending=pending))
    if clocks:
        pending = Pending(mode=to_put_back, clocks=True)
        changes.append(Change(command=Command(arguments=("jetson_clocks",)), pending=pending))
    # Stored before the mode changes: the limits of the old mode are what has to come back.
    store = Command(arguments=("jetson_clocks", "--store", STORE), answer="y\n")
    return Tuning(
        prepare=(store,) if clocks else (),
        changes=tuple(changes),
        mode=wanted if to_put_back is not None else None,
    )


def prepared(
    folder: Path, *, mode: str = "", clocks: bool = True, modes: Sequence[PowerMode] | None = None
) -> Tuning:
    """Put back what a session before left, then read the board and plan: what a session on the device calls first.

    Raises:
        DeviceError: this machine has nothing that could be set, or what is pending cannot be put back.
        ConfigError: it has no such power mode.

    """
    mend(folder)
    return plan(read_board(), power_modes() if modes is None else modes, mode=mode, clocks=clocks)


@contextmanager
def tuned(tuning: Tuning, folder: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Change the board for as long as the context lasts, and put it back at its end.

    Args:
        tuning: of `plan`.
        folder: on the device, ours alone; what has to be put back is written there.
        patience_s: the watchdog restores when this process has been gone for so long.

    Raises:
        DeviceError: sudo refuses, the board needs a reboot for that mode, or a command fails; all is put back.

    """
    apply(tuning, folder, patience_s=patience_s)
    try:
        with beating(folder, patience_s):
            yield
    except BaseException:
        mend(folder)
        raise
    if not mend(folder):
        raise _put_back_early(_STOOD_STILL.format(patience_s))


@contextmanager
def kept_tuned(folder: Path, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keep a board as a session tuned it, whatever becomes of that session meanwhile.

    Raises:
        DeviceError: it was put back before the end, or before the beginning.

    """
    before = pending_mark(folder)
    if before is not None:
        with beating(folder, patience_s):
            yield
    if before is None or pending_mark(folder) != before:
        raise _put_back_early("the watchdog took the session for dead, or somebody else put them back")


def _put_back_early(cause: str) -> DeviceError:
    return DeviceError(
        "the power mode and clocks were put back before the end",
        cause=cause,
        mend="measure again; what was measured meanwhile is worth nothing",
    )


def mode_of(tune: str) -> str:
    """Return the power mode that a target's `tune` asks for; empty where it is to stay."""
    return "" if tune == CLOCKS else tune


def apply(tuning: Tuning, folder: Path, *, patience_s: float = PATIENCE_S) -> None:
    """Write down what to put back, start the watchdog, and change the board; `beat` and `mend` are the caller's.

    Raises:
        DeviceError: it cannot be changed; all is put back.

    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mend(folder):
        raise DeviceError(
            "the board was still tuned by a session before",
            cause="what this plan would put back is not what was there at first",
            mend="measure again: it has been put back now",
        )
    for command in tuning.prepare:
        run(command)
    try:
        for at, change in enumerate(tuning.changes):
            write_down(change.pending, folder)
            if at == 0:
                start_watchdog(folder, patience_s, tuning.pending)
            beat(folder)
            run(change.command)
        _check(tuning)
    except BaseException:
        mend(folder)
        raise


def _mode(name: str, modes: Sequence[PowerMode]) -> PowerMode:
    for mode in modes:
        if name.lower() == mode.name.lower() or name == str(mode.id):
            return mode
    if not modes and NUMBER.fullmatch(name):  # its file of modes cannot be read: the board will say
        return PowerMode(name=name, id=int(name))
    known = codec.did_you_mean(name, [mode.name for mode in modes])
    raise ConfigError(f"the board has no power mode {name!r}", mend=known)


def _check(tuning: Tuning) -> None:
    """Ask the board whether it did what it was told."""
    if tuning.mode is not None and power_mode() != tuning.mode.id:
        raise DeviceError(
            f"the board did not take the power mode {tuning.mode.name}",
            mend="set it by hand, where it may ask for a reboot",
        )
