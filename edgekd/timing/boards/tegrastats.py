"""Understand a line of NVIDIA's `tegrastats`, of JetPack 4 to 7.

The fields, as recorded from boards (the addresses are in tests/timing/boards/recorded):

    RAM 1343/7620MB (lfb 157x4MB)  SWAP 165/3810MB (cached 3MB)  CPU [0%@1497,off]  EMC_FREQ 15%@204
    GR3D_FREQ 0%@[305] | 0%@[1300,1300] | @[0,0,0] | 10%@1300 | 0%      APE 174  NVDEC off  NVENC 79%@166
    cpu@48.5C | cpu@52.9C/52.9C | GPU@-256C (switched off)
    VDD_IN 5251mW/8535mW | 5139mW/5139mW/5139mW | VDD_IN 5297/5297 | VDD_IN 5765mW
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from edgekd.values.power import BoardReading, Clock, Rail, Temperature, puzzling

_MOST_CHARACTERS = 8192
_MOST_CORES = 1024
_SWITCHED_OFF_C = -250.0  # -256 is what the driver gives for a part without power
_ENGINES = {"GR3D": "gpu", "GR3D2": "gpu2", "EMC": "emc"}  # the others keep their names

_N = r"\d{1,9}"
_MHZ = rf"(?:\[(?P<each>{_N}(?:,{_N})*)\]|(?P<mhz>{_N}))"
_C = r"-?\d{1,4}(?:\.\d{1,9})?"
_ENGINE = (
    r"(?P<engine>(?:GR3D2?|EMC|APE|SE|VI|ISP|CVNAS|VIC\d?|OFA\d?|AO_APE|NVCSI|NVLINK"
    r"|(?:NVENC|NVDEC|NVJPG|NVDLA|PVA|MSENC|TSEC)\d{0,2}))(?:_FREQ)?"
)


@dataclass(kw_only=True)
class _Line:
    """What one line has said so far."""

    clocks: list[Clock] = field(default_factory=list)
    temperatures: list[Temperature] = field(default_factory=list)
    rails: list[Rail] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def parse_tegrastats(text: str) -> BoardReading:
    """Read one line; what has another shape, or an unknown name, is in `unknown`."""
    line, said, at = text[:_MOST_CHARACTERS].strip(), _Line(), 0
    while at < len(line):
        found, take = next(
            ((match, take) for shape, take in _SHAPES if (match := shape.match(line, at))), (None, None)
        )
        if found is None or take is None:
            found = _WORD.match(line, at)
            said.unknown += [found[0]] if found else []
        else:
            take(said, found)
        at = _SPACE.match(line, found.end() if found else len(line)).end()  # type: ignore[union-attr]  # it matches nothing, too
    return BoardReading(
        clocks=tuple(said.clocks),
        temperatures=tuple(said.temperatures),
        rails=tuple(said.rails),
        memory_mib=said.memory.get("total"),
        memory_used_mib=said.memory.get("used"),
        swap_used_mib=said.memory.get("swap"),
        unknown=puzzling("tegrastats", said.unknown),
    )


def _take_memory(said: _Line, found: re.Match[str]) -> None:
    if found["what"] == "RAM":
        said.memory.update(used=float(found["used"]), total=float(found["total"]))
    elif found["what"] == "SWAP":
        said.memory["swap"] = float(found["used"])


def _take_cores(said: _Line, found: re.Match[str]) -> None:
    for number, core in enumerate(found["cores"].split(",")[:_MOST_CORES]):
        load, _, mhz = core.strip().partition("%")
        if load == "off":
            said.clocks.append(Clock(name=f"cpu{number}", online=False))
            continue
        known_mhz = mhz.removeprefix("@") or found["mhz"]
        said.clocks.append(
            Clock(
                name=f"cpu{number}",
                online=True,
                load_percent=float(load),
                current_mhz=float(known_mhz) if known_mhz else None,
            )
        )


def _take_engine(said: _Line, found: re.Match[str]) -> None:
    parts = found.groupdict()
    each = [float(mhz) for mhz in (parts.get("each") or parts.get("mhz") or "").split(",") if mhz]
    engine = found["engine"]
    said.clocks.append(
        Clock(
            name=_ENGINES.get(engine, engine.lower()),
            current_mhz=max(each, default=None),  # a GPU of several clusters says one clock each
            load_percent=float(parts["load"]) if parts.get("load") else None,
            online=None if parts.get("off") is None else False,
        )
    )


def _take_temperature(said: _Line, found: re.Match[str]) -> None:
    celsius = float(found["celsius"])
    said.temperatures.append(
        Temperature(zone=found["zone"], celsius=celsius if celsius > _SWITCHED_OFF_C else None)
    )


def _take_rail(said: _Line, found: re.Match[str]) -> None:
    if found["rail"] == "NC":  # a channel that nothing is connected to
        return
    average = found.groupdict().get("average")
    said.rails.append(
        Rail(
            name=found["rail"],
            power_mw=float(found["power"]),
            average_mw=float(average) if average else None,
        )
    )


def _skip(said: _Line, found: re.Match[str]) -> None:
    """Know the field, and keep nothing of it."""


_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"\S+")
_END = r"(?=\s|$)"
_NAME = r"(?P<rail>[A-Z][A-Z0-9_]{0,40})"
_Take = Callable[[_Line, "re.Match[str]"], None]
_SHAPES: tuple[tuple[re.Pattern[str], _Take], ...] = tuple(
    (re.compile(shape + _END), take)
    for shape, take in (
        (r"\d\d-\d\d-\d{4}\s+\d\d:\d\d:\d\d", _skip),
        (rf"(?P<what>RAM)\s+(?P<used>{_N})/(?P<total>{_N})MB(?:\s*\(lfb {_N}x{_N}[kM]B\))?", _take_memory),
        (rf"(?P<what>SWAP)\s+(?P<used>{_N})/(?P<total>{_N})MB(?:\s*\(cached {_N}MB\))?", _take_memory),
        (rf"IRAM\s+{_N}/{_N}kB\s*\(lfb {_N}kB\)", _skip),
        (rf"MTS fg {_N}% bg {_N}%", _skip),
        (
            rf"(?i:cpu)\s+\[(?P<cores>(?:off|{_N}%(?:@{_N})?)(?:,\s*(?:off|{_N}%(?:@{_N})?))*)\](?:@(?P<mhz>{_N}))?",
            _take_cores,
        ),
        (rf"(?P<zone>[A-Za-z][\w.-]{{0,40}})@(?P<celsius>{_C})C(?:/{_C}C)*", _take_temperature),
        (rf"{_ENGINE}\s+(?P<off>off)", _take_engine),
        (rf"{_ENGINE}\s+(?P<load>{_N})%(?:@{_MHZ})?", _take_engine),
        (rf"{_ENGINE}\s+@?{_MHZ}", _take_engine),
        (rf"{_NAME}\s+(?P<power>{_N})mW(?:/(?P<average>{_N})mW)?(?:/{_N}mW)?", _take_rail),
        # JetPack 4 gives no unit, so only names that are known to be rails are believed.
        (
            rf"(?P<rail>(?:VDD|VIN|POM|VDDQ|VDDRQ|SYS5V|CPU|GPU|SOC|CV)[A-Z0-9_]{{0,40}})\s+(?P<power>{_N})/(?P<average>{_N})",
            _take_rail,
        ),
    )
)
