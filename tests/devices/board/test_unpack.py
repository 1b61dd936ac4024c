from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import edgekd
from edgekd.devices import parcel
from edgekd.devices.board import unpack
from edgekd.devices.board.place import Place
from edgekd.errors import IntegrityError

ROOT = Path(edgekd.__file__).parent


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(str(tmp_path / "board"))
    made.make()
    return made


def packed(entries: list[tuple[str, bytes]], **changed: object) -> tuple[str, bytes]:
    listed = [[name, len(body), hashlib.sha256(body).hexdigest()] for name, body in entries]
    head = json.dumps(changed.get("listed", listed)).encode()
    data = zlib.compress(head + b"\n" + b"".join(body for _, body in entries))
    return hashlib.sha256(head).hexdigest(), data


def test_equal_files_give_equal_parcels(monkeypatch: pytest.MonkeyPatch):
    first = parcel.parcel()
    parcel.parcel.cache_clear()
    assert parcel.parcel() == first


def test_the_worker_arrives_as_it_was_packed(place: Place):
    own = parcel.parcel()
    unpack.unpack(place, own.data, own.digest)
    assert unpack.intact(place, own.digest)
    assert unpack.newest(place) == own.digest
    for name in parcel.names():
        assert place.path("worker", own.digest, "edgekd", name).read_bytes() == (ROOT / name).read_bytes()
    unpack.unpack(place, own.data, own.digest)  # over itself
    assert unpack.intact(place, own.digest)


def test_the_worker_is_small_and_has_nothing_of_the_host():
    names = parcel.names()
    assert len(parcel.parcel().data) < 200_000
    assert "worker/health.onnx" in names
    assert not [
        name for name in names if name.startswith(("cli", "pipeline", "stages", "distillation", "store"))
    ]


@pytest.mark.parametrize(
    "name", ["../outside.py", "/etc/x.py", "a/../../x.py", ".hidden.py", "a.sh", "a\nb.py", "A.py", ""]
)
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_written(place: Place, name: str):
    digest, data = packed([(name, b"x = 1\n")])
    with pytest.raises(IntegrityError):
        unpack.unpack(place, data, digest)
    assert not unpack.intact(place, digest)
    assert sorted(path.name for path in place.root.parent.iterdir()) == ["board"]


def test_a_parcel_cut_anywhere_is_refused(place: Place):
    own = parcel.parcel()
    for cut in range(0, len(own.data), len(own.data) // 31):
        with pytest.raises(IntegrityError):
            unpack.unpack(place, own.data[:cut], own.digest)
    assert not unpack.intact(place, own.digest)


def test_a_changed_body_is_refused(place: Place):
    digest, _ = packed([("a.py", b"x = 1\n")])
    _, data = packed([("a.py", b"x = 2\n")], listed=[["a.py", 6, hashlib.sha256(b"x = 1\n").hexdigest()]])
    with pytest.raises(IntegrityError):
        unpack.unpack(place, data, digest)


def test_a_bomb_is_refused(place: Place):
    digest, data = packed([("a.py", bytes(64 << 20))])
    with pytest.raises(IntegrityError):
        unpack.unpack(place, data, digest)


@pytest.mark.parametrize("spoil", ["change", "remove", "add", "list"])
def test_a_worker_that_was_touched_is_not_used(place: Place, spoil: str):
    digest, data = packed([("a.py", b"x = 1\n"), ("b/c.py", b"y = 1\n")])
    unpack.unpack(place, data, digest)
    folder = place.path("worker", digest)
    if spoil == "change":
        (folder / "a.py").write_bytes(b"x = 2\n")
    elif spoil == "remove":
        (folder / "b" / "c.py").unlink()
    elif spoil == "add":
        (folder / "numpy.py").write_bytes(b"")
    else:
        (folder / "parcel.json").write_bytes(b"[]")
    assert not unpack.intact(place, digest)
    unpack.unpack(place, data, digest)
    assert unpack.intact(place, digest)


def test_compiled_modules_do_not_count(place: Place):
    digest, data = packed([("a.py", b"x = 1\n")])
    unpack.unpack(place, data, digest)
    place.path("worker", digest, "__pycache__").mkdir()
    place.path("worker", digest, "__pycache__", "a.pyc").write_bytes(b"")
    assert unpack.intact(place, digest)


def test_the_worker_runs_from_where_it_was_copied_with_numpy_and_one_runtime(place: Place):
    own = parcel.parcel()
    unpack.unpack(place, own.data, own.digest)
    folder = place.path("worker", own.digest)
    absent = (
        "torch",
        "onnx",
        "openvino",
        "nncf",
        "sklearn",
        "scipy",
        "typer",
        "rich",
        "psutil",
        "filelock",
        "PIL",
    )
    code = f"""
import sys
sys.path = [{str(folder)!r}] + [entry for entry in sys.path if entry]
for name in {absent!r}: sys.modules[name] = None
from edgekd.devices.board import agent
from edgekd.devices.board.orders import BoardProbe, Desk
from edgekd.values.target import Profile, Target
import edgekd
assert edgekd.__file__.startswith({str(folder)!r})
profile = Profile(name="", description="", runtimes={{}})
target = Target(profile=profile, device="local", runtimes=("onnxruntime",), threads=1)
print(Desk(None, None).probe(BoardProbe(target=target)).runtimes[0].works)
"""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", timeout=120
    )
    assert found.stdout.split() == ["True"], found.stderr


def test_first_contact_needs_the_standard_library_alone():
    allowed = set(parcel.FIRST) | set(sys.stdlib_module_names)
    for at, name in enumerate(parcel.FIRST):
        tree = ast.parse((ROOT.parent / f"{name.replace('.', '/')}.py").read_text())
        for node in ast.walk(tree):
            wanted = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "edgekd.devices.board":
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [node.module or ""]
            for one in wanted:
                assert one in allowed or one.partition(".")[0] in allowed, (name, one)
                assert one not in parcel.FIRST or parcel.FIRST.index(one) < at  # it is there by then
