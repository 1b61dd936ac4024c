"""What we hand to other people's CI: it parses, it interpolates nothing into a shell, and its options exist."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ACTION = ROOT / ".github/actions/check/action.yml"
SCRIPT = ROOT / ".github/actions/check/check.sh"
WORKFLOW = ROOT / ".github/workflows/latency.yml"
GITLAB = ROOT / "tools/jobs/latency.gitlab-ci.yml"
FILES = (ACTION, WORKFLOW, GITLAB)


def read(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text(encoding="utf-8"))


def runs(path: Path) -> list[str]:
    """Return each shell text of a file, without a YAML parser: what follows `run:`, deeper indented lines included."""
    found: list[str] = []
    deep: int | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        indent = len(line) - len(line.lstrip())
        if deep is not None and (not line.strip() or indent > deep):
            found[-1] += f"{line}\n"
            continue
        deep = None
        if match := re.match(r"\s*(?:- )?run: ?(.*)", line):
            found.append(f"{match[1]}\n")
            deep = indent
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_for_ci_parses(path: Path) -> None:
    assert isinstance(read(path), dict)


@pytest.mark.parametrize(
    ("path", "schema"),
    [(ACTION, "github-actions"), (WORKFLOW, "github-workflows"), (GITLAB, "gitlab-ci")],
    ids=["action", "workflow", "gitlab"],
)
def test_a_file_for_ci_is_what_its_service_takes_by_the_services_own_schema(path: Path, schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", [ACTION, WORKFLOW], ids=lambda path: path.name)
def test_nothing_is_interpolated_into_a_shell(path: Path) -> None:
    assert runs(path)
    assert not [text for text in runs(path) if "${{" in text]


def test_other_peoples_actions_are_pinned_to_a_commit() -> None:
    used = re.findall(r"^\s*(?:- )?uses: (\S+)", WORKFLOW.read_text(), re.MULTILINE)
    foreign = [name for name in used if not name.startswith("./")]
    assert len(foreign) >= 5
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in foreign)


def test_only_the_job_that_runs_no_code_of_the_pull_request_may_write() -> None:
    jobs = read(WORKFLOW)["jobs"]
    assert read(WORKFLOW)["permissions"] == {}
    assert jobs["measure"]["permissions"] == {"contents": "read"}
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    assert not [step for step in jobs["comment"]["steps"] if "checkout" in step.get("uses", "")]
    assert "pull_request_target" not in WORKFLOW.read_text()


def test_the_workflow_looks_for_the_marker_that_the_comment_begins_with() -> None:
    from edgekd.stages.announce import MARKER

    assert f'startswith("{MARKER}")' in WORKFLOW.read_text()


def test_the_workflow_is_skipped_where_no_build_command_is_known() -> None:
    assert read(WORKFLOW)["jobs"]["measure"]["if"] == "inputs.build != '' || vars.EDGEKD_BUILD != ''"


def test_the_workflow_gives_the_action_inputs_that_it_has() -> None:
    (step,) = [step for step in read(WORKFLOW)["jobs"]["measure"]["steps"] if step.get("id") == "check"]
    assert set(step["with"]) <= set(read(ACTION)["inputs"])


def test_every_input_reaches_the_script_and_every_output_comes_from_it() -> None:
    action = read(ACTION)
    install, check = action["runs"]["steps"]
    given = {**install["env"], **check["env"]}
    read_inputs = {match for text in given.values() for match in re.findall(r"inputs\.([\w-]+)", text)}
    assert read_inputs == set(action["inputs"])
    script = SCRIPT.read_text()
    assert all(re.search(rf"\${name}\b|\${{{name}", script) for name in check["env"])
    assert all(f'echo "{name}=' in script for name in action["outputs"])


def test_every_option_that_ci_gives_exists() -> None:
    import typer

    from edgekd.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined] - a group's
    known = {option for parameter in commands["check"].params for option in parameter.opts}
    script = SCRIPT.read_text() + " ".join(read(GITLAB)["latency"]["script"][2:])
    used = set(re.findall(r"(?<=[ (])--[a-z][a-z-]+", script))
    assert {"--margin", "--out", "--annotate", "--base-cmd"} <= used
    assert used <= known


@pytest.fixture
def called(tmp_path: Path) -> Any:
    """Run the action's script with a stand-in for edgekd that keeps its arguments and ends as it is told."""
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi\n'
        f"{sys.executable} -c \"import json,sys; json.dump(sys.argv[1:], open('{tmp_path}/args', 'w'))\" \"$@\"\n"
        f'[ -z "$FAKE_GATE" ] || printf %s "$FAKE_GATE" >{tmp_path}/out/gate.json\n'
        'exit "$FAKE_CODE"\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def call(code: int, gate: dict[str, Any] | None, **changed: str) -> tuple[int, dict[str, str], list[str]]:
        names = read(ACTION)["runs"]["steps"][1]["env"]
        settings = dict.fromkeys(names, "") | {
            "PYTHON": str(fake), "CANDIDATE": "new.onnx", "BASE": "old.onnx", "MARGIN": "3%", "CLOCK": "wall",
            "MAX_MINUTES": "10", "INCONCLUSIVE": "warn", "ENVIRONMENT": "warn", "OUT": str(tmp_path / "out"),
            "FAKE_CODE": str(code), "FAKE_GATE": json.dumps(gate) if gate else "",
            "GITHUB_OUTPUT": str(tmp_path / "outputs"), "PATH": os.environ["PATH"],
        }  # fmt: skip
        done = subprocess.run(["bash", str(SCRIPT)], env=settings | changed, timeout=60, check=False)
        lines = (tmp_path / "outputs").read_text().splitlines()
        return (
            done.returncode,
            dict(line.split("=", 1) for line in lines),
            json.loads((tmp_path / "args").read_text()),
        )

    return call


def test_the_script_hands_on_verdict_ratio_and_exit_code(called: Any) -> None:
    code, outputs, _ = called(1, {"verdict": "FAIL", "ratio": 1.049})
    assert code == 1
    assert (outputs["verdict"], outputs["ratio"], outputs["exit-code"]) == ("FAIL", "1.049", "1")


def test_a_hostile_argument_stays_one_argument(called: Any) -> None:
    hostile = '$(touch pwned) "; exit 0 #'
    _, _, arguments = called(
        0, {"verdict": "PASS", "ratio": 1.0}, CANDIDATE=hostile, ARGUMENTS=f"--seed\n{hostile}\n"
    )
    assert arguments[-3:] == ["--", "old.onnx", hostile]
    assert arguments.count(hostile) == 2
    assert not Path("pwned").exists()


def test_empty_settings_give_no_option(called: Any) -> None:
    _, _, arguments = called(0, {"verdict": "PASS", "ratio": 1.0}, BASE="")
    assert not {"--runtime", "--threads", "--data", "--baseline", ""} & set(arguments)
    assert arguments[-2:] == ["--", "new.onnx"]


def test_a_machine_that_could_not_measure_is_excused_unless_asked(called: Any) -> None:
    gate = {"verdict": "ENVIRONMENT", "ratio": None}
    code, outputs, _ = called(4, gate)
    assert (code, outputs["verdict"], outputs["ratio"]) == (0, "ENVIRONMENT", "")
    assert called(4, gate, ENVIRONMENT="fail")[0] == 4


def test_a_candidate_that_crashes_is_not_excused(called: Any) -> None:
    assert called(4, None)[0] == 4
    assert called(2, None)[0] == 2


def test_an_earlier_verdict_does_not_pass_for_this_one(called: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gate.json").write_text('{"verdict": "PASS", "ratio": 1.0}')
    code, outputs, _ = called(70, None)
    assert (code, outputs["verdict"]) == (70, "")
