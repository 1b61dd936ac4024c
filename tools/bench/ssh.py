"""What do a board's ssh, its cuts and its lies cost? Against a real sshd on loopback that this starts itself.

    python tools/bench/ssh.py [--parts first,orders,again,cuts,stalls,boots,free,keys,fuzz] [--cuts 100] [--keys 100]
                              [--fuzz 10000] [--seed 0]

Prints JSON.

    first    a board that was never reached: from `connect` to a latency that is worth its name, and what of that is
             not measuring (the same order on this machine, without ssh)
    orders   an order on a board that is connected, against the same order on this machine
    again    bytes copied for a model that lies there already, in the same session and in the next
    cuts     a session cut at a random moment of a measurement, by killing ssh here or its session there
    stalls   30 s in which nothing gets through, by stopping the session there
    boots    another boot id in the middle of a measurement
    free     seconds until another may measure, after the holder was killed without a word
    keys     another host key: how many are refused, and what the server saw of us
    fuzz     nonsense from a fake board: crashes, files written elsewhere
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from edgekd.devices import ssh  # noqa: E402
from edgekd.devices.board.place import Place  # noqa: E402
from edgekd.devices.local import LocalDevice  # noqa: E402
from edgekd.devices.ssh import SshDevice  # noqa: E402
from edgekd.errors import DeviceError, EdgekdError  # noqa: E402
from edgekd.values.board import Board  # noqa: E402
from edgekd.values.latency import Protocol  # noqa: E402
from edgekd.values.model import Engine  # noqa: E402
from tests.contracts import models  # noqa: E402
from tests.contracts.device import target  # noqa: E402
from tests.devices import fake_board  # noqa: E402
from tests.devices.sshd import Sshd  # noqa: E402

CUT = Protocol(launches=1, blocks=4, samples=200, warmup_ms=0.1)
LONG = replace(CUT, launches=60)
STALL_S = 30.0
HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from edgekd.devices.ssh import SshDevice
from edgekd.values.board import Board
from edgekd.values.codec import decode
from tests.contracts.device import target
import json
with SshDevice(decode(Board, json.loads({board!r})), target("rehearsal")):
    print("taken", flush=True)
    time.sleep(600)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="first,orders,again,cuts,stalls,boots,free,keys,fuzz")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--stalls", type=int, default=2)
    parser.add_argument("--boots", type=int, default=5)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, Sshd(Path(scratch)) as server:
        folder = Path(scratch)
        engine = models.engine(models.conv_net(folder / "net.onnx", width=64, side=64), "onnxruntime")
        fake = models.engine(models.conv_net(folder / "small.onnx"), "rehearsal")
        chance = random.Random(arguments.seed)  # noqa: S311 - moments, not a secret
        parts: dict[str, Callable[[], Any]] = {
            "first": lambda: first(server, engine),
            "orders": lambda: orders(server, engine),
            "again": lambda: again(server, engine),
            "cuts": lambda: cuts(server, fake, arguments.cuts, chance),
            "stalls": lambda: stalls(server, fake, arguments.stalls),
            "boots": lambda: boots(server, fake, arguments.boots),
            "free": lambda: free(server),
            "keys": lambda: keys(server, folder, arguments.keys),
            "fuzz": lambda: fuzz(folder, arguments.fuzz, arguments.seed),
        }
        for name in arguments.parts.split(","):
            start = time.monotonic()
            found[name] = parts[name]()
            found[name]["took_s"] = round(time.monotonic() - start, 1)
    print(json.dumps(found, indent=2))


def first(server: Sshd, engine: Engine) -> dict[str, Any]:
    board, protocol = server.board("first"), Protocol()
    start = time.monotonic()
    with SshDevice(board, target("onnxruntime")) as device:
        connected_s = time.monotonic() - start
        device.inspect(engine.model.file)
        (there,) = device.time([engine], protocol)
    whole_s = time.monotonic() - start
    start = time.monotonic()
    with LocalDevice(target("onnxruntime")) as device:
        device.inspect(engine.model.file)
        device.time([engine], protocol)
    local_s = time.monotonic() - start
    return {
        "whole_s": round(whole_s, 2),
        "connected_s": round(connected_s, 2),
        "same_on_this_machine_s": round(local_s, 2),
        "overhead_s": round(whole_s - local_s, 2),
        "trust": there.trust.verdict.value,
        "sent_bytes": device_bytes(board, engine),
    }


def device_bytes(board: Board, engine: Engine) -> int:
    """Count what a session sends after the first: nothing."""
    with SshDevice(board, target("onnxruntime")) as device:
        device.inspect(engine.model.file)
        return device.sent_bytes


def orders(server: Sshd, engine: Engine) -> dict[str, Any]:
    far: list[float] = []
    near: list[float] = []
    with (
        SshDevice(server.board("orders"), target("onnxruntime")) as device,
        LocalDevice(target("onnxruntime")) as local,
    ):
        device.build(engine)
        for _ in range(15):  # by turns, so that what the machine does to one it does to the other
            for one, into in ((device, far), (local, near)):
                start = time.monotonic()
                one.build(engine)
                into.append(time.monotonic() - start)
    extra = [there - here for there, here in zip(far, near)]
    return {
        "order_s": round(statistics.median(far), 3),
        "same_on_this_machine_s": round(statistics.median(near), 3),
        "overhead_s": round(statistics.median(extra), 3),
        "overhead_worst_s": round(max(extra), 3),
    }


def again(server: Sshd, engine: Engine) -> dict[str, Any]:
    board = server.board("again")
    with SshDevice(board, target("onnxruntime")) as device:
        worker_bytes = device.sent_bytes
        device.build(engine)
        once = device.sent_bytes - worker_bytes
        device.build(engine)
        device.time([engine, engine], CUT)
        same_session = device.sent_bytes - worker_bytes - once
    with SshDevice(board, target("onnxruntime")) as device:
        device.build(engine)
        next_session = device.sent_bytes
    return {
        "model_bytes": engine.model.size_bytes,
        "worker_bytes": worker_bytes,
        "sent_once_bytes": once,
        "sent_again_same_session_bytes": same_session,
        "sent_again_next_session_bytes": next_session,
    }


def cuts(server: Sshd, engine: Engine, count: int, chance: random.Random) -> dict[str, Any]:
    """Cut at random moments from before the order is sent to after its reply is there."""
    board = server.board("cuts")
    place, ends, took = Place(board.folder), Counter[str](), []
    half = cut_in_time = 0
    with SshDevice(board, target("rehearsal")) as device:
        start = time.monotonic()
        device.time([engine], CUT)
        usual_s = time.monotonic() - start
        for at in range(count):
            blow = threading.Timer(chance.uniform(0, 1.2 * usual_s), kill_one, (server, chance, at % 2 == 0))
            blow.start()
            start = time.monotonic()
            try:
                (latency,) = device.time([engine], CUT)
                ends["whole"] += 1
                half += len(latency.samples_ms) != CUT.blocks * CUT.samples
            except EdgekdError as error:
                ends[type(error).__name__] += 1
            took.append(time.monotonic() - start)
            cut_in_time += not blow.is_alive()
            blow.join()
    log = [line.split()[0] for line in place.path("starts.log").read_text().splitlines()]
    return {
        "cuts": count,
        "cut_while_the_order_was_on_its_way": cut_in_time,
        "ends": dict(ends),
        "half_records": half,
        "double_measurements": len(log) - len(set(log)),
        "orders_begun": len(log),
        "usual_s": round(usual_s, 2),
        "median_s": round(statistics.median(took), 2),
        "longest_s": round(max(took), 2),
        "orders_left_on_the_board": len(list(place.path("orders").iterdir())),
    }


def kill_one(server: Sshd, chance: random.Random, here: bool) -> None:  # noqa: FBT001 - which end
    pids = clients(server) if here else server.sessions()
    if pids:
        os.kill(chance.choice(pids), signal.SIGKILL)


def clients(server: Sshd) -> list[int]:
    """Return the processes of ssh on this side, shared connections included."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            ours = command.startswith(b"ssh") and str(server.config).encode() in command
            if ours or (
                command.startswith(b"ssh: ") and b"edgekd-" in command
            ):  # a shared one renames itself
                found.append(int(process.name))
    return found


def stalls(server: Sshd, engine: Engine, count: int) -> dict[str, Any]:
    board = server.board("stalls")
    place, samples, took = Place(board.folder), LONG.launches * LONG.blocks * LONG.samples, []
    half = failed = 0
    with SshDevice(board, target("rehearsal")) as device:
        for _ in range(count):
            stopped = threading.Timer(1.0, stall, (server,))
            stopped.start()
            start = time.monotonic()
            failed += 1
            with contextlib.suppress(EdgekdError):
                half += len(device.time([engine], LONG)[0].samples_ms) != samples
                failed -= 1
            took.append(round(time.monotonic() - start, 1))
            stopped.join()
    log = [line.split()[0] for line in place.path("starts.log").read_text().splitlines()]
    return {
        "stalls": count,
        "stall_s": STALL_S,
        "failed": failed,
        "half_records": half,
        "double_measurements": len(log) - len(set(log)),
        "orders_begun": len(log),
        "took_s_each": took,
    }


def stall(server: Sshd) -> None:
    """Let nothing through for a while: not the sessions that are there, nor new ones."""
    pids = [server.pid, *server.sessions()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(STALL_S)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def boots(server: Sshd, engine: Engine, count: int) -> dict[str, Any]:
    board = server.board("boots")
    place, ends, whole = Place(board.folder), Counter[str](), 0
    with SshDevice(board, target("rehearsal")) as device:
        for at in range(count):
            blow = threading.Timer(0.8, restart, (server, place, at))
            blow.start()
            try:
                device.time([engine], LONG)
                ends["merged"] += 1
            except DeviceError as error:
                ends["lost" if "restarted" in error.what else type(error).__name__] += 1
            blow.join()
            whole += len(device.time([engine], CUT)[0].samples_ms) == CUT.blocks * CUT.samples
    log = [line.split()[0] for line in place.path("starts.log").read_text().splitlines()]
    return {
        "restarts": count,
        "ends": dict(ends),
        "next_orders_whole": whole,
        "double_measurements": len(log) - len(set(log)),
    }


def restart(server: Sshd, place: Place, at: int) -> None:
    place.path("boot-id").write_text(f"boot-{at}\n")
    for pid in server.sessions():
        os.kill(pid, signal.SIGKILL)


def free(server: Sshd) -> dict[str, Any]:
    """Kill a holder, and with it every ssh it has, so that nobody can say goodbye; then wait for the board."""
    from edgekd.values.codec import encode

    board = server.board("free")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(root=str(ROOT), board=encode(board))], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"taken\n"
    time.sleep(6)  # a beat or so
    start = time.monotonic()
    holder.kill()
    for pid in [*clients(server), *server.sessions()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with SshDevice(board, target("rehearsal"), wait_s=90):
        waited_s = time.monotonic() - start
    holder.wait()
    holder.stdout.close()
    return {"free_after_s": round(waited_s, 1)}


def keys(server: Sshd, folder: Path, count: int) -> dict[str, Any]:
    """Show another key each time, at the address whose key is known."""
    kinds = Counter[str]()
    with Sshd(folder / "impostor") as impostor:
        address = impostor.known_line().split()[0]
        known = folder / "impostor_known_hosts"
        known.write_text(f"{address} {server.known_line().split(maxsplit=1)[1]}")
        board = replace(impostor.board(), known_hosts=known)
        for _ in range(count):
            impostor.new_host_key()
            impostor.restart()
            kinds[ending(board)] += 1
        log = impostor.log.read_text()
    said = sum("Accepted" in line or "Starting session" in line for line in log.splitlines())
    return {"tried": count, "exit_codes": dict(kinds), "let_in": said}


def ending(board: Board) -> str:
    """Return the exit code that asking a board ends with."""
    try:
        ssh.survey(board)
    except EdgekdError as error:
        return str(error.exit_code)
    return "0"


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Play nonsense; what is no EdgekdError, or leaves a file elsewhere, counts."""
    ends, crashes, strays = Counter[str](), [], 0
    slowest_s = 0.0
    with fake_board.sandbox(folder / "fuzz") as box:
        for at in range(count):
            chance = random.Random(seed * 1_000_003 + at)  # noqa: S311 - nonsense, not a secret
            name = chance.choice(fake_board.NAMES)
            data = fake_board.spoilt(fake_board.good(name), chance)
            start = time.monotonic()
            try:
                ends[fake_board.play(box, name, data)] += 1
            except AssertionError as error:
                strays += 1
                crashes.append(f"{at}: {str(error)[:200]}")
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                crashes.append(f"{at}: {type(error).__name__}: {str(error)[:200]}")
            slowest_s = max(slowest_s, time.monotonic() - start)
        endless = endless_replies(box)
    return {
        "played": count,
        "crashes": len(crashes),
        "unfit_or_elsewhere": strays,
        "first_crashes": crashes[:5],
        "ends": dict(ends),
        "slowest_s": round(slowest_s, 2),
        "ten_gigabytes": endless,
    }


def endless_replies(box: fake_board.Sandbox) -> dict[str, Any]:
    """Say 10 GB instead of a line, wherever one is due."""
    ends, slowest_s = Counter[str](), 0.0
    for name in fake_board.NAMES:
        lines: Sequence[bytes] = fake_board.good(name)
        for kept in range(len(lines) - (name in fake_board.OPERATIONS)):
            start = time.monotonic()
            ends[fake_board.play(box, name, b"".join(lines[:kept]), endless=True)] += 1
            slowest_s = max(slowest_s, time.monotonic() - start)
    return {"ends": dict(ends), "slowest_s": round(slowest_s, 2)}


if __name__ == "__main__":
    main()
