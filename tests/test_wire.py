from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd import wire
from edgekd.errors import ConfigError, DataError, EdgekdError, ResourcesExhausted, WorkerDied
from edgekd.values.order import Done, WarmUpOrder
from edgekd.wire import Child

Program = Callable[[str], str]  # the body of an order's function to a module's name

ORDER = WarmUpOrder(least_ms=1.5, seed=3)
PROGRAM = """
import os, signal, sys, time
from edgekd.errors import ConfigError, DataError
from edgekd.values.order import Done, WarmUpOrder
from edgekd.wire import Handler, limit_memory, serve

limit_memory(int(sys.argv[2]))

def carry_out(order):
    {body}
    return Done()

serve({{"work": Handler(order=WarmUpOrder, carry_out=carry_out)}})
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a child program whose one order runs the lines given."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(body: str) -> str:
        (tmp_path / "a_child_program.py").write_text(PROGRAM.format(body=body))
        return "a_child_program"

    return make


def outcome(
    module: str, *, timeout_s: float = 20.0, memory_mib: int = 1024, order: str = "work"
) -> EdgekdError:
    with Child(module, memory_mib=memory_mib) as child, pytest.raises(EdgekdError) as caught:
        child.ask(order, ORDER, Done, timeout_s=timeout_s)
    return caught.value


def test_an_order_arrives_whole_and_is_answered(program: Program):
    module = program("assert order == WarmUpOrder(least_ms=1.5, seed=3), order")
    with Child(module) as child:
        assert [child.ask("work", ORDER, Done, timeout_s=20) for _ in range(3)] == [Done()] * 3


@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_an_error_of_ours_arrives_as_itself(program: Program, kind: type[EdgekdError]):
    error = outcome(program(f"raise {kind.__name__}('what', cause='why', mend='how')"))
    assert type(error) is kind
    assert (error.what, error.cause, error.mend) == ("what", "why", "how")


def test_any_other_error_is_a_worker_that_failed_and_says_how(program: Program):
    error = outcome(program("raise RuntimeError('vendor says no')"))
    assert isinstance(error, WorkerDied)
    assert "vendor says no" in error.cause


def test_after_an_error_the_child_serves_on(program: Program):
    module = program("if order.seed == 3: raise DataError('what')")
    with Child(module) as child:
        with pytest.raises(DataError):
            child.ask("work", ORDER, Done, timeout_s=20)
        assert child.ask("work", WarmUpOrder(least_ms=1.0, seed=4), Done, timeout_s=20) == Done()


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT"])
def test_a_crash_is_an_error_that_names_the_signal(program: Program, name: str):
    error = outcome(program(f"os.kill(os.getpid(), signal.{name})"))
    assert isinstance(error, WorkerDied)
    assert name in error.what


def test_a_crash_quotes_the_last_words(program: Program):
    error = outcome(
        program("sys.stderr.write('assertion failed in parser'); sys.stderr.flush(); os._exit(9)")
    )
    assert "exit 9" in error.what
    assert "assertion failed in parser" in error.cause


def test_a_kill_by_the_system_is_a_lack_of_memory(program: Program):
    assert isinstance(outcome(program("os.kill(os.getpid(), signal.SIGKILL)")), ResourcesExhausted)


def test_a_hang_is_ended(program: Program):
    module = program("while True: pass")
    with Child(module) as child:
        with pytest.raises(WorkerDied, match="in time"):
            child.ask("work", ORDER, Done, timeout_s=0.4)
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


def test_a_child_that_shuts_the_wire_is_ended(program: Program, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgekd.wire._DEATH_S", 0.1)
    error = outcome(program("os.closerange(0, 64); time.sleep(60)"))
    assert isinstance(error, WorkerDied)


def test_too_much_memory_is_an_error_and_the_child_serves_on(program: Program):
    module = program("block = bytearray(600 << 20) if order.seed == 3 else None")
    with Child(module, memory_mib=256) as child:
        with pytest.raises(ResourcesExhausted):
            child.ask("work", ORDER, Done, timeout_s=20)
        assert child.ask("work", WarmUpOrder(least_ms=1.0, seed=4), Done, timeout_s=20) == Done()


def test_what_a_runtime_prints_does_not_reach_the_wire(program: Program):
    module = program("print('{}'); os.write(1, b'native noise\\n')")
    with Child(module) as child:
        assert child.ask("work", ORDER, Done, timeout_s=20) == Done()


@pytest.mark.parametrize(
    "noise", ["not json", "[]", '{"id": 7, "reply": {}}', '{"id": 1}', '{"id": 1, "error": {}}']
)
def test_nonsense_on_the_wire_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: str):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a_liar.py").write_text(f"input(); print({noise!r})")
    error = outcome("a_liar")
    assert isinstance(error, WorkerDied)
    assert "nonsense" in error.what


def test_a_flood_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgekd.wire._REPLY_LIMIT_BYTES", 1 << 20)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a_flood.py").write_text("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    assert "flooded" in outcome("a_flood").what


def test_an_order_nobody_serves_is_an_error(program: Program):
    assert "edgekd" not in outcome(program("pass"), order="dance").what.split()[0]


def test_a_users_own_module_in_the_current_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "numpy.py").write_text("import os; os._exit(99)")
    monkeypatch.chdir(tmp_path)
    from edgekd.values.order import ProbeOrder, ProbeReply

    with Child("edgekd.worker") as child:
        assert child.ask("probe", ProbeOrder(runtimes=()), ProbeReply, timeout_s=60).runtimes == ()


def test_closing_twice_is_harmless_and_leaves_no_process(program: Program):
    child = Child(program("pass"))
    child.close()
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_closing_ends_what_the_child_started(program: Program, tmp_path: Path):
    note = tmp_path / "grandchild"
    body = (
        "import subprocess; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f" open({str(note)!r}, 'w').write(str(p.pid))"
    )
    with Child(program(body)) as child:
        child.ask("work", ORDER, Done, timeout_s=20)
    assert any(_is_gone(note.read_text()) for _ in range(500))  # a busy kernel may take a moment over it


def _is_gone(process: str) -> bool:
    """Say whether a process is dead, or waits for init to notice; where it lives, give it a moment."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return True
    time.sleep(0.0 if state == "Z" else 0.01)
    return state == "Z"


def test_a_child_reports_nothing_to_a_runtimes_maker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert wire._environment(None)["ORT_DISABLE_TELEMETRY"] == "1"
