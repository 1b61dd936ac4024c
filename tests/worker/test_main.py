from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest

from edgekd import backends
from edgekd.errors import BackendMissing, UsageError
from edgekd.wire import Handler
from edgekd.worker import __main__ as program


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Handler]]:
    """Give what would be served; neither memory nor modules of the test's own process are touched."""
    found: list[Mapping[str, Handler]] = []
    monkeypatch.setattr(program, "serve", found.append)
    monkeypatch.setattr(program, "limit_memory", lambda _: None)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    return found


def test_the_runtime_named_is_imported_before_orders_are_taken(
    served: list[Mapping[str, Handler]], monkeypatch: pytest.MonkeyPatch
):
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(backends, "load", lambda name: loaded.append((name, len(served))))
    program.main(["--memory-mib", "1024", "--runtime", "openvino"])
    assert loaded == [("openvino", 0)]
    assert "open" in served[0]


def test_a_runtime_that_does_not_import_is_left_for_open_to_explain(
    served: list[Mapping[str, Handler]], monkeypatch: pytest.MonkeyPatch
):
    def missing(name: str) -> None:
        raise BackendMissing(name)

    monkeypatch.setattr(backends, "load", missing)
    program.main(["--memory-mib", "1024", "--runtime", "tensorrt"])
    assert served


def test_no_runtime_need_be_named(served: list[Mapping[str, Handler]]):
    program.main(["--memory-mib", "1024"])
    assert served


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--memory-mib"],
        ["--memory-mib", "much"],
        ["--runtime", "openvino"],
        ["--memory-mib", "9", "--runtime"],
        ["--memory-mib", "9", "--model", "x"],
    ],
)
def test_other_arguments_are_refused(served: list[Mapping[str, Handler]], arguments: list[str]):
    with pytest.raises(UsageError, match="--memory-mib"):
        program.main(arguments)
    assert not served
