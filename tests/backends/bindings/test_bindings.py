"""Every use of TensorRT that the backend makes, held against the real bindings of three versions.

The bindings are NVIDIA's own wheels; behind them are stub libraries, so that nothing runs. What is checked is that
each class, member and signature exists as it is used. It cannot pass by reading nothing: what is found must be what
`USED` lists, neither more nor less, and a use that was made wrong on purpose must be reported.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections import Counter
from collections.abc import Iterator
from enum import EnumMeta
from pathlib import Path
from typing import Any

import pytest

from tests.backends import fake_tensorrt
from tests.backends.bindings import uses, wheels
from tests.backends.bindings.signatures import signatures

BACKENDS = Path(__file__).parents[3] / "edgekd" / "backends"
FILES = ("tensorrt.py", "trt_build.py", "trt_session.py")
USED = {
    "": (
        "Builder BuilderFlag DataType DeviceType Dims EngineInspector IBuilderConfig ICudaEngine IExecutionContext "
        "IHostMemory ILayer ILogger INetworkDefinition IOptimizationProfile IProfiler ITensor ITimingCache "
        "LayerInformationFormat MemoryPoolType NetworkDefinitionCreationFlag OnnxParser ParserError "
        "ProfilingVerbosity Runtime TensorIOMode TensorLocation __version__"
    ),
    "Builder": (
        "build_serialized_network create_builder_config create_network create_optimization_profile num_DLA_cores"
    ),
    "BuilderFlag": "GPU_FALLBACK TF32",
    "DataType": "BOOL FLOAT HALF INT32 INT64 INT8 UINT8",
    "DeviceType": "DLA",
    "EngineInspector": "execution_context get_engine_information",
    "IBuilderConfig": (
        "DLA_core add_optimization_profile can_run_on_DLA clear_flag create_timing_cache default_device_type "
        "get_timing_cache profiling_verbosity set_flag set_memory_pool_limit set_timing_cache"
    ),
    "ICudaEngine": (
        "create_engine_inspector create_execution_context get_tensor_dtype get_tensor_location get_tensor_mode "
        "get_tensor_name get_tensor_shape num_io_tensors"
    ),
    "IExecutionContext": "execute_async_v3 get_tensor_shape profiler set_input_shape set_tensor_address",
    "ILayer": "name",
    "ILogger": "ERROR INTERNAL_ERROR Severity WARNING __init__ log",
    "INetworkDefinition": "get_input get_layer num_inputs num_layers num_outputs",
    "IOptimizationProfile": "set_shape",
    "IProfiler": "__init__ report_layer_time",
    "ITensor": "dtype is_shape_tensor name shape",
    "ITimingCache": "serialize",
    "LayerInformationFormat": "JSON",
    "MemoryPoolType": "TACTIC_DRAM WORKSPACE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "OnnxParser": "get_error num_errors parse parse_from_file",
    "ParserError": "desc node_name node_operator",
    "ProfilingVerbosity": "DETAILED",
    "Runtime": "DLA_core deserialize_cuda_engine",
    "TensorIOMode": "INPUT",
    "TensorLocation": "DEVICE",
}
# Attributes of our own values that some class of TensorRT happens to have too: the only ones that may stay untyped.
OURS = {
    "tensorrt.py": "FP16 INT8 file name precision read value write",  # of Precision, Artifact, Engine, Store
    "trt_build.py": "append file name shape",  # of deque, Artifact, Path, TensorSpec
    "trt_session.py": "append device_memory dtype itemsize name shape",  # of list, Cuda, arrays, TensorSpec
    "trt_engine.py": "nbytes shape",  # of arrays
}
RUNNER = BACKENDS.parent / "runner" / "trt_engine.py"  # of a bundle: it is handed the module as `trt`


def handed(source: str) -> str:
    """Return the functions of a file that are handed TensorRT's module, under the name `trt`."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    taking = [node for node in functions if any(one.arg == "trt" for one in node.args.args)]
    return "\n\n".join(ast.get_source_segment(source, node) or "" for node in taking)


SOURCES = {name: (BACKENDS / name).read_text(encoding="utf-8") for name in FILES}
SOURCES["trt_engine.py"] = handed(RUNNER.read_text(encoding="utf-8"))


@pytest.fixture(scope="session", params=tuple(wheels.VERSIONS))
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give what one version of the bindings has."""
    found = wheels.look_at(request.param, tmp_path_factory.mktemp("bindings"))
    if found is None and request.param in wheels.REQUIRED and os.environ.get("CI"):
        pytest.fail(f"CI must have the bindings of {request.param}: run {wheels.__file__}")
    if found is None:
        pytest.skip(f"no wheel of TensorRT's bindings {request.param} for this Python, or no C compiler")
    return found


def readers(bindings: dict[str, Any], sources: dict[str, str]) -> dict[str, uses.Reader]:
    """Read every file."""
    texts = list(sources.values())
    ours, added = uses.subclasses(texts), uses.additions(texts)
    return {
        name: uses.Reader(bindings=bindings, ours=ours, added=added).read(text)
        for name, text in sources.items()
    }


def faults(bindings: dict[str, Any], sources: dict[str, str]) -> list[str]:
    """Return all that is wrong with the sources for these bindings."""
    found = readers(bindings, sources)
    used = {(use.owner, use.name) for reader in found.values() for use in reader.uses}
    listed = {(owner, name) for owner, names in USED.items() for name in names.split()}
    return [
        *(
            f"{file}:{use.line} {use.fault}"
            for file, reader in found.items()
            for use in reader.uses
            if use.fault
        ),
        *(f"used and not listed: {'.'.join(one)}" for one in sorted(used - listed)),
        *(f"listed and not used: {'.'.join(one)}" for one in sorted(listed - used)),
        *(
            f"{file}:{line} {name} on something untyped"
            for file, reader in found.items()
            for name, line in reader.untyped
            if name not in OURS[file].split()
        ),
    ]


def test_every_use_of_tensorrt_exists_in_these_bindings(bindings: dict[str, Any]):
    assert faults(bindings, SOURCES) == []


def test_the_bindings_were_really_read(bindings: dict[str, Any]):
    assert bindings["version"] in wheels.VERSIONS
    assert len(bindings["classes"]) > 100
    assert len(bindings["classes"]["IBuilderConfig"]) > 30
    eleven = bindings["version"].startswith("11.")
    flags = bindings["classes"]["BuilderFlag"]
    assert ("FP16" in flags, "INT8" in flags) == (not eleven, not eleven)
    assert ("IInt8Calibrator" in bindings["classes"]) is not eleven


def test_nearly_every_call_is_held_against_a_signature(bindings: dict[str, Any]):
    """Count what is checked, so that a reader gone blind is noticed."""
    found = readers(bindings, SOURCES)
    kinds = Counter(
        bindings["classes"][use.owner][use.name]["kind"] if use.owner else "class"
        for reader in found.values()
        for use in reader.uses
    )
    least = {"class": 70, "method": 43, "property": 20, "member": 17, "value": 3}
    assert all(kinds[kind] >= count for kind, count in least.items()), kinds


def test_the_runner_reaches_tensorrt_only_where_it_is_read():
    """Hold the runner to one way: the module is a parameter called `trt` of functions that are read here."""
    text = RUNNER.read_text(encoding="utf-8")
    assert SOURCES["trt_engine.py"].count("trt.") == text.count("trt.") > 12
    assert text.count("trt: Any") == len(re.findall(r"\btrt: Any", SOURCES["trt_engine.py"]))


def test_only_these_files_import_tensorrt():
    assert [path.relative_to(BACKENDS).as_posix() for path in uses.importers(BACKENDS.parent)] == list(FILES)


def test_no_name_of_ours_is_excused_without_need(bindings: dict[str, Any]):
    found = readers(bindings, SOURCES)
    excused = {file: {name for name, _ in reader.untyped} for file, reader in found.items()}
    assert all(excused[file] <= set(names.split()) for file, names in OURS.items())
    if bindings["version"].startswith("10.14"):
        assert excused == {file: set(names.split()) for file, names in OURS.items()}


# Each is a change to a copy of the source, and what must be said of it; after the colon, in which versions.
MUTATIONS = [
    ("trt_engine.py", "config.clear_flag(trt.BuilderFlag.TF32)", "config.set_flag(trt.BuilderFlag.FP16)",
     "BuilderFlag has no FP16", "11"),
    ("trt_engine.py", "engine.num_io_tensors", "engine.num_bindings", "ICudaEngine has no num_bindings", "10 11"),
    ("trt_engine.py", "context.execute_async_v3(cuda.stream)", "context.execute_async_v3()",
     "needs 'stream_handle'", "10 11"),
    ("trt_build.py", "config.clear_flag(trt.BuilderFlag.TF32)", "config.set_flag(trt.BuilderFlag.FP16)",
     "BuilderFlag has no FP16", "11"),
    ("trt_build.py", "config.clear_flag(trt.BuilderFlag.TF32)", "config.set_flag(trt.BuilderFlag.INT8)",
     "BuilderFlag has no INT8", "11"),
    ("trt_build.py", "CreationFlag.STRONGLY_TYPED", "CreationFlag.EXPLICIT_BATCH",
     "NetworkDefinitionCreationFlag has no EXPLICIT_BATCH", "11"),
    ("trt_build.py", "    plan: trt.IHostMemory | None", "    config.set_calibration_profile(None)\n    plan: trt.IHostMemory | None",
     "IBuilderConfig has no set_calibration_profile", "11"),
    ("trt_build.py", "    plan: trt.IHostMemory | None", "    config.int8_calibrator = None\n    plan: trt.IHostMemory | None",
     "IBuilderConfig has no int8_calibrator", "11"),
    ("trt_build.py", "builder.num_DLA_cores < 1", "builder.platform_has_fast_fp16",
     "Builder has no platform_has_fast_fp16", "11"),
    ("trt_session.py", "loaded.num_io_tensors", "loaded.num_bindings", "ICudaEngine has no num_bindings", "10 11"),
    ("trt_session.py", "loaded.num_io_tensors", "loaded.device_memory_size", "ICudaEngine has no device_memory_size", "11"),
    ("trt_session.py", "context.execute_async_v3(self._stream)", "context.execute_v2([self._stream])",
     "used and not listed: IExecutionContext.execute_v2", "10 11"),
    ("trt_session.py", "context.execute_async_v3(self._stream)", "context.enqueue_v2(self._stream)",
     "IExecutionContext has no enqueue_v2", "10 11"),
    ("trt_session.py", "context.execute_async_v3(self._stream)", "context.execute_async_v3()",
     "needs 'stream_handle'", "10 11"),
    ("trt_build.py", "config.set_timing_cache(cache, False)", "config.set_timing_cache(cache)",
     "needs 'ignore_mismatch'", "10 11"),
    ("trt_build.py", "config.set_timing_cache(cache, False)", "config.set_timing_cache(cache, ignore=False)",
     "takes no 'ignore'", "10 11"),
    ("trt_build.py", "build_serialized_network(network, config)", "build_serialized_network(config, network)",
     "takes a INetworkDefinition for 'network', not a IBuilderConfig", "10 11"),
    ("trt_build.py", "build_serialized_network(network, config)", "build_engine(network, config)",
     "Builder has no build_engine", "10 11"),
    ("trt_build.py", "trt.OnnxParser(network, log)", "trt.OnnxParser(network)", "needs 'logger'", "10 11"),
    ("trt_build.py", "trt.OnnxParser(network, log)", "trt.CaffeParser()", "the module has no CaffeParser", "10 11"),
    ("trt_build.py", "builder.num_DLA_cores < 1", "builder.num_DLA_cores() < 1", "is called, and is a property", "10 11"),
    ("trt_build.py", "    config.DLA_core = 0", "    builder.num_DLA_cores = 1", "cannot be set", "10 11"),
    ("trt_build.py", "def log(self, severity: trt.ILogger.Severity, msg: str)", "def log(self, level: trt.ILogger.Severity, msg: str)",
     "our log takes", "10 11"),
    ("trt_build.py", "config: trt.IBuilderConfig = builder.create_builder_config()", "config = made(builder)",
     "on something untyped", "10 11"),
    ("trt_build.py", "config.clear_flag(trt.BuilderFlag.TF32)", 'getattr(config, "set_flag")(1)',
     "getattr on something untyped", "10 11"),
    ("trt_session.py", "context.profiler = clock", "pass", "listed and not used: IExecutionContext.profiler", "10 11"),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one[2].split("\n")[0][:60])
def test_a_use_made_wrong_on_purpose_is_reported(bindings: dict[str, Any], mutation: tuple[str, ...]):
    file, old, new, expected, majors = mutation
    assert old in SOURCES[file]
    found = faults(bindings, {**SOURCES, file: SOURCES[file].replace(old, new)})
    if bindings["version"].split(".")[0] in majors.split():
        assert any(expected in one for one in found), found
    assert found  # a use that is not listed is reported even where it exists


def test_the_fake_has_nothing_that_the_real_one_has_not(bindings: dict[str, Any]):
    """Hold the stand-in of our own tests to the names, members and parameters of the real bindings."""
    checked = 0
    for owner, name, member in fake_members():
        real = bindings["classes"].get(owner, {}).get(name)
        assert real is not None, f"{owner}.{name}"
        if inspect.isfunction(member):
            own = [one for one in inspect.signature(member).parameters if one != "self"]
            overloads = signatures(real["doc"], name)
            assert any(
                own == [one.name for one in overload.parameters][: len(own)] for overload in overloads
            ), name
            checked += 1
    assert checked > 30


def fake_members() -> Iterator[tuple[str, str, object]]:
    """Yield every public member of the fake's public classes."""
    for owner, cls in vars(fake_tensorrt).items():
        if not inspect.isclass(cls) or owner.startswith("_") or cls.__module__ != fake_tensorrt.__name__:
            continue
        members = cls.__members__ if isinstance(cls, EnumMeta) else vars(cls)
        for name, member in members.items():
            if not name.startswith("_"):
                yield owner, name, member
        for name in getattr(cls, "_settable", ()):
            yield owner, name, None
