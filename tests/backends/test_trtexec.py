"""The path through `trtexec`, on a script that behaves as its sources say: no GPU, and no figure of one."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.backends import trtexec
from edgekd.errors import BackendMissing, BuildError, DeviceError
from edgekd.values.artifact import Artifact
from edgekd.values.model import Engine, Model, Precision
from tests.contracts import models

# As `--help` of each lists them (samples/common/sampleOptions.cpp of TensorRT 10 and 11).
KNOWN = {
    100300: "--onnx --saveEngine --loadEngine --skipInference --stronglyTyped --noTF32 --exposeDMA --useSpinWait "
    "--noDataTransfers --useCudaGraph --fp16 --int8 --memPoolSize --shapes --iterations --duration --warmUp --exportTimes",
    110100: "--onnx --saveEngine --loadEngine --skipInference --stronglyTyped --noTF32 --exposeDMA --includeDataTransfers "
    "--noDataTransfers --noSpinWait --noCudaGraph --memPoolSize --shapes --iterations --duration --warmUp --exportTimes",
}
SCRIPT = """#!{python}
import json, os, sys
version, known = {version}, {known!r}.split()
print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{{version}}] # " + " ".join(sys.argv))
given = dict(part.partition("=")[::2] for part in sys.argv[1:])
with open({journal!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
asked = os.environ.get("FAKE_TRTEXEC", "")
if "--help" in given:
    for flag in known:
        print(f"  {{flag}}=spec    what it does (default = off)")
    sys.exit(0)
unknown = [flag for flag in given if flag not in known]
if unknown:
    print("[E] Unknown option:", *unknown)
    sys.exit(1)
if "--onnx" in given:
    if asked == "refuse":
        print("[I] all is well so far")
        print("[E] [TRT] ModelImporter.cpp: While parsing node number 3 [Foo]")
        sys.exit(1)
    if asked != "no-engine":
        with open(given["--saveEngine"], "wb") as file:
            file.write(b"engine")
    sys.exit(0)
copies = "--includeDataTransfers" in given if version >= 110000 else "--noDataTransfers" not in given
times = []
for at in range(int(given["--iterations"])):
    h2d, compute, d2h = (0.05 if copies else 0.0), 0.23 + at / 1e6, (0.02 if copies else 0.0)
    times.append(dict(startEnqMs=at, endEnqMs=at + 0.1, startH2dMs=at, endH2dMs=at + h2d, startComputeMs=at + h2d,
        endComputeMs=at + h2d + compute, startD2hMs=at, endD2hMs=at, h2dMs=h2d, computeMs=compute, d2hMs=d2h,
        latencyMs=h2d + compute + d2h))
print("[I] GPU Compute Time: min = 9.99 ms, max = 9.99 ms, mean = 9.99 ms, median = 9.99 ms")
if asked != "no-times":
    with open(given["--exportTimes"], "w") as file:
        file.write("[{{" if asked == "torn" else json.dumps(times))
if asked == "change":
    with open(given["--loadEngine"], "ab") as file:
        file.write(b"!")
"""


@pytest.fixture(params=tuple(KNOWN))
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def install(folder: Path, version: int, journal: Path, known: str | None = None) -> str:
    """Write a trtexec of a version, and return the PATH that has it."""
    folder.mkdir(exist_ok=True)
    path = folder / "trtexec"
    listed = KNOWN.get(version, KNOWN[110100]) if known is None else known
    path.write_text(SCRIPT.format(python=sys.executable, version=version, known=listed, journal=str(journal)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@pytest.fixture
def place(tmp_path: Path, version: int, journal: Path) -> str:
    return install(tmp_path / "bin", version, journal)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return models.engine(models.conv_net(tmp_path / "m.onnx"), "tensorrt")


def calls(journal: Path) -> list[list[str]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def test_samples_are_single_inferences_with_copies_in_both_versions(engine: Engine, place: str):
    found = trtexec.time_with_trtexec(engine, launches=2, samples=50, path=place)
    assert found.launch_sizes == (50, 50)
    assert len(found.samples_ms) == len(found.compute_ms) == 100
    assert found.samples_ms[0] == pytest.approx(0.30)
    assert found.copy_in_ms[0] == 0.05  # 11 leaves them out unless it is told
    assert max(found.compute_ms) < 9  # what it prints is not read


def test_the_flags_are_pinned_for_each_version_and_stored(
    engine: Engine, place: str, version: int, journal: Path
):
    found = trtexec.time_with_trtexec(engine, launches=1, samples=10, memory_mib=512, path=place)
    old = version < 110000
    assert found.version == ("10.3.0" if old else "11.1.0")
    assert set(found.build_flags) == {
        "--skipInference", "--noTF32", "--memPoolSize=workspace:512", *(["--stronglyTyped"] if old else []),
    }  # fmt: skip
    common = {"--exposeDMA", "--warmUp=200", "--iterations=10", "--duration=0"}
    own = {"--useSpinWait"} if old else {"--includeDataTransfers", "--noCudaGraph"}
    assert set(found.time_flags) == common | own
    _, build, run = calls(journal)
    assert set(found.build_flags) < set(build)
    assert set(found.time_flags) < set(run)
    assert not {"--fp16", "--int8"} & {*build, *run}


def test_an_engine_is_built_once_in_a_private_folder_and_never_kept(
    engine: Engine, place: str, journal: Path
):
    trtexec.time_with_trtexec(engine, launches=3, samples=5, path=place)
    _, build, *runs = calls(journal)
    plan = next(one for one in build if one.startswith("--saveEngine=")).partition("=")[2]
    assert [f"--loadEngine={plan}" in run for run in runs] == [True] * 3
    assert not Path(plan).parent.exists()


def test_dynamic_inputs_get_the_one_shape(tmp_path: Path, place: str, journal: Path):
    path = models.conv_net(tmp_path / "d.onnx", batch="n")
    engine = models.engine(path, "tensorrt", shapes={"image": (4, 3, 8, 8)})
    trtexec.time_with_trtexec(engine, launches=1, samples=5, path=place)
    _, build, run = calls(journal)
    assert "--shapes=image:4x3x8x8" in build
    assert "--shapes=image:4x3x8x8" in run
    hostile = replace(engine, shapes={"image:1x1,x": (1,)})
    with pytest.raises(BuildError, match="cannot be told"):
        trtexec.time_with_trtexec(hostile, path=place)


@pytest.mark.parametrize(
    "case",
    [
        ("refuse", BuildError, "cannot compile m.onnx"),
        ("no-engine", BuildError, "made no engine"),
        ("no-times", DeviceError, "exported no times"),
        ("torn", DeviceError, "cannot be read"),
        ("change", DeviceError, "changed between two launches"),
    ],
    ids=lambda case: case[0],
)
def test_what_goes_wrong_is_said(
    engine: Engine,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, type[DeviceError | BuildError], str],
):
    ask, kind, what = case
    monkeypatch.setenv("FAKE_TRTEXEC", ask)
    with pytest.raises(kind, match=what) as caught:
        trtexec.time_with_trtexec(engine, launches=2, samples=5, path=place)
    if ask == "refuse":
        assert caught.value.cause == "[E] [TRT] ModelImporter.cpp: While parsing node number 3 [Foo]"


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_a_label_that_the_graph_does_not_have_is_refused(engine: Engine, precision: Precision):
    with pytest.raises(BuildError, match="cannot be made of"):
        trtexec.time_with_trtexec(replace(engine, precision=precision))


def test_a_missing_program_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(trtexec, "PLACES", (tmp_path / "nowhere",))
    with pytest.raises(BackendMissing, match="no trtexec") as caught:
        trtexec.find(str(tmp_path))
    assert "libnvinfer-bin" in caught.value.mend


def test_it_is_found_where_jetpack_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, journal: Path):
    monkeypatch.setattr(trtexec, "PLACES", (Path(install(tmp_path / "usr", 100300, journal)),))
    found = trtexec.find(os.devnull)
    assert found.version == (10, 3, 0)
    assert "--exportTimes" in found.known


@pytest.mark.parametrize(
    "case",
    [
        (120000, None, "only 10 and 11"),
        (8602, None, "say its version"),
        (110100, "--onnx --skipInference --noTF32 --exposeDMA", "--includeDataTransfers, --noCudaGraph"),
        (100300, "--onnx --skipInference --noTF32 --exposeDMA --useSpinWait", "--stronglyTyped"),
    ],
    ids=lambda case: str(case[0]),
)
def test_a_version_whose_flags_are_not_known_is_refused(
    engine: Engine, tmp_path: Path, journal: Path, case: tuple[int, str | None, str]
):
    version, known, cause = case
    place = install(tmp_path / "bin", version, journal, known)
    with pytest.raises(BackendMissing) as caught:
        trtexec.time_with_trtexec(engine, path=place)
    assert cause in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[1]", '[{"h2dMs": 1}]', '[{"h2dMs":0,"computeMs":-1,"d2hMs":0,"latencyMs":1}]',
     '[{"h2dMs":0,"computeMs":NaN,"d2hMs":0,"latencyMs":1}]', '[{"h2dMs":0,"computeMs":1e999,"d2hMs":0,"latencyMs":1}]',
     "[" * 100_000],
)  # fmt: skip
def test_times_that_are_none_are_refused(text: str):
    with pytest.raises(DeviceError, match="cannot be read"):
        trtexec.read_times(text)


def test_the_times_of_older_versions_with_more_fields_are_read():
    text = '[ { "startEnqMs" : 1, "h2dMs" : 0.1, "computeMs" : 2, "d2hMs" : 0.1, "latencyMs" : 2.2, "endToEndMs" : 4 } ]'
    assert trtexec.read_times(text) == [{"h2dMs": 0.1, "computeMs": 2.0, "d2hMs": 0.1, "latencyMs": 2.2}]


def test_a_model_in_its_own_precision_is_timed(tmp_path: Path, place: str):
    path = models.quantized_net(tmp_path / "q.onnx")
    model = Model(file=Artifact.of(path), precision=Precision.INT8)
    engine = Engine(model=model, runtime="tensorrt", precision=Precision.INT8)
    assert trtexec.time_with_trtexec(engine, launches=1, samples=5, path=place).launch_sizes == (5,)
