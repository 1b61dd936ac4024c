"""Build the base as a revision of the user's repository built it, beside the work that is going on there."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekd.errors import UsageError

log = logging.getLogger(__name__)

OUT = "{out}"
_TAIL = 1000


def rebuild(
    folder: Path, revision: str, command: str, *, timeout_s: float, repository: Path = Path()
) -> Path:
    """Check a revision out in a folder of its own, run the command there, and return the model it wrote.

    Args:
        folder: where the model goes; `{out}` in the command stands for its path.
        revision: of the git repository that holds `repository`.
        command: split as a shell would, and run without one.
        timeout_s: the command is ended after so long.
        repository: a folder inside the repository.

    Raises:
        UsageError: no such revision, or the command fails, takes too long or writes no model.

    """
    if OUT not in command:
        raise UsageError("--base-cmd does not say where the model goes", mend=f"write {OUT} in its place")
    path = (folder / "base.onnx").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [word.replace(OUT, str(path)) for word in _split(command)]
    with _checked_out(folder / "tree", revision, repository) as tree:
        log.info("building the base at %s: %s", revision, shlex.join(words))
        _run(words, tree, f"--base-cmd at {revision}", timeout_s)
    if not path.is_file():
        raise UsageError(f"--base-cmd at {revision} wrote no model", cause=f"there is no {path}")
    return path


@contextmanager
def _checked_out(tree: Path, revision: str, repository: Path) -> Iterator[Path]:
    """Give a worktree of the revision; the user's own is not touched."""
    tree = tree.absolute()
    git = ["git", "-C", str(repository.absolute())]
    if revision.startswith("-"):
        raise UsageError(f"{revision!r} is not a revision", mend="give a branch, a tag or a commit")
    add = ["worktree", "add", "--force", "--detach", str(tree), revision]
    _run([*git, *add], None, f"checking out {revision}", 600)
    try:
        yield tree
    finally:
        _run([*git, "worktree", "remove", "--force", str(tree)], None, f"removing {tree}", 600)


def _run(words: Sequence[str], cwd: Path | None, what: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(
            words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{what} takes too long", cause=f"ended after {timeout_s:.0f} s") from None
    except OSError as error:
        raise UsageError(f"{what} cannot be run", cause=str(error), mend="check the command") from error
    if done.returncode:
        tail = (done.stderr or done.stdout).decode(errors="replace").strip()[-_TAIL:]
        raise UsageError(f"{what} failed with exit code {done.returncode}", cause=tail)


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError("--base-cmd cannot be read", cause=str(error), mend="close its quotes") from error
