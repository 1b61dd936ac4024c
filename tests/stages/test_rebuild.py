from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgekd.errors import UsageError
from edgekd.stages.rebuild import rebuild

COPY = "cp model.txt {out}"


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Give a repository whose model was "old" at the tag `base` and is "new" now, with work going on."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for text in ("old", "new"):
        (folder / "model.txt").write_text(text, encoding="utf-8")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", text)
        if text == "old":
            git(folder, "tag", "base")
    (folder / "model.txt").write_text("not committed", encoding="utf-8")
    return folder


def build(repository: Path, tmp_path: Path, revision: str = "base", command: str = COPY) -> Path:
    return rebuild(tmp_path / "built", revision, command, timeout_s=30, repository=repository)


def test_the_base_is_built_as_its_revision_had_it(repository: Path, tmp_path: Path):
    assert build(repository, tmp_path).read_text(encoding="utf-8") == "old"


def test_the_work_that_goes_on_is_not_touched_and_nothing_is_left(repository: Path, tmp_path: Path):
    build(repository, tmp_path)
    assert (repository / "model.txt").read_text(encoding="utf-8") == "not committed"
    listed = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], check=True, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1


def test_no_shell_reads_the_command(repository: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="failed with exit code"):
        build(repository, tmp_path, command="cp model.txt {out} ; touch escaped")
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("revision", "command", "told"),
    [
        ("base", "cp model.txt elsewhere", "does not say where the model goes"),
        ("nowhere", COPY, "checking out nowhere failed"),
        ("--help", COPY, "is not a revision"),
        ("base", "false {out}", "failed with exit code 1"),
        ("base", "true {out}", "wrote no model"),
        ("base", "no-such-program {out}", "cannot be run"),
        ("base", "cp 'model.txt {out}", "cannot be read"),
    ],
)
def test_what_cannot_be_built_says_why(
    repository: Path, tmp_path: Path, revision: str, command: str, told: str
):
    with pytest.raises(UsageError, match=told):
        build(repository, tmp_path, revision, command)
