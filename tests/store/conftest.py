"""A trial with a latency, to be logged."""

from __future__ import annotations

import pytest

from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.latency import Latency, Protocol
from edgekd.values.model import Precision
from edgekd.values.student import StageSpec, StudentSpec
from edgekd.values.trial import Proposal, Trial, Verdict


@pytest.fixture
def trial() -> Trial:
    stage = StageSpec(width=8, depth=1, kernel=3, expansion=1.0)
    spec = StudentSpec(family="residual", resolution=8, stem=8, stages=(stage,))
    conditions = Conditions(
        hardware=Hardware(machine="x86_64", processor="p", cores=2, memory_mib=1024, features=()),
        software=Software(system="Linux", kernel="6", python="3.11", runtimes={}, governor="unknown"),
        load=Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0),
    )
    latency = Latency(
        samples_ms=(0.1, 0.2),
        cpu_ms=(0.1, 0.2),
        protocol=Protocol(),
        conditions=conditions,
        trust=Trust(verdict=TrustVerdict.GOOD),
    )
    proposal = Proposal(spec=spec, runtime="openvino", precision=Precision.INT8)
    return Trial(proposal=proposal, verdict=Verdict.MEASURED, latency=latency)
