"""Engines of the runtime `trtexec`: the program builds and times, this adds what a device answers with.

It runs whole series, so that engines cannot take turns within a launch, and on inputs of its own making, so that it
shows no labels. It is a process of its own, as a worker is; a worker has checked the model before.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import edgekd
from edgekd.backends import settled, trtexec
from edgekd.errors import EdgekdError, UsageError
from edgekd.timing import conditions, trust
from edgekd.values.artifact import Artifact
from edgekd.values.latency import Latency, Launch, Protocol
from edgekd.values.model import Engine, Model, Precision, Signature
from edgekd.values.order import OpenReply, RuntimeHealth
from edgekd.values.target import Profile

RUNTIME = "trtexec"
NO_LABELS = "it runs whole series on inputs of its own making, and shows no labels"
_NOT_OURS = (
    "the protocol is trtexec's and not edgekd's: inputs of its own making, and no turns between engines"
)
_FEW = 10  # inferences that show that an engine runs
# The three-operator model of `doctor`: what it answers is not shown, so that only running it can be checked.
_MODEL = Path(edgekd.__file__).with_name("worker") / "health.onnx"


def refuse(engine: Engine, what: str) -> None:
    """Refuse what trtexec cannot do.

    Raises:
        UsageError: the engine is one of trtexec's.

    """
    if engine.runtime == RUNTIME:
        raise UsageError(
            f"trtexec shows no {what}",
            cause="it runs whole series, on inputs of its own making",
            mend="install TensorRT's Python module on the device, and give the runtime tensorrt",
        )


def health(profile: Profile) -> RuntimeHealth:
    """Build and run the three-operator model; trtexec does not show what it answers."""
    version = ""
    try:
        version = ".".join(map(str, trtexec.find().version))
        engine = Engine(model=Model(file=Artifact.of(_MODEL)), runtime=RUNTIME, precision=Precision.FP32)
        _run(engine, profile, launches=1, samples=_FEW, warmup_ms=0)
    except EdgekdError as error:
        problem = f"{error.what}: {error.cause}" if error.cause else error.what
        return RuntimeHealth(name=RUNTIME, version=version, works=False, problem=problem, mend=error.mend)
    return RuntimeHealth(name=RUNTIME, version=version, works=True)


def opened(engine: Engine, signature: Signature, profile: Profile) -> OpenReply:
    """Build an engine and run it a few times; the memory that it takes is the program's own, and not known.

    Raises:
        BuildError: trtexec refuses the model, dies of it or takes too long.
        BackendMissing: there is no trtexec, or none that is known.

    """
    inputs = settled(signature.inputs, engine.shapes or {})
    found = _run(engine, profile, launches=1, samples=_FEW, warmup_ms=0)
    signature = replace(signature, inputs=inputs)
    return OpenReply(signature=signature, open_ms=found.build_s * 1e3, memory_mib=0.0)


def timed(engine: Engine, protocol: Protocol, profile: Profile) -> Latency:
    """Time an engine: as many fresh processes as the protocol has launches, each one series of all its samples.

    Times are those of CUDA's events, and stand for the CPU times, too, which are not known. They are never trusted
    as what was timed by our own protocol is.

    Raises:
        BuildError: trtexec refuses the model, dies of it or takes too long.
        BackendMissing: there is no trtexec, or none that is known.
        UsageError: the protocol asks for what trtexec cannot do.

    """
    if protocol.period_ms or protocol.soak_s:
        raise UsageError(
            "trtexec times inferences back to back only",
            cause="the budget asks for a duty cycle, or for a soak",
            mend="leave sustained_minutes and period_ms out, or give the runtime tensorrt",
        )
    before = _counters()
    found = _run(
        engine,
        profile,
        launches=protocol.launches,
        samples=protocol.blocks * protocol.samples,
        warmup_ms=round(protocol.warmup_ms),
    )
    load = conditions.load_between(before, _counters())
    seen = conditions.conditions(load)
    # The program's version and the flags that move a number: under others, it is another number.
    words = " ".join((found.version, *found.time_flags))
    seen = replace(seen, software=replace(seen.software, runtimes={**seen.software.runtimes, RUNTIME: words}))
    sizes = tuple(size for launch in found.launch_sizes for size in _even(launch, protocol.blocks))
    judged = trust.judge(
        found.samples_ms,
        found.samples_ms,
        (),
        block_sizes=sizes,
        launches=protocol.launches,
        load=load,
        cores=seen.hardware.cores,
        threads=engine.threads,
    )
    return Latency(
        samples_ms=found.samples_ms,
        cpu_ms=found.samples_ms,
        block_sizes=sizes,
        launches=(Launch(open_ms=found.build_s * 1e3, memory_mib=0.0),) * protocol.launches,
        protocol=protocol,
        conditions=seen,
        trust=trust.limited(judged, _NOT_OURS),
    )


def _run(engine: Engine, profile: Profile, *, launches: int, samples: int, warmup_ms: int) -> trtexec.Times:
    for file in engine.model.files:
        file.verified()
    return trtexec.time_with_trtexec(
        engine,
        launches=launches,
        samples=samples,
        warmup_ms=warmup_ms,
        memory_mib=profile.memory_mib,
        timeout_s=profile.build_timeout_s,
    )


def _counters() -> conditions.Reading:
    """Read the counters; what trtexec took of the processor is our own."""
    found, children = conditions.read_counters(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return replace(found, own_s=found.own_s + children.ru_utime + children.ru_stime)


def _even(size: int, parts: int) -> Iterator[int]:
    """Cut a series into turns that differ by one at most."""
    for at in range(parts):
        yield size * (at + 1) // parts - size * at // parts
