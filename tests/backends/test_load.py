import sys

import pytest

from edgekd import backends
from edgekd.errors import BackendMissing, UsageError


def test_a_missing_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "edgekd.backends.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendMissing) as caught:
        backends.load("openvino")
    assert caught.value.exit_code == 4
    assert "pip install openvino" in caught.value.mend


def test_an_unknown_runtime_suggests_the_known_one():
    with pytest.raises(UsageError) as caught:
        backends.load("openvinoo")
    assert "did you mean 'openvino'" in caught.value.mend


def test_every_listed_backend_has_the_whole_shape():
    for name in backends.NAMES:
        backend = backends.load(name)
        assert {"version", "precisions", "open"} <= set(dir(backend))
