from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekd.store import Store
from edgekd.store.files import write_text
from edgekd.values.artifact import Artifact

runs: list[str] = []
TOOLS: tuple[str, ...] = ()
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Baked:
    cake: Artifact
    from_elsewhere: Artifact | None = None
    weight: float = 0.0


def bake(folder: Path, flour: str, sugar: int = 1) -> Baked:
    runs.append(flour)
    cake = write_text(folder / "cake", f"{flour} {sugar}")
    return Baked(cake=Artifact.of(cake), weight=sugar / 3)


def ice(folder: Path, baked: Baked) -> Baked:
    runs.append("ice")
    icing = write_text(folder / "icing", "icing")
    return Baked(cake=Artifact.of(icing), from_elsewhere=baked.cake)


def falter(folder: Path, times: int) -> int:
    """Save how far it came, and die until it came far enough."""
    saved = folder / "progress"
    done = int(saved.read_text(encoding="utf-8")) if saved.is_file() else 0
    if done < times:
        write_text(saved, str(done + 1))
        raise KeyboardInterrupt
    runs.append("falter")
    return done


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    runs.clear()
    yield Store(tmp_path / "store")
    runs.clear()


def test_a_stage_runs_once_for_the_same_inputs(store: Store) -> None:
    first = store.run(bake, "rye")
    assert store.run(bake, "rye") == first
    assert Store(store.root).run(bake, "rye") == first
    assert runs == ["rye"]


def test_other_inputs_run_it_again(store: Store) -> None:
    store.run(bake, "rye")
    store.run(bake, "wheat")
    store.run(bake, "rye", 2)
    assert runs == ["rye", "wheat", "rye"]


def test_a_call_is_the_same_however_it_is_written(store: Store) -> None:
    store.run(bake, "rye", 1)
    store.run(bake, flour="rye", sugar=1)
    store.run(bake, "rye")
    assert runs == ["rye"]


@pytest.mark.parametrize(("name", "value"), [("VERSION", 2), ("TOOLS", ("pytest",))])
def test_a_new_version_of_the_stage_or_other_tools_run_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    before = store.folder_of(bake, "rye")
    store.run(bake, "rye")
    monkeypatch.setattr(sys.modules[__name__], name, value)
    assert store.folder_of(bake, "rye") != before
    store.run(bake, "rye")
    assert runs == ["rye", "rye"]


def test_another_version_of_a_tool_changes_the_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TOOLS", ("pytest",))
    before = store.folder_of(bake, "rye")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "999")
    assert store.folder_of(bake, "rye") != before


def test_inputs_count_by_content_and_not_by_path(store: Store, tmp_path: Path) -> None:
    here, there = (write_text(tmp_path / name, "same") for name in ("here", "there"))
    store.run(ice, Baked(cake=Artifact.of(here)))
    store.run(ice, Baked(cake=Artifact.of(there)))
    assert runs == ["ice"]


def test_an_interrupted_stage_goes_on_in_its_folder(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.run(falter, 2)
    assert store.run(falter, 2) == 2
    assert runs == ["falter"]


@pytest.mark.parametrize(
    "damage",
    ['{"cake": {"pa', "", "[]", "null", '{"cake": {"path": 3, "sha256": "x"}}', '{"older": "shape"}'],
)
def test_a_damaged_result_is_computed_again(store: Store, damage: str) -> None:
    first = store.run(bake, "rye")
    (store.folder_of(bake, "rye") / "result.json").write_text(damage, encoding="utf-8")
    assert store.run(bake, "rye") == first
    assert runs == ["rye", "rye"]


def test_a_result_whose_file_was_changed_or_lost_is_computed_again(store: Store) -> None:
    first = store.run(bake, "rye")
    first.cake.path.write_text("poison", encoding="utf-8")
    assert store.run(bake, "rye").cake.verified().read_text(encoding="utf-8") == "rye 1"
    first.cake.path.unlink()
    store.run(bake, "rye").cake.verified()
    assert runs == ["rye", "rye", "rye"]


def test_a_moved_store_still_holds_its_results(store: Store, tmp_path: Path) -> None:
    iced = store.run(ice, store.run(bake, "rye"))
    store.root.rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved")
    found = moved.run(ice, moved.run(bake, "rye"))
    assert runs == ["rye", "ice"]
    assert iced.from_elsewhere is not None
    assert found.from_elsewhere is not None
    for artifact, name in ((found.cake, "icing"), (found.from_elsewhere, "cake")):
        assert artifact.verified().is_relative_to(tmp_path / "moved")
        assert artifact.path.name == name


def test_the_result_on_disk_names_no_folder_of_this_machine(store: Store) -> None:
    store.run(ice, store.run(bake, "rye"))
    for result in store.root.rglob("result.json"):
        assert str(store.root) not in result.read_text(encoding="utf-8")
        assert json.loads(result.read_text(encoding="utf-8"))


STAGE = """
import os, sys
from pathlib import Path
from edgekd.store import Store

def slow(folder: Path) -> int:
    fifo = os.open(sys.argv[2], os.O_RDONLY)   # until the test lets it go on
    os.read(fifo, 1)
    with open(sys.argv[3], "a") as log:
        log.write("x")
    return 7

sys.stdout.write("ready\\n")
sys.stdout.flush()
print(Store(Path(sys.argv[1])).run(slow))
"""


def test_processes_that_want_the_same_result_compute_it_once(tmp_path: Path) -> None:
    fifo, log = tmp_path / "fifo", tmp_path / "log"
    os.mkfifo(fifo)
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "stage.py"), str(tmp_path / "store"), str(fifo), str(log)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    fifo.open("w").close()  # waits for the one that got in, and lets it go on
    answers = [worker.communicate(timeout=60)[0] for worker in workers]
    assert answers == ["7\n"] * 3
    assert log.read_text(encoding="utf-8") == "x"
