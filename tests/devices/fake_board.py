"""A board that answers what it is told to: a program called `ssh` that plays a file back, and files worth playing.

`spoilt` makes seeded nonsense of a good conversation; `play` runs one operation of a device against it and says what
came of it. The tests play some hundreds, `tools/bench/ssh.py` plays 10,000.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgekd.devices import link, link_session, ssh
from edgekd.devices.link import Patience
from edgekd.devices.ssh import SshDevice
from edgekd.errors import EdgekdError
from edgekd.timing.conditions import conditions
from edgekd.values.artifact import Artifact
from edgekd.values.board import Board
from edgekd.values.codec import encode, plain
from edgekd.values.conditions import Load, Trust, TrustVerdict
from edgekd.values.latency import Latency, Launch, Protocol
from edgekd.values.layer import Layer
from edgekd.values.ledger import Ledger
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec
from edgekd.values.order import OpenReply, ProbeReply, RuntimeHealth
from edgekd.values.power import Energy
from edgekd.values.preprocess import Preprocess
from tests.contracts.device import target

_PROGRAM = """\
#!/bin/sh
# Standard input stays open, as with a real ssh; what there is to read ends, or never does.
cat "$EDGEKD_FAKE"
[ -n "$EDGEKD_ENDLESS" ] && exec head -c 10000000000 /dev/zero
exec cat > /dev/null
"""
PATIENCE = Patience(
    hello_s=5, answer_s=2, silence_s=1, stuck_s=1, resume_s=0, pause_s=0, losses=0, death_s=0.05, leave_s=0.2,
    beat_s=60,
)  # fmt: skip
PROTOCOL = Protocol(launches=1, blocks=2, samples=3)
ID, BOOT = "ab" * 16, "the-boot"
OUTPUT = np.arange(6, dtype=np.float32).reshape(2, 3)
_ESCAPES = ("../x", "../../x", "/tmp/edgekd-escaped", "a/b", "..", "", "~", "C:\\x", "\x00", "out/../../x")  # noqa: S108 - never written
_HOSTILE: tuple[Any, ...] = (
    None, True, -1, 10**400, 1e308, 0.5, "", "x" * 100_000, "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "\ud800",
    [], {}, [[]], {"": {"": []}}, [None] * 1000, "::error::", "\r\n", *_ESCAPES,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """A folder deep enough that a step or two upwards stays in sight."""

    root: Path
    work: Path
    out: Path
    board: Board
    engine: Engine
    images: Artifact

    def strays(self) -> list[str]:
        """Name what lies where nothing may have been written."""
        inside = {path for path in self.root.rglob("*") if path.is_file() or path.is_symlink()}
        known = {self.engine.model.file.path, self.images.path, self.root / "bin" / "ssh", self.replies}
        kept = {
            path
            for path in inside
            if path.parent == self.out and path.stem in {"model", "output_0", "output_1", "output_2"}
        }
        return [str(path) for path in inside - known - kept]

    @property
    def replies(self) -> Path:
        """What the fake plays."""
        return self.root / "replies"


@contextlib.contextmanager
def sandbox(root: Path) -> Iterator[Sandbox]:
    """Give a fake board: its `ssh` is the one that is found."""
    work = root / "a" / "b" / "c" / "d"
    work.mkdir(parents=True)
    (root / "bin").mkdir()
    program = root / "bin" / "ssh"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    (work / "net.onnx").write_bytes(b"net")
    np.save(work / "images.npy", np.zeros((2, 8, 8, 3), dtype=np.uint8))
    engine = Engine(
        model=Model(file=Artifact.of(work / "net.onnx")), runtime="onnxruntime", precision=Precision.FP32
    )
    found = Sandbox(
        root=root,
        work=work,
        out=work / "out",
        board=Board(name="fake", destination="fake"),
        engine=engine,
        images=Artifact.of(work / "images.npy"),
    )
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with (
        mock.patch.dict(os.environ, {"PATH": path, "EDGEKD_FAKE": str(found.replies), "EDGEKD_ENDLESS": ""}),
        mock.patch.object(link, "PATIENCE", PATIENCE),
        mock.patch.object(link_session.secrets, "token_hex", lambda size: "ab" * size),
    ):
        yield found


Operation = Callable[[Sandbox, SshDevice], object]


def _recipe() -> Preprocess:
    return Preprocess(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)


OPERATIONS: dict[str, Operation] = {
    "probe": lambda _, device: device.probe(),
    "inspect": lambda box, device: device.inspect(box.engine.model.file),
    "build": lambda box, device: device.build(box.engine),
    "compile": lambda box, device: device.compile(box.engine, box.out),
    "time": lambda box, device: device.time([box.engine], PROTOCOL),
    "ledger": lambda box, device: device.ledger(box.engine, box.images, _recipe()),
    "energy": lambda box, device: device.energy(box.engine, seconds=1.0),
    "layers": lambda box, device: device.layers(box.engine, passes=2),
    "infer": lambda box, device: device.infer(box.engine, {"x": box.images}, box.out),
}
PLAIN: dict[str, Callable[[Board], object]] = {
    "survey": ssh.survey,
    "hold": lambda board: ssh.hold(board, seconds=10, why="x"),
    "release": ssh.release,
    "clean": ssh.clean,
}
NAMES = (*OPERATIONS, *PLAIN)


def good(name: str) -> list[bytes]:
    """Return what a board says in a conversation without fault, line by line; raw bytes are a line, too."""
    lines: list[Any] = [
        b"Welcome to the board\n\n",
        b"edgekd-board-1 " + _json({"python": "3.11.2", "boot_id": BOOT}),
    ]
    if name in PLAIN:
        lease = {"owner": "me@desk", "why": "x", "expires_s": 9.5}
        answers: dict[str, Any] = {
            "survey": {
                "survey": {
                    "boot_id": BOOT, "python": "3.11.2", "machine": "aarch64", "numpy": "2.0.0", "free_mib": 100,
                    "worker": "", "used_mib": 0.5, "lease": lease,
                }
            },
            "hold": {"lease": lease},
            "release": {},
            "clean": {"freed_mib": 1.5},
        }  # fmt: skip
        return [*lines, _json({"n": 1, **answers[name]})]
    lines += [_json({"n": 1, "ready": True}), _json({"n": 2, "busy": None})]
    n = 3
    if name != "probe":
        lines.append(_json({"n": n, "missing": []}))
        n += 1
    reply, files = _reply(name)
    lines += [_json({"beat": True}), _json({"n": n, "done": {"id": ID, "boot_id": BOOT, "reply": reply}})]
    for body in files:
        n += 1
        lines += [_json({"n": n, "size": len(body)}), body]
    return [*lines, _json({"n": n + 2})]  # the host forgets the order, and then leaves


def spoilt(lines: list[bytes], chance: random.Random) -> bytes:
    """Make nonsense of a conversation, in one of many ways."""
    ways = (_flip, _cut, _shuffle, _replace, _replace, _replace, _rekey, _insert, _error, _nest, _long)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        lines = chance.choice(ways)(list(lines), chance)
    return b"".join(lines)


def play(box: Sandbox, name: str, data: bytes, *, endless: bool = False) -> str:
    """Run an operation against a board that says `data`; "value", or the kind of error.

    Raises:
        AssertionError: what came of it is not fit for a terminal or a file, or lies where it must not.

    """
    box.replies.write_bytes(data)
    os.environ["EDGEKD_ENDLESS"] = "1" if endless else ""
    try:
        if name in PLAIN:
            found: object = PLAIN[name](box.board)
        else:
            with SshDevice(box.board, target("onnxruntime")) as device:
                found = OPERATIONS[name](box, device)
        shown, kind = encode(found), "value"
    except EdgekdError as error:
        shown, kind = str(error), type(error).__name__
    shown.encode()
    unsafe = {one for one in shown if unicodedata.category(one) in {"Cc", "Cf", "Cs"}} - {"\n", "\t"}
    assert not unsafe, unsafe
    assert not box.strays(), box.strays()
    for path in box.out.glob("*") if box.out.exists() else ():
        path.unlink()
    return kind


def _reply(name: str) -> tuple[Any, list[bytes]]:
    found = conditions(Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=0))
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, None)),), outputs=())
    count = PROTOCOL.launches * PROTOCOL.blocks * PROTOCOL.samples
    latency = Latency(
        samples_ms=(1.5,) * count,
        cpu_ms=(1.5,) * count,
        preempted=(False,) * count,
        block_sizes=(3, 3),
        launches=(Launch(open_ms=1.0, memory_mib=1.0),),
        protocol=PROTOCOL,
        conditions=found,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    ledger = Ledger(
        preprocess_ms=1.0, copy_in_ms=1.0, compute_ms=1.0, copy_out_ms=1.0, postprocess_ms=1.0, whole_ms=5.0,
        samples=50,
    )  # fmt: skip
    energy = Energy(
        source="VDD_IN (ina)", inferences=9, energy_mj=5.0, uncertainty_mj=0.5, busy_mw=900.0, idle_mw=400.0, busy_s=1.0
    )  # fmt: skip
    health = RuntimeHealth(name="onnxruntime", version="1.30.0", works=True, max_error=0.0)
    array = io.BytesIO()
    np.save(array, OUTPUT)
    body = array.getvalue()
    replies: dict[str, tuple[Any, list[bytes]]] = {
        "probe": (plain(ProbeReply(conditions=found, runtimes=(health,))), []),
        "inspect": (plain(signature), []),
        "build": (plain(OpenReply(signature=signature, open_ms=1.0, memory_mib=1.0)), []),
        "compile": (
            {"file": _made(b"<net/>", ".xml"), "weights": _made(b"1", ".bin"), "precision": "fp32"},
            [b"<net/>", b"1"],
        ),
        "time": ({"latencies": [plain(latency)]}, []),
        "ledger": (plain(ledger), []),
        "energy": ({"energy": plain(energy)}, []),
        "layers": ({"layers": [plain(Layer(name="conv", kind="Conv", time_ms=0.5))]}, []),
        "infer": ({"outputs": {"logits": _made(body, ".npy")}}, [body]),
    }
    return replies[name]


def _made(body: bytes, suffix: str) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body), "suffix": suffix}


def _json(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _flip(lines: list[bytes], chance: random.Random) -> list[bytes]:
    data = bytearray(b"".join(lines))
    for _ in range(chance.choice((1, 1, 10, 100)) if data else 0):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return [bytes(data)]


def _cut(lines: list[bytes], chance: random.Random) -> list[bytes]:
    data = b"".join(lines)
    return [data[: chance.randrange(len(data) + 1)]]


def _shuffle(lines: list[bytes], chance: random.Random) -> list[bytes]:
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    way = chance.randrange(3)
    if way == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif way == 1:
        lines.insert(at, lines[other])
    elif len(lines) > 1:  # the other ways need one
        del lines[at]
    return lines


def _changed(lines: list[bytes], chance: random.Random, change: Callable[[Any], Any]) -> list[bytes]:
    """Change the object of one line, if it is one."""
    at = chance.randrange(len(lines))
    head, brace, rest = lines[at].partition(b"{")
    with contextlib.suppress(ValueError, RecursionError):
        lines[at] = head + _json(change(json.loads(brace + rest)))
    return lines


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Return every container of a tree with each of its keys."""
    if not isinstance(data, (dict, list)):
        return []
    pairs = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    return [(data, key) for key, _ in pairs] + [place for _, value in pairs for place in _places(value)]


def _replace(lines: list[bytes], chance: random.Random) -> list[bytes]:
    def change(data: Any) -> Any:
        if places := _places(data):
            container, key = chance.choice(places)
            container[key] = chance.choice(_HOSTILE)
        return data

    return _changed(lines, chance, change)


def _rekey(lines: list[bytes], chance: random.Random) -> list[bytes]:
    def change(data: Any) -> Any:
        places = [(container, key) for container, key in _places(data) if isinstance(container, dict)]
        if places:
            container, key = chance.choice(places)
            value = container.pop(key)
            container[chance.choice(("", "id", "\x1b[31m", "../x", str(key), "extra"))] = value
        return data

    return _changed(lines, chance, change)


def _insert(lines: list[bytes], chance: random.Random) -> list[bytes]:
    noise = (
        chance.randbytes(chance.randrange(300)),
        chance.randbytes(80) + b"\n",
        b"\n" * 500,
        b"{}\n",
        b"null\n",
        b"[" * 10_000 + b"\n",
        b'{"n": NaN}\n',
        b'{"n": 1e999}\n',
        b'{"beat": 1}\n' * chance.choice((1, 1, 20_000)),
        b"\xff\xfe{}\n",
        b'{"n": ' + b"9" * 5000 + b"}\n",
    )
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(noise))
    return lines


def _error(lines: list[bytes], chance: random.Random) -> list[bytes]:
    kind = chance.choice(
        ("DeviceError", "SystemExit", "annotations", "__name__", 1, None, "EdgekdError", "BuildError")
    )
    told = {"kind": kind, **{part: chance.choice(_HOSTILE) for part in ("what", "cause", "mend")}}

    def change(data: Any) -> Any:
        inner = data.get("done", data) if isinstance(data, dict) else {}
        if isinstance(inner, dict):
            inner["error"] = chance.choice((told, told, told, *_HOSTILE))
        return data

    return _changed(lines, chance, change)


def _nest(lines: list[bytes], chance: random.Random) -> list[bytes]:
    depth = chance.choice((50, 900, 5000))
    lines[chance.randrange(len(lines))] = b'{"n":' * depth + b"1" + b"}" * depth + b"\n"
    return lines


def _long(lines: list[bytes], chance: random.Random) -> list[bytes]:
    if chance.random() < 0.1:
        lines.insert(chance.randrange(len(lines) + 1), b"x" * (5 << 20))
    return lines
