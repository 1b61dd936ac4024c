"""Tables of measured latencies: who is in them, who is kin to whom, and what is wrong with them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError, UsageError
from edgekd.values.codec import did_you_mean

FIELDS = ("ops", "op_names", "device", "latency_ms")
_SHORTEST_STEM = 3  # letters, for one stem to be the beginning of another
_LEAST = 50  # measured architectures that differ, before a rank correlation means something


@dataclass(frozen=True, kw_only=True)
class Table:
    """Architectures and what they took on each device."""

    path: Path
    ops: NDArray[np.int64]  # (n, positions)
    op_names: tuple[str, ...]
    devices: tuple[str, ...]
    latency_ms: NDArray[np.float64]  # (devices, n), NaN where not measured

    def of(self, device: str) -> NDArray[np.float64]:
        return self.latency_ms[self.devices.index(device)]

    def wanted(self, names: str | None) -> tuple[str, ...]:
        """Return the devices that were asked for, all where none was."""
        asked = tuple(name.strip() for name in names.split(",")) if names else self.devices
        for name in asked:
            if name not in self.devices:
                raise UsageError(
                    f"{self.path} has no device {name!r}", mend=did_you_mean(name, list(self.devices))
                )
        return asked

    def unfit(self, device: str) -> str:
        """Say why nothing can be concluded from a device; empty where it can."""
        known = self.of(device)[np.isfinite(self.of(device))]
        if len(known) < _LEAST:
            return f"{len(known)} architectures were measured, {_LEAST} are the least"
        return "" if np.ptp(known) > 0 else f"every latency is {known[0]:g} ms"


def read_table(path: Path) -> Table:
    """Read an .npz of `ops` (n, positions), `op_names`, `device` and `latency_ms` (devices, n).

    Raises:
        DataError: no such file, a field is missing or has another shape, or a latency is not positive.

    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in FIELDS if name not in file]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}", mend=f"it needs {', '.join(FIELDS)}")
            ops, names, devices, latency_ms = (file[name] for name in FIELDS)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no table of latencies", cause=str(error), mend="give an .npz") from error
    table = Table(
        path=path,
        ops=ops.astype(np.int64),
        op_names=tuple(str(name) for name in names),
        devices=tuple(str(name) for name in devices),
        latency_ms=latency_ms.astype(np.float64),
    )
    _check(table)
    return table


def kin(one: str, other: str, declared: Iterable[frozenset[str]] = ()) -> bool:
    """Tell whether two devices may know of each other: the same chip, its other batch sizes, its siblings.

    A stem is what stands before the first underscore, without digits: `1080ti_32` and `2080ti_256` are `ti`,
    `silver_4114` and `silver_4210r` are `silver`, `pixel2` and `pixel3` are `pixel`. Devices are kin where stems
    are equal, or where one of at least three letters begins the other (`titan_rtx`, `titanx`, `titanxp`), or
    where both stems are in one declared family.
    """
    first, second = sorted((stem(one), stem(other)), key=len)
    if first == second or (len(first) >= _SHORTEST_STEM and second.startswith(first)):
        return True
    return any({first, second} <= family for family in declared)


def stem(device: str) -> str:
    token = device.split("_", 1)[0].lower()
    return re.sub(r"\d+", "", token) or token


def others(
    table: Table, device: str, targets: Sequence[str], declared: Iterable[frozenset[str]]
) -> list[str]:
    """Return the devices that may serve as prior: no target where targets were named, and no kin."""
    held_out = set(targets) if len(targets) < len(table.devices) else {device}
    declared = tuple(declared)
    return [
        name
        for name in table.devices
        if name not in held_out and not kin(name, device, declared) and not table.unfit(name)
    ]


def _check(table: Table) -> None:
    shape = (len(table.devices), len(table.ops))
    if table.ops.ndim != 2 or table.latency_ms.shape != shape:
        cause = f"latency_ms is {table.latency_ms.shape}, devices and architectures are {shape}"
        raise DataError(f"the fields of {table.path} do not fit together", cause=cause)
    if len(set(table.devices)) < len(table.devices):
        raise DataError(f"{table.path} names a device twice", mend="give each its own name")
    for name in table.devices:
        values = table.of(name)
        if np.isinf(values).any() or (values[np.isfinite(values)] <= 0).any():
            raise DataError(
                f"{table.path} has a latency of {name} that is not above 0 and finite",
                mend="write NaN where nothing was measured",
            )
