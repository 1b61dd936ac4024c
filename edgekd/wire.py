"""One wire between two processes: JSON orders down, JSON replies up, a line each.

The parent is never harmed by what the child parses or compiles: a crash, a hang, a flood or nonsense on the
wire becomes an error that says so. The child needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgekd import errors
from edgekd.errors import ConfigError, EdgekdError, ResourcesExhausted, WorkerDied
from edgekd.values.codec import decode, encode, plain

R = TypeVar("R")

_REPLY_LIMIT_BYTES = 256 << 20
_STDERR_TAIL_BYTES = 2000
_DEATH_S = 5.0  # a child that closed its end of the wire has this long to be gone
_ROOT = str(Path(__file__).resolve().parents[1])
# `python -m` would look for modules in the current folder first, where a user's own numpy.py may lie.
_START = """
import runpy, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
sys.path = [entry for entry in sys.path if entry]
if root not in sys.path:
    sys.path.insert(0, root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, kw_only=True)
class Handler:
    """The order a handler takes, and the function that carries it out."""

    order: type
    carry_out: Callable[[Any], object]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Carry out orders from standard input until it ends; the child's whole life."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not reach the wire
    for line in sys.stdin:
        message = json.loads(line)
        answer = _answer(handlers, message["order"], message["body"])
        replies.write(json.dumps({"id": message["id"], **answer}, allow_nan=False) + "\n")
        replies.flush()


def limit_memory(memory_mib: int) -> None:
    """Keep this process's private memory below a limit; also no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = memory_mib << 20
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _answer(handlers: Mapping[str, Handler], name: str, body: Any) -> dict[str, Any]:
    try:
        handler = handlers[name]
        return {"reply": plain(handler.carry_out(decode(handler.order, body, name)))}
    except EdgekdError as error:
        known = {"kind": type(error).__name__, "what": error.what, "cause": error.cause, "mend": error.mend}
        return {"error": known}
    except MemoryError:
        mend = "allow more memory in the hardware profile, or use a smaller model"
        return {
            "error": {
                "kind": "ResourcesExhausted",
                "what": f"{name} ran out of memory",
                "cause": "",
                "mend": mend,
            }
        }
    except Exception as error:  # noqa: BLE001 - whatever a vendor's runtime raises is an answer, not a crash
        cause = f"{type(error).__name__}: {error}"[:2000]
        return {
            "error": {
                "kind": "WorkerDied",
                "what": f"{name} failed in the worker",
                "cause": cause,
                "mend": "",
            }
        }


class Child:
    """A child process that carries out orders; a context manager that ends it."""

    def __init__(
        self, module: str, *, memory_mib: int = 8192, threads: int | None = None, runtime: str = ""
    ) -> None:
        """Start it; a `runtime` named here is imported at once, while others start too."""
        self._name = module
        self._asked = 0
        self._closed = False
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        flags = ["--memory-mib", str(memory_mib), *(["--runtime", runtime] if runtime else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, _ROOT, module, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
            start_new_session=True,  # so that Ctrl-C reaches the parent alone, and the group can be ended
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, name: str, order: object, reply: type[R], *, timeout_s: float) -> R:
        """Send one order and wait for its reply.

        Raises:
            EdgekdError: whatever the child's handler raised.
            WorkerDied: the child crashed, took longer than `timeout_s` or answered nonsense.

        """
        self._asked += 1
        message = json.dumps({"id": self._asked, "order": name, "body": json.loads(encode(order))}) + "\n"
        pipe = self._process.stdin
        assert pipe is not None  # noqa: S101 - opened above
        try:
            pipe.write(message.encode())
            pipe.flush()
        except BrokenPipeError:
            raise self._death(name) from None
        return self._reply(name, reply, time.monotonic() + timeout_s)

    def close(self) -> None:
        """End the child and everything it started."""
        if self._closed:  # the process id may be another's by now
            return
        self._closed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reply(self, name: str, reply: type[R], deadline: float) -> R:
        line = self._line(name, deadline)
        try:
            data = json.loads(line)
            if data["id"] != self._asked:
                raise ValueError(f"reply to order {data['id']}, not {self._asked}")
            if "error" not in data:
                return decode(reply, data["reply"], name)
            raised = _error_from(data["error"])
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise WorkerDied(f"{self._name} answered nonsense to {name!r}", cause=str(error)[:500]) from error
        raise raised

    def _line(self, name: str, deadline: float) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101 - opened above
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                mend = "give it more time in the hardware profile (build_timeout_s), or use a smaller model"
                raise WorkerDied(f"{self._name} did not answer {name!r} in time", cause="killed", mend=mend)
            chunk = os.read(pipe.fileno(), 1 << 16)
            self._buffer += chunk
            if not chunk:
                raise self._death(name)
            if len(self._buffer) > _REPLY_LIMIT_BYTES:
                self.close()
                raise WorkerDied(
                    f"{self._name} flooded the wire", cause=f"more than {_REPLY_LIMIT_BYTES >> 20} MiB"
                )
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self, name: str) -> EdgekdError:
        try:
            code = self._process.wait(timeout=_DEATH_S)
        except subprocess.TimeoutExpired:  # it shut the wire and lives on
            self.close()
            return WorkerDied(f"{self._name} stopped answering while it carried out {name!r}", cause="killed")
        tail = self._stderr_tail()
        self.close()
        if code == -signal.SIGKILL:
            return ResourcesExhausted(
                f"{self._name} was killed while it carried out {name!r}",
                cause="most likely by the kernel, for lack of memory",
                mend="free memory or use a smaller model, then give the same command again",
            )
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return WorkerDied(f"{self._name} crashed while it carried out {name!r} ({how})", cause=tail)

    def _stderr_tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        return self._stderr.read().decode(errors="replace").strip()[-500:]


def _environment(threads: int | None) -> dict[str, str]:
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    # ONNX Runtime 1.32 starts a thread to report to its maker, and writes a device id into the home folder.
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
    return environment


def _error_from(data: Mapping[str, str]) -> EdgekdError:
    kind = getattr(errors, data["kind"], WorkerDied)
    if not (isinstance(kind, type) and issubclass(kind, EdgekdError)):
        kind = WorkerDied
    return kind(data["what"], cause=data["cause"], mend=data["mend"])
