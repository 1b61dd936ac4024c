from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.devices.cassette import CassetteDevice, record, tape
from edgekd.devices.cassette.asked import Asked
from edgekd.devices.cassette.lines import line_of
from edgekd.devices.cassette.questions import building, inferring, inspecting
from edgekd.devices.cassette.records import (
    FILE_BYTES,
    PART_BYTES,
    SCHEMA_VERSION,
    Entry,
    Failure,
    Inferred,
    Kept,
    Part,
    Record,
    Session,
    kept,
    parts_of,
)
from edgekd.devices.local import LocalDevice
from edgekd.errors import (
    BackendMissing,
    BuildError,
    DeviceError,
    EdgekdError,
    IntegrityError,
    ModelError,
    ResourcesExhausted,
    UsageError,
    WorkerDied,
)
from edgekd.values.artifact import Artifact
from edgekd.values.codec import plain
from edgekd.values.latency import Protocol
from edgekd.values.model import Engine, Model, Precision, Signature, TensorSpec
from edgekd.values.order import OpenReply, RuntimeHealth
from tests.contracts import models
from tests.contracts.device import SHORT, target
from tests.pipeline.rehearsed import WorkerHere

SESSION = Session(schema_version=SCHEMA_VERSION, device="board", edgekd="0.1.0")
SIGNATURE = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, None)),), outputs=())
OPENED = OpenReply(signature=SIGNATURE, open_ms=1.5, memory_mib=0.25)
TARGET = target("rehearsal")


class Scripted(LocalDevice):
    """A device that answers what it is told to; it takes 0.1 s an order."""

    name = "board"

    def __init__(self, *answers: object) -> None:
        super().__init__(TARGET)
        self.answers = [*answers]

    def _next(self) -> Any:
        self._seconds += 0.1
        answer = self.answers.pop(0)
        if isinstance(answer, EdgekdError):
            raise answer
        return answer

    def probe(self) -> Any:
        return self._next()

    def inspect(self, model: Artifact) -> Any:
        return self._next()

    def build(self, engine: Engine) -> Any:
        return self._next()

    def compile(self, engine: Engine, folder: Path) -> Any:
        return self._next()

    def energy(self, engine: Engine, *, seconds: float = 10.0) -> Any:
        return self._next()

    def layers(self, engine: Engine, *, passes: int = 50) -> Any:
        return self._next()

    def infer(self, engine: Engine, inputs: dict[str, Artifact], folder: Path) -> Any:
        return self._next()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.cassette"


@pytest.fixture
def live(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a device that is recorded: the rehearsal, in this process."""
    monkeypatch.setattr("edgekd.devices.local.Child", WorkerHere)
    return record(LocalDevice(TARGET), file)


def noise(size: int) -> bytes:
    """Return bytes that do not deflate."""
    return np.random.default_rng(size).bytes(size)


def some(tmp_path: Path, name: str = "m.onnx", content: bytes = b"a model") -> Engine:
    """Name an engine of a file that nothing reads."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    return models.engine(tmp_path / name)


def forged(file: Path, *records: Record) -> CassetteDevice:
    """Write a cassette as one would who knows the format, and open it."""
    tape.begin(file, SESSION).append(records)
    return CassetteDevice(file, TARGET)


def entries(file: Path) -> list[Entry]:
    held = tape.read(file)
    return [held.entry(one) for one in held.entries]


class TestReplaying:
    def test_every_sample_comes_back_bit_for_bit(self, live: Any, file: Path, tmp_path: Path):
        engines = [
            models.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width)) for width in (2, 4)
        ]
        told = live.time(engines, SHORT)
        assert CassetteDevice(file, TARGET).time(engines, SHORT) == told

    def test_engines_in_another_order_get_their_own_latencies(self, live: Any, file: Path, tmp_path: Path):
        small, large = (
            models.engine(models.conv_net(tmp_path / f"{width}.onnx", width=width)) for width in (2, 32)
        )
        told = live.time([large, small, large], SHORT)
        found = CassetteDevice(file, TARGET).time([small, large, large], SHORT)
        assert found == (told[1], told[0], told[2])

    def test_device_seconds_are_those_of_the_recording(self, file: Path, tmp_path: Path):
        device = record(Scripted(OPENED, BuildError("no"), OPENED), file)
        engine, seen = some(tmp_path), []
        for _ in range(3):
            with_or_without_error(lambda: device.build(engine))
            seen.append(device.device_seconds)
        again, replayed = CassetteDevice(file, TARGET), []
        assert again.device_seconds == 0
        for _ in range(3):
            with_or_without_error(lambda: again.build(engine))
            replayed.append(again.device_seconds)
        assert replayed == seen == pytest.approx([0.1, 0.2, 0.3])

    def test_independent_orders_are_found_in_any_order(self, file: Path, tmp_path: Path):
        engines = [some(tmp_path, f"{at}.onnx", bytes([at])) for at in range(5)]
        told = [replace(OPENED, open_ms=float(at)) for at in range(5)]
        device = record(Scripted(*told), file)
        for engine in engines:
            device.build(engine)
        again = CassetteDevice(file, TARGET)
        for at in (3, 0, 4, 1, 2):
            assert again.build(engines[at]) == told[at]

    def test_a_repeated_question_gets_its_answers_in_their_order_and_then_an_error(
        self, file: Path, tmp_path: Path
    ):
        told = [replace(OPENED, open_ms=float(at)) for at in range(3)]
        device, engine = record(Scripted(*told), file), some(tmp_path)
        for _ in told:
            device.build(engine)
        again = CassetteDevice(file, TARGET)
        assert [again.build(engine) for _ in told] == told
        with pytest.raises(DeviceError, match="recorded 3 times, and is asked once more") as caught:
            again.build(engine)
        assert caught.value.exit_code == 4
        assert "record it again" in caught.value.mend

    def test_where_a_file_lies_and_what_it_is_called_does_not_matter(self, file: Path, tmp_path: Path):
        record(Scripted(OPENED), file).build(some(tmp_path / "here"))
        assert CassetteDevice(file, TARGET).build(some(tmp_path / "there", "other.onnx")) == OPENED

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda engine: replace(engine, threads=2), "engines[0].threads is 2 and not 1"),
            (lambda engine: replace(engine, precision=Precision.BF16), "precision is bf16 and not fp32"),
            (lambda engine: replace(engine, runtime="openvino"), "runtime is openvino and not rehearsal"),
            (lambda engine: replace(engine, shapes={"x": (2, 3)}), "shapes.x[0] is 2 and not absent"),
        ],
    )
    def test_another_question_is_an_error_that_names_the_nearest(
        self, file: Path, tmp_path: Path, change: Callable[[Engine], Engine], told: str
    ):
        engine = some(tmp_path)
        record(Scripted(OPENED), file).build(engine)
        with pytest.raises(DeviceError, match="has no answer to build") as caught:
            CassetteDevice(file, TARGET).build(change(engine))
        assert told in caught.value.cause

    def test_another_seed_or_protocol_is_another_question(self, live: Any, file: Path, tmp_path: Path):
        engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
        live.time([engine], SHORT)
        again = CassetteDevice(file, TARGET)
        for change, told in (({"seed": 3}, "protocol.seed is 3 and not 0"), ({"samples": 5}, "samples is 5")):
            with pytest.raises(DeviceError) as caught:
                again.time([engine], replace(SHORT, **change))
            assert told in caught.value.cause
        with pytest.raises(DeviceError):
            again.time([engine, engine], SHORT)
        assert again.time([engine], SHORT)

    def test_a_model_of_other_bytes_is_said_to_be_one(self, file: Path, tmp_path: Path):
        record(Scripted(OPENED), file).build(some(tmp_path))
        with pytest.raises(DeviceError) as caught:
            CassetteDevice(file, TARGET).build(some(tmp_path, content=b"trained to other weights"))
        assert "engines[0].file is" in caught.value.cause
        assert "never seen" in caught.value.mend

    def test_an_order_of_a_kind_that_was_never_recorded_says_what_there_is(self, file: Path, tmp_path: Path):
        record(Scripted(OPENED), file).build(some(tmp_path))
        with pytest.raises(DeviceError, match="inspect") as caught:
            CassetteDevice(file, TARGET).inspect(some(tmp_path).model.file)
        assert caught.value.cause == "it holds 1 x build"

    def test_a_file_that_changed_here_is_no_answer_of_the_device(self, file: Path, tmp_path: Path):
        device, engine = record(Scripted(OPENED), file), some(tmp_path)
        engine.model.file.path.write_bytes(b"changed")
        with pytest.raises(IntegrityError):
            device.build(engine)
        assert entries(file) == []

    def test_a_probe_tells_of_the_runtimes_that_are_asked_for(self, live: Any, file: Path):
        told = live.probe()
        with CassetteDevice(file, target()) as none:
            found = none.probe()
        assert (found.conditions, found.runtimes) == (told.conditions, ())
        with CassetteDevice(file, TARGET) as same:
            assert same.probe() == told
        with pytest.raises(DeviceError, match=r"probe \(tensorrt\)"):
            CassetteDevice(file, target("tensorrt")).probe()

    def test_it_is_called_what_the_recorded_device_was_called(self, file: Path):
        record(Scripted(), file)
        assert CassetteDevice(file, TARGET).name == "board"


def with_or_without_error(order: Callable[[], object]) -> None:
    with contextlib.suppress(EdgekdError):
        order()


class TestFiles:
    def test_compiled_files_come_back_with_their_bytes(self, file: Path, tmp_path: Path):
        engine, made = some(tmp_path), tmp_path / "made"
        made.mkdir()
        (made / "net.xml").write_text("<net/>")
        (made / "net.bin").write_bytes(bytes(range(256)) * 50)
        told = Model(file=Artifact.of(made / "net.xml"), weights=Artifact.of(made / "net.bin"))
        assert record(Scripted(told), file).compile(engine, made) == told
        found = CassetteDevice(file, TARGET).compile(engine, tmp_path / "again")
        assert found.weights is not None
        assert [one.verified().name for one in (found.file, found.weights)] == ["model.xml", "model.bin"]
        assert (tmp_path / "again" / "model.bin").read_bytes() == (made / "net.bin").read_bytes()

    @pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 7])
    def test_files_of_every_size_lie_there_in_parts(self, file: Path, tmp_path: Path, size: int):
        engine, out = some(tmp_path), tmp_path / "output_0.npy"
        out.write_bytes(noise(size))
        told = {"y": Artifact.of(out)}
        record(Scripted(told), file).infer(engine, {}, tmp_path)
        found = CassetteDevice(file, TARGET).infer(engine, {}, tmp_path / "again")
        assert found["y"].verified().read_bytes() == out.read_bytes()

    def test_the_same_file_lies_there_once(self, file: Path, tmp_path: Path):
        engine, out = some(tmp_path), tmp_path / "output_0.npy"
        out.write_bytes(noise(100_000))
        told = {"y": Artifact.of(out)}
        for _ in range(2):  # two sessions
            device = record(Scripted(told, told), file)
            device.infer(engine, {}, tmp_path)
            device.infer(engine, {}, tmp_path)
        assert file.stat().st_size < 150_000
        again = CassetteDevice(file, TARGET)
        assert all(again.infer(engine, {}, tmp_path / "again") for _ in range(4))

    def test_outputs_keep_their_order_and_their_names_whatever_these_hold(self, file: Path, tmp_path: Path):
        engine, told = some(tmp_path), {}
        for at, name in enumerate(("z", "../../evil", "a\nb")):
            np.save(tmp_path / f"{at}.npy", np.full((2, 1), at, dtype=np.float32))
            told[name] = Artifact.of(tmp_path / f"{at}.npy")
        record(Scripted(told), file).infer(engine, {}, tmp_path)
        found = CassetteDevice(file, TARGET).infer(engine, {}, tmp_path / "again")
        assert list(found) == list(told)
        assert [one.path.name for one in found.values()] == ["output_0.npy", "output_1.npy", "output_2.npy"]
        assert [float(np.load(one.verified())[0, 0]) for one in found.values()] == [0, 1, 2]

    def test_a_folder_that_holds_older_outputs_gets_the_new_ones(self, file: Path, tmp_path: Path):
        engine, out = some(tmp_path), tmp_path / "new.npy"
        out.write_bytes(b"new")
        record(Scripted({"y": Artifact.of(out)}), file).infer(engine, {}, tmp_path)
        (tmp_path / "output_0.npy").write_bytes(b"older and longer")
        found = CassetteDevice(file, TARGET).infer(engine, {}, tmp_path)
        assert found["y"].verified().read_bytes() == b"new"


class TestErrors:
    @pytest.mark.parametrize("kind", [BuildError, ModelError, BackendMissing, WorkerDied, ResourcesExhausted])
    def test_an_error_is_raised_again_as_the_same_error(
        self, file: Path, tmp_path: Path, kind: type[EdgekdError]
    ):
        error = kind("rehearsal/fp32 cannot run m.onnx", cause="line 1\nline 2", mend="give another")
        device, engine = record(Scripted(error), file), some(tmp_path)
        raised = []
        for reach in (lambda: device, lambda: CassetteDevice(file, TARGET)):
            with pytest.raises(EdgekdError) as caught:
                reach().build(engine)
            raised.append((type(caught.value), str(caught.value)))
        assert raised[0] == raised[1] == (kind, str(error))

    def test_an_error_that_a_device_derived_is_raised_as_what_it_derives_from(
        self, file: Path, tmp_path: Path
    ):
        class BusyError(DeviceError):
            pass

        engine = some(tmp_path)
        with pytest.raises(BusyError):
            record(Scripted(BusyError("held")), file).build(engine)
        with pytest.raises(DeviceError, match="held") as caught:
            CassetteDevice(file, TARGET).build(engine)
        assert type(caught.value) is DeviceError

    def test_an_error_speaks_of_the_files_that_are_given_now(self, file: Path, tmp_path: Path):
        first, second = some(tmp_path / "a", "base.onnx"), some(tmp_path / "b", "new.onnx", b"other")
        cause = f"{second.model.file.path} in {tmp_path / 'b'} is worse than base.onnx"
        device = record(Scripted(BuildError("it cannot", cause=cause)), file)
        with pytest.raises(BuildError):
            device.infer(first, {"x": second.model.file}, tmp_path / "out")
        moved = some(tmp_path / "c", "moved.onnx"), some(tmp_path / "d", "away.onnx", b"other")
        with pytest.raises(BuildError) as caught:
            CassetteDevice(file, TARGET).infer(moved[0], {"x": moved[1].model.file}, tmp_path / "out")
        path = moved[1].model.file.path
        assert caught.value.cause == f"{path} in {path.parent} is worse than moved.onnx"

    def test_no_path_of_this_machine_is_written(self, file: Path, tmp_path: Path):
        engine = some(tmp_path / "secret-project", "acme.onnx")
        words = [
            str(engine.model.file.path), str(Path.home() / ".cache"), "/home/jane/x.so", f"{sys.prefix}/lib/y.so",
            str(Path.cwd() / "z"), str(tmp_path / "out" / "output_0.npy"),
        ]  # fmt: skip
        health = RuntimeHealth(
            name="rehearsal", version="", works=False, problem=" ".join(words[1:5]), mend=""
        )
        probe = replace(probed(), runtimes=(health,))
        answers = [BuildError(word, cause=word, mend=word) for word in words]
        device = record(Scripted(*answers, probe), file)
        for _ in words:
            with pytest.raises(BuildError):
                device.infer(engine, {}, tmp_path / "out")
        device.probe()
        text = file.read_text(encoding="utf-8")
        for word in (str(tmp_path), "secret-project", "acme", str(Path.home()), "jane", sys.prefix):
            assert word not in text

    def test_what_would_play_with_a_terminal_is_left_out(self, file: Path, tmp_path: Path):
        failure = Failure(kind="BuildError", what="a\x1b[2Jb\nc", cause="\x07", mend="\x9bd")
        engine = some(tmp_path)
        device = forged(file, Entry(asked=building(engine).asked, device_ns=0, failure=failure))
        with pytest.raises(BuildError) as caught:
            device.build(engine)
        assert (caught.value.what, caught.value.cause, caught.value.mend) == ("a[2Jb\nc", "", "d")

    @pytest.mark.parametrize("kind", ["SystemExit", "annotations", "__name__", "Nonsense", "EdgekdError.mro"])
    def test_an_error_of_a_kind_that_is_none_is_a_worker_that_answered_nonsense(
        self, file: Path, tmp_path: Path, kind: str
    ):
        failure, engine = Failure(kind=kind, what="x", cause="", mend=""), some(tmp_path)
        device = forged(file, Entry(asked=building(engine).asked, device_ns=0, failure=failure))
        with pytest.raises(WorkerDied):
            device.build(engine)

    def test_a_failure_that_ended_its_session_is_passed_over_where_the_command_was_given_again(
        self, file: Path, tmp_path: Path
    ):
        engine = some(tmp_path)
        device = record(Scripted(OPENED, DeviceError("the connection is gone")), file)
        device.build(engine)
        with pytest.raises(DeviceError):
            device.build(engine)
        assert_builds(file, engine, 1)
        again = record(Scripted(OPENED, OPENED), file)
        again.build(engine)
        again.build(engine)
        assert_builds(file, engine, 3)


def assert_builds(file: Path, engine: Engine, times: int) -> None:
    device = CassetteDevice(file, TARGET)
    for _ in range(times):
        assert device.build(engine) == OPENED
    with pytest.raises(DeviceError):
        device.build(engine)


def probed() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekd.devices.local.Child", WorkerHere)
        return LocalDevice(target()).probe()


KILLED = """
import os, signal, sys
from pathlib import Path
from edgekd.devices.cassette import record
from edgekd.values.artifact import Artifact
from edgekd.values.model import Signature

class Board:
    name, device_seconds = "board", 0.0
    def inspect(self, model):
        return Signature(inputs=(), outputs=())

folder = Path(sys.argv[1])
record(Board(), folder / "session.cassette").inspect(Artifact.of(folder / "m.onnx"))
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestRecording:
    def test_what_was_answered_survives_a_kill(self, file: Path, tmp_path: Path):
        engine = some(tmp_path)
        ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2])
        assert ended.returncode == -signal.SIGKILL
        found = CassetteDevice(file, TARGET).inspect(engine.model.file)
        assert found == Signature(inputs=(), outputs=())

    def test_a_record_is_on_disk_before_the_caller_has_it(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        device, synced, real = record(Scripted(OPENED), file), [], os.fsync

        def watched(handle: int) -> None:
            real(handle)
            synced.append(len(entries(file)))

        monkeypatch.setattr(os, "fsync", watched)
        device.build(some(tmp_path))
        assert synced == [1]

    def test_a_torn_end_is_left_out_and_recording_goes_on_behind_what_is_whole(
        self, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        engine = some(tmp_path)
        record(Scripted(OPENED), file).build(engine)
        whole = file.read_bytes()
        file.write_bytes(whole + whole[: len(whole) // 2].splitlines()[0])
        assert_builds(file, engine, 1)
        assert "cut short" in caplog.text
        record(Scripted(OPENED), file).build(engine)
        assert file.read_bytes().startswith(whole)
        assert_builds(file, engine, 2)

    def test_a_cassette_cut_anywhere_gives_what_was_whole_before(self, file: Path, tmp_path: Path):
        engine = some(tmp_path)
        device = record(Scripted(OPENED, OPENED), file)
        device.build(engine)
        device.build(engine)
        whole = file.read_bytes()
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            lines = whole[:size].count(b"\n")
            if lines == 0:
                with pytest.raises(IntegrityError, match="nothing was recorded"):
                    CassetteDevice(file, TARGET)
            else:
                assert len(tape.read(file).entries) == lines - 1

    def test_parts_of_a_file_without_their_end_are_written_anew(self, file: Path, tmp_path: Path):
        engine, out = some(tmp_path), tmp_path / "y.npy"
        out.write_bytes(noise(PART_BYTES + 10))
        told = {"y": Artifact.of(out)}
        (first, _) = parts_of(told["y"])
        tape.begin(file, SESSION).append([first])
        record(Scripted(told), file).infer(engine, {}, tmp_path)
        found = CassetteDevice(file, TARGET).infer(engine, {}, tmp_path / "again")
        assert found["y"].verified()

    def test_a_full_disk_is_said_and_spoils_nothing(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        device, engine = record(Scripted(OPENED, OPENED, OPENED), file), some(tmp_path)
        device.build(engine)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(ResourcesExhausted, match=r"session\.cassette"):
                device.build(engine)
        device.build(engine)
        assert_builds(file, engine, 2)

    def test_two_devices_do_not_share_a_cassette(self, file: Path):
        record(Scripted(), file)
        with pytest.raises(UsageError, match="recorded on 'board', not on 'local'"):
            record(LocalDevice(TARGET), file)

    def test_nor_do_two_machines_of_the_same_name(self, file: Path):
        machine = probed()
        other = replace(machine.conditions.hardware, cores=machine.conditions.hardware.cores + 1)
        record(Scripted(machine), file).probe()
        changed = replace(machine, conditions=replace(machine.conditions, hardware=other))
        device = record(Scripted(changed), file)
        with pytest.raises(UsageError, match="another machine"):
            device.probe()
        record(Scripted(machine), file).probe()

    def test_two_writers_of_one_file_are_told_apart(self, file: Path, tmp_path: Path):
        first, second = record(Scripted(OPENED), file), record(Scripted(OPENED), file)
        with pytest.raises(UsageError, match="another edgekd records"):
            first.build(some(tmp_path))
        second.build(some(tmp_path))

    def test_a_file_of_others_is_refused_and_left_as_it_is(self, file: Path, tmp_path: Path):
        for content in (b"my notes", b"my notes\n", b'{"sha256":1}\n', os.urandom(300)):
            file.write_bytes(content)
            with pytest.raises(IntegrityError, match="not a cassette"):
                record(Scripted(), file)
            assert file.read_bytes() == content
        with pytest.raises(UsageError, match="not a file"):
            record(Scripted(), tmp_path)
        with pytest.raises(UsageError, match="cannot record"):
            record(Scripted(), tmp_path / "session.cassette" / "below")

    def test_an_empty_file_may_be_recorded_into(self, file: Path, tmp_path: Path):
        file.touch()
        engine = some(tmp_path)
        record(Scripted(OPENED), file).build(engine)
        assert_builds(file, engine, 1)


class TestHostileFiles:
    def test_a_cassette_that_is_not_there_is_a_device_that_is_not_there(self, tmp_path: Path):
        for path in (tmp_path / "gone.cassette", tmp_path):
            with pytest.raises(DeviceError, match="there is no cassette") as caught:
                CassetteDevice(path, TARGET)
            assert caught.value.exit_code == 4

    def test_another_schema_is_said(self, file: Path):
        for version in (0, SCHEMA_VERSION + 1):
            file.write_bytes(line_of(replace(SESSION, schema_version=version), "")[0])
            with pytest.raises(IntegrityError, match=f"of schema {version}") as caught:
                CassetteDevice(file, TARGET)
            assert caught.value.exit_code == 6

    @pytest.mark.parametrize("change", ["drop", "swap", "twice"])
    def test_records_left_out_moved_or_repeated_are_noticed(self, file: Path, tmp_path: Path, change: str):
        engine = some(tmp_path)
        device = record(Scripted(OPENED, OPENED, OPENED), file)
        for _ in range(3):
            device.build(engine)
        head, a, b, c = file.read_bytes().splitlines(keepends=True)
        changed = {"drop": [head, a, c], "swap": [head, b, a, c], "twice": [head, a, a, b, c]}[change]
        file.write_bytes(b"".join(changed))
        with pytest.raises(IntegrityError, match="left out or moved"):
            CassetteDevice(file, TARGET)

    def test_a_file_changed_after_it_was_opened_is_noticed(self, file: Path, tmp_path: Path):
        engine = some(tmp_path)
        record(Scripted(OPENED), file).build(engine)
        device = CassetteDevice(file, TARGET)
        file.write_bytes(file.read_bytes().replace(b"1.5", b"0.5"))
        with pytest.raises(IntegrityError):
            device.build(engine)

    @pytest.mark.parametrize(
        "suffix", ["/../../evil", "/etc/passwd", "", ".", "..", ".NPY", ".npy\n", ".npy/x", "." + "x" * 300]
    )
    def test_a_suffix_that_is_none_is_refused_and_nothing_is_written(
        self, file: Path, tmp_path: Path, suffix: str
    ):
        out, engine = tmp_path / "y.npy", some(tmp_path)
        out.write_bytes(b"x")
        artifact = Artifact.of(out)
        reply = plain(Inferred(outputs={"y": replace(kept(artifact), suffix=suffix)}))
        asked = inferring(engine, {}, tmp_path).asked
        device = forged(file, *parts_of(artifact), Entry(asked=asked, device_ns=0, reply=reply))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(IntegrityError, match="suffix"):
            device.infer(engine, {}, tmp_path / "again")
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        "part",
        [
            base64.b64encode(zlib.compress(bytes(PART_BYTES + 1))).decode(),  # more than a part may unpack to
            base64.b64encode(zlib.compress(bytes(64 << 20))).decode(),
            base64.b64encode(zlib.compress(b"x")[:-3]).decode(),
            base64.b64encode(b"not deflated").decode(),
            base64.b64encode(zlib.compress(b"other bytes")).decode(),
            "not base64!",
            "",
        ],
    )
    def test_parts_that_unpack_to_something_else_are_refused(self, file: Path, tmp_path: Path, part: str):
        engine, digest = some(tmp_path), Artifact.of(some(tmp_path).model.file.path).sha256
        held = Kept(sha256=digest, size_bytes=7, suffix=".npy")
        entry = Entry(
            asked=inferring(engine, {}, tmp_path).asked,
            device_ns=0,
            reply=plain(Inferred(outputs={"y": held})),
        )
        device = forged(file, Part(sha256=digest, at=0, last=True, data=part), entry)
        with pytest.raises(IntegrityError):
            device.infer(engine, {}, tmp_path / "again")
        assert not any((tmp_path / "again").rglob("*"))

    @pytest.mark.parametrize("size_bytes", [-1, 0, FILE_BYTES + 1])
    def test_a_file_of_another_size_or_one_that_is_missing_is_refused(
        self, file: Path, tmp_path: Path, size_bytes: int
    ):
        engine, out = some(tmp_path), Artifact.of(some(tmp_path).model.file.path)
        asked = inferring(engine, {}, tmp_path).asked
        wrong = replace(kept(out), size_bytes=size_bytes)
        replies = [
            Inferred(outputs={"y": wrong}),
            Inferred(outputs={"y": replace(kept(out), sha256="0" * 64)}),
        ]
        told = [Entry(asked=asked, device_ns=0, reply=plain(reply)) for reply in replies]
        device = forged(file, *parts_of(out), *told)
        for _ in replies:
            with pytest.raises(IntegrityError):
                device.infer(engine, {}, tmp_path / "again")

    @pytest.mark.parametrize("reply", [None, 3, [], {}, {"signature": 1}, "x", {"open_ms": 1e308}])
    def test_a_reply_of_another_shape_is_refused(self, file: Path, tmp_path: Path, reply: object):
        engine = some(tmp_path)
        device = forged(file, Entry(asked=building(engine).asked, device_ns=0, reply=reply))
        with pytest.raises(IntegrityError):
            device.build(engine)

    def test_as_many_latencies_as_engines_or_none(self, live: Any, file: Path, tmp_path: Path):
        engine = models.engine(models.conv_net(tmp_path / "m.onnx"))
        live.time([engine, engine], SHORT)
        (entry,) = entries(file)
        file.unlink()
        device = forged(file, replace(entry, reply=entry.reply[:1]))
        with pytest.raises(IntegrityError, match="1 latencies of 2 engines"):
            device.time([engine, engine], SHORT)

    @pytest.mark.parametrize("name", ["", "a\x1b[2J", "x" * 101, "a\nb"])
    def test_a_device_of_no_name_is_refused(self, file: Path, name: str):
        file.write_bytes(line_of(replace(SESSION, device=name), "")[0])
        with pytest.raises(IntegrityError, match="name"):
            CassetteDevice(file, TARGET)

    def test_an_error_about_a_hostile_cassette_is_short_and_plain(self, file: Path, tmp_path: Path):
        loud = Asked(order="build\x1b[31m", runtimes=("x" * 50_000,))
        near = Asked(order="build", runtimes=("y\x1b[2J" * 50_000,))
        for asked in (loud, near):
            file.unlink(missing_ok=True)
            with pytest.raises(DeviceError) as caught:
                forged(file, Entry(asked=asked, device_ns=0)).build(some(tmp_path))
            assert len(str(caught.value)) < 2000
            assert "\x1b" not in str(caught.value)

    def test_a_record_before_the_first_session_is_refused(self, file: Path, tmp_path: Path):
        entry = Entry(asked=inspecting(some(tmp_path).model.file).asked, device_ns=0)
        file.write_bytes(line_of(entry, "")[0])
        with pytest.raises(IntegrityError, match="does not begin with a session"):
            CassetteDevice(file, TARGET)


def line_with(body: bytes, before: str) -> bytes:
    """Make a line of any bytes, with the digest that belongs to them."""
    import hashlib

    digest = hashlib.sha256(before.encode() + body).hexdigest()
    return b'{"sha256":"' + digest.encode() + b'","record":' + body + b"}\n"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
questions = st.builds(
    Asked,
    order=st.sampled_from(["probe", "build", "time"]) | st.text(max_size=5),
    files=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    runtimes=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    protocol=st.none() | st.builds(Protocol, seed=st.integers(0, 5), period_ms=st.floats(0, 1e6)),
)
answers = st.builds(Entry, asked=questions, device_ns=st.integers(0, 10**12), reply=json_values) | st.builds(
    Entry,
    asked=questions,
    device_ns=st.integers(0, 10**12),
    failure=st.builds(Failure, kind=st.text(), what=st.text(), cause=st.text(), mend=st.text()),
)
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thousand small files be written without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("quick")
class TestFormat:
    @often
    @given(told=st.lists(answers, max_size=6), sessions=st.lists(st.integers(0, 6), max_size=2))
    def test_what_was_written_is_read(self, file: Path, told: list[Entry], sessions: list[int]):
        write(file, told, sessions)
        assert entries(file) == told

    @often
    @given(told=st.lists(answers, min_size=1, max_size=4), at=st.floats(0, 1), by=st.integers(1, 255))
    def test_a_byte_that_was_changed_is_refused_or_was_the_torn_end(
        self, file: Path, told: list[Entry], at: float, by: int
    ):
        write(file, told)
        assert_flips(file, told, [(min(int(at * (size := file.stat().st_size)), size - 1), by)])

    @often
    @given(
        bodies=st.lists(json_values | st.binary(max_size=30), max_size=5),
        inside=st.sampled_from(["", "entry"]),
    )
    def test_lines_of_anything_with_right_digests_are_refused_in_words(
        self, file: Path, bodies: Sequence[object], inside: str
    ):
        line, digest = line_of(SESSION, "")
        written = [line]
        for body in bodies:
            text = (
                body if isinstance(body, bytes) else json.dumps({inside: body} if inside else body).encode()
            )
            written.append(line_with(text, digest))
            digest = json.loads(written[-1][: 11 + 64 + 1] + b"}")["sha256"]
        file.write_bytes(b"".join(written))
        if bodies:
            with pytest.raises(IntegrityError):
                CassetteDevice(file, TARGET)

    def test_no_single_byte_of_a_session_can_be_changed_unnoticed(self, file: Path, tmp_path: Path):
        engine, out = some(tmp_path), tmp_path / "y.npy"
        out.write_bytes(b"output")
        device = record(Scripted(OPENED, {"y": Artifact.of(out)}), file)
        device.build(engine)
        device.infer(engine, {}, tmp_path)
        told, size = entries(file), file.stat().st_size
        assert_flips(file, told, [(at, by) for at in range(size) for by in (1, 0x80)])

    @pytest.mark.parametrize(
        "body",
        [
            b"[" * 100_000,
            b'{"entry":' * 5_000,
            b"NaN",
            b'{"session":{}}',
            b'{"entry":{"asked":{"order":1},"device_ns":0}}',
            b'{"part":{"sha256":"x","at":1,"last":true,"data":""}}',
            b'{"part":{"sha256":"x","at":' + b"9" * 5000 + b',"last":true,"data":""}}',
            b"{}",
            b"\xff\xfe\x00",
        ],
    )
    def test_a_line_that_is_no_record_is_refused(self, file: Path, body: bytes):
        line, digest = line_of(SESSION, "")
        file.write_bytes(line + line_with(body, digest))
        with pytest.raises(IntegrityError):
            CassetteDevice(file, TARGET)

    def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(tape, "LINE_BYTES", 1000)
        file.write_bytes(line_of(SESSION, "")[0] + b"x" * 5000)
        with pytest.raises(IntegrityError):
            CassetteDevice(file, TARGET)

    def test_a_file_that_is_too_large_or_has_too_many_records_is_refused(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ):
        write(file, [Entry(asked=Asked(order="probe"), device_ns=0)] * 3)
        monkeypatch.setattr(tape, "_MOST_RECORDS", 3)
        with pytest.raises(IntegrityError, match="more than 3 records"):
            CassetteDevice(file, TARGET)
        monkeypatch.setattr(tape, "_TAPE_BYTES", 100)
        with pytest.raises(IntegrityError, match="larger than"):
            CassetteDevice(file, TARGET)

    def test_text_that_is_no_unicode_is_kept(self, file: Path):
        failure = Failure(kind="BuildError", what="caf\udce9\\udce9.onnx", cause="", mend="")
        told = [Entry(asked=Asked(order="probe"), device_ns=0, failure=failure)]
        write(file, told)
        assert entries(file) == told


def write(file: Path, told: Sequence[Entry], sessions: Sequence[int] = ()) -> None:
    file.unlink(missing_ok=True)
    held = tape.begin(file, SESSION)
    for at, entry in enumerate(told):
        if at in sessions:
            held = tape.begin(file, SESSION)
        held.append([entry])


def assert_flips(file: Path, told: Sequence[Entry], flips: Sequence[tuple[int, int]]) -> None:
    """Change one byte at a time: nothing else than what was told may ever be read."""
    whole = file.read_bytes()
    for at, by in flips:
        changed = bytearray(whole)
        changed[at] ^= by
        file.write_bytes(changed)
        try:
            found = entries(file)
        except IntegrityError:
            continue
        assert found == list(told[:-1])
        assert at == len(whole) - 1
