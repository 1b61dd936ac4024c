from __future__ import annotations

import itertools
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.devices import link_command, link_words, parcel
from edgekd.devices.link_files import Luggage
from edgekd.devices.link_words import clean, raised, refusal
from edgekd.errors import BuildError, DeviceError, EdgekdError, IntegrityError, UsageError, WorkerDied
from edgekd.values.artifact import Artifact
from edgekd.values.board import Board
from edgekd.values.codec import plain
from edgekd.values.model import Model
from tests.devices import fake_board
from tests.devices.fake_board import Sandbox

CASES = 300
BOARD = Board(name="nano", destination="me@nano", fingerprint="SHA256:" + "A" * 43)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    with fake_board.sandbox(tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", fake_board.NAMES)
def test_a_fake_board_that_keeps_to_the_rules_is_believed(box: Sandbox, name: str):
    assert fake_board.play(box, name, b"".join(fake_board.good(name))) == "value"


def test_nothing_a_board_says_can_crash_us_or_write_elsewhere(box: Sandbox):
    found: dict[str, int] = {}
    for seed in range(CASES):
        chance = random.Random(seed)  # noqa: S311 - nonsense, not a secret
        name = chance.choice(fake_board.NAMES)
        kind = fake_board.play(box, name, fake_board.spoilt(fake_board.good(name), chance))
        found[kind] = found.get(kind, 0) + 1
    assert sum(found.values()) == CASES
    assert found["WorkerDied"] > CASES / 5  # most of what is spoilt is noticed


@pytest.mark.parametrize("name", ["survey", "build", "infer"])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_ten_gigabytes_are_not_read_to_their_end(box: Sandbox, name: str, lines: int):
    assert fake_board.play(box, name, b"".join(fake_board.good(name)[:lines]), endless=True) != "value"


@pytest.mark.parametrize("field", ["sha256", "suffix"])
@pytest.mark.parametrize("text", ["../../x", "/tmp/away", "..", "\x00", ".npy/../../x"])  # noqa: S108 - never written
def test_a_path_from_a_board_leads_nowhere(box: Sandbox, field: str, text: str):
    lines = fake_board.good("compile")
    whole = b"".join(lines).decode()
    made = fake_board._made(b"<net/>", ".xml")
    spoilt = whole.replace(f'"{made[field]}"', fake_board._json(text).decode().strip(), 1)
    assert spoilt != whole
    assert fake_board.play(box, "compile", spoilt.encode()) == "WorkerDied"


@pytest.mark.parametrize("size", [-1, 5, 7, 1 << 40])
def test_a_file_of_another_size_than_promised_is_not_kept(box: Sandbox, size: int):
    whole = b"".join(fake_board.good("compile")).replace(b'"size": 6', b'"size": %d' % size)
    assert fake_board.play(box, "compile", whole) == "WorkerDied"


def test_a_file_with_another_content_than_promised_is_not_kept(box: Sandbox):
    whole = b"".join(fake_board.good("compile")).replace(b"<net/>", b"<NET/>")
    assert fake_board.play(box, "compile", whole) == "IntegrityError"


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"1.5,", b"-1.5,"),
        (b'"samples": 3', b'"samples": 4'),
        (b'"block_sizes": [3, 3]', b'"block_sizes": [3, 2]'),
        (b'"latencies": [', b'"latencies": [], "x": ['),
        (b'"boot_id": "the-boot", "reply"', b'"boot_id": "another", "reply"'),
        (b'"id": "abab', b'"id": "baba'),
    ],
)
def test_a_measurement_that_is_not_the_one_asked_for_is_refused(box: Sandbox, good: bytes, bad: bytes):
    whole = b"".join(fake_board.good("time"))
    assert good in whole
    assert fake_board.play(box, "time", whole.replace(good, bad)) in {"WorkerDied", "DeviceError"}


def test_a_turn_may_hold_more_inferences_where_others_took_the_core(box: Sandbox):
    whole = b"".join(fake_board.good("time"))
    for part in (b'"samples_ms": [1.5, ', b'"cpu_ms": [1.5, '):
        whole = whole.replace(part, part + b"1.5, 1.5, ")
    whole = whole.replace(b'"preempted": [', b'"preempted": [true, true, ')
    assert fake_board.play(box, "time", whole.replace(b"[3, 3]", b"[5, 3]")) == "value"
    assert fake_board.play(box, "time", whole.replace(b"[3, 3]", b"[6, 2]")) == "WorkerDied"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("energy", b'"inferences": 9', b'"inferences": 0'),
        ("energy", b'"busy_s": 1.0', b'"busy_s": -1.0'),
        ("energy", b'"uncertainty_mj": 0.5', b'"uncertainty_mj": -0.5'),
        ("energy", b'"energy_mj": 5.0', b'"energy_mj": 1e999'),
        ("layers", b'"time_ms": 0.5', b'"time_ms": -0.5'),
        ("layers", b'"time_ms": 0.5', b'"time_ms": 1e999'),
    ],
)
def test_energy_and_layers_that_cannot_be_are_refused(box: Sandbox, name: str, good: bytes, bad: bytes):
    whole = b"".join(fake_board.good(name))
    assert good in whole
    assert fake_board.play(box, name, whole.replace(good, bad)) == "WorkerDied"


def test_a_board_without_a_meter_says_so(box: Sandbox):
    whole = b"".join(fake_board.good("energy"))
    start, end = (
        whole.index(b'"energy": {') + len(b'"energy": '),
        whole.index(b"}", whole.index(b'"busy_s"')) + 1,
    )
    assert fake_board.play(box, "energy", whole[:start] + b"null" + whole[end:]) == "value"


def _spread(tmp_path: Path, *names: str) -> Model:
    (tmp_path / "a net.onnx").write_bytes(b"net")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    external = tuple(Artifact.of(tmp_path / name) for name in names)
    return Model(file=Artifact.of(tmp_path / "a net.onnx"), external=external)


def test_weights_beside_an_onnx_are_seen_under_the_names_that_it_gives_them(tmp_path: Path):
    luggage = Luggage()
    packed = luggage.packed([plain(_spread(tmp_path, "b c.data", "more/w.bin")) for _ in range(2)])
    assert [[file["path"] for file in one["external"]] for one in packed] == [
        ["0/b c.data", "0/more/w.bin"],
        ["3/b c.data", "3/more/w.bin"],
    ]
    assert packed[0]["file"]["path"] == "0/a_net.onnx"
    assert luggage.alone == [file["path"] for one in packed for file in one["external"]]
    assert len(luggage.sources) == 3


@pytest.mark.parametrize("name", ["a_net.onnx", "A_NET.onnx"])
def test_weights_that_would_lie_where_the_model_does_are_refused(tmp_path: Path, name: str):
    with pytest.raises(IntegrityError, match="cannot lie beside"):
        Luggage().packed(plain(_spread(tmp_path, name)))


def test_weights_outside_the_models_folder_do_not_travel(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    model = _spread(tmp_path / "in")
    for path in (tmp_path / "secret", tmp_path / "in" / ".." / "secret"):
        stray = Model(file=model.file, external=(Artifact.of(path),))
        luggage = Luggage()
        with pytest.raises(IntegrityError, match="cannot lie beside"):
            luggage.packed(plain(stray))
        assert tmp_path / "secret" not in luggage.sources.values()


def test_what_a_terminal_would_act_upon_is_shown_as_escapes():
    assert clean("a\x1b[2Jb\u202ec\ud800\x9b\n\td") == "a\\x1b[2Jb\\u202ec\\ud800\\x9b\n\td"
    assert clean("Jetson Orin Nano, 8 GiB, 25 °C: größer") == "Jetson Orin Nano, 8 GiB, 25 °C: größer"


def test_an_error_keeps_its_kind_and_nothing_else_becomes_one():
    told = {"kind": "BuildError", "what": "no", "cause": "so", "mend": "do"}
    assert isinstance(raised(told), BuildError)
    assert (raised(told).what, raised(told).cause, raised(told).mend) == ("no", "so", "do")
    for kind in ("annotations", "Exception", "EdgekdError", "__doc__", "", 3, None):
        assert type(raised({"kind": kind})) is WorkerDied
    assert isinstance(raised("text"), WorkerDied)


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", IntegrityError, "another"),
        (255, "No ED25519 host key is known for nano and you have requested strict checking.\nHost key verification failed.", IntegrityError, "not known"),
        (255, "me@nano: Permission denied (publickey).", DeviceError, "lets nobody in"),
        (255, "ssh: Could not resolve hostname nano: Name or service not known", DeviceError, "cannot be reached"),
        (255, "ssh: connect to host nano port 22: Connection timed out", DeviceError, "cannot be reached"),
        (255, "", DeviceError, "cannot be reached"),
        (127, "bash: line 1: exec: python3: not found", DeviceError, "has no python3"),
        (1, "Illegal instruction", DeviceError, "does not start"),
        (None, "", DeviceError, "cannot be reached"),
    ],
)  # fmt: skip
def test_what_ssh_says_is_told_with_its_mend(
    code: int | None, said: str, kind: type[EdgekdError], words: str
):
    found = refusal(BOARD, code, said)
    assert isinstance(found, kind)
    assert words in found.what
    assert found.mend


def test_only_a_connection_that_may_come_back_is_tried_again():
    assert isinstance(refusal(BOARD, 255, "Connection refused"), link_words.Lost)
    assert not isinstance(refusal(BOARD, 255, "Permission denied (publickey)."), link_words.Lost)


def test_the_command_is_strict_and_keeps_to_the_users_configuration(tmp_path: Path):
    known = tmp_path / "known hosts"
    board = Board(name="nano", destination="me@nano", port=2200, known_hosts=known)
    arguments = link_command.command(board, 10, connect_s=15, persist_s=60)
    options = [value for flag, value in itertools.pairwise(arguments) if flag == "-o"]
    for wanted in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ForwardAgent=no",
        "ControlMaster=auto",
        "ConnectTimeout=15",
    ):
        assert wanted in options
    (files,) = [option for option in options if option.startswith("UserKnownHostsFile=")]
    assert files.endswith(f'"{known}"')
    assert "known_hosts" in files.partition('"')[0]
    assert arguments[:3] == ["ssh", "-p", "2200"]
    assert "-F" not in arguments
    assert arguments[-3:-1] == ["--", "me@nano"]


def test_sockets_lie_in_a_folder_of_the_users_own_and_have_short_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("long" * 40)))
    path = link_command.control_path(BOARD)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(str(path)) + 17 < 108
    assert link_command.control_path(Board(name="b", destination="me@nano", port=23)) != path


def test_a_folder_for_sockets_that_others_can_enter_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(link_command, "Path", lambda *parts: tmp_path if parts == ("/tmp",) else Path(*parts))  # noqa: S108 - the name in the code
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    folder = link_command.control_folder()
    folder.chmod(0o755)
    with pytest.raises(DeviceError, match="no place for connections"):
        link_command.control_folder()


@pytest.mark.parametrize("python", ["", "-c", "py\nthon", "a\x1bb"])
def test_a_python_that_is_no_program_is_refused(python: str):
    with pytest.raises(UsageError, match="no program"):
        link_command.command(Board(name="b", destination="b", python=python), 1, connect_s=1, persist_s=1)


def test_a_python_below_the_home_folder_may_be_named(monkeypatch: pytest.MonkeyPatch):
    board = Board(name="b", destination="b", python="~/my env/bin/python")
    assert link_command.command(board, 1, connect_s=1, persist_s=1)[-1].startswith(
        "exec ~/'my env/bin/python' -c "
    )


def test_the_first_words_survive_any_shell_and_run_in_python():
    remote = link_command.command(BOARD, 5, connect_s=1, persist_s=1)[-1]
    assert "\n" not in remote
    assert "!" not in remote
    words = shlex.split(remote)
    assert words[:3] == ["exec", "python3", "-c"]
    data = parcel.zlib.compress(b"print('hello')")
    code = shlex.split(link_command.command(BOARD, len(data), connect_s=1, persist_s=1)[-1])[-1]
    found = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert found.stdout == b"hello\n"


def test_weights_lie_beside_their_model_and_names_are_tame(tmp_path: Path):
    xml, weights = tmp_path / "a b;$(x)é.xml", tmp_path / "other.bin"
    xml.write_text("<net/>")
    weights.write_bytes(b"1")
    luggage = Luggage()
    packed = luggage.packed(plain(Model(file=Artifact.of(xml), weights=Artifact.of(weights))))
    assert packed["file"]["path"] == "0/a_b___x__.xml"
    assert packed["weights"]["path"] == "0/a_b___x__.bin"
    assert sorted(luggage.sources.values()) == [xml, weights]


def test_a_file_changed_since_it_was_named_does_not_travel(tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")
    artifact, sound = Artifact.of(path), {}
    Luggage(sound=sound).packed(plain(artifact))
    path.write_bytes(b"other")
    with pytest.raises(IntegrityError):
        Luggage(sound=sound).packed(plain(artifact))
