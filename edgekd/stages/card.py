"""The model card: the manifest in words, for whoever receives the bundle."""

from __future__ import annotations

import html
from collections.abc import Iterable

from edgekd import runner
from edgekd.values.bundle import Deployment, LatencySummary, Manifest

_UNSEEN = "recognition"  # is asked about other classes than those it learnt from


def model_card(manifest: Manifest) -> str:
    """Write the card in Markdown; names from outside can neither break a table nor carry markup."""
    parts = (
        _opening(manifest),
        _table("Measured", _DEPLOYMENT_HEAD, (_deployment_row(one) for one in manifest.deployments)),
        _measured_how(manifest.accepted.latency),
        _use(manifest),
        _table("Made from", ("what", "value"), _origins(manifest)),
    )
    return "\n\n".join(parts) + "\n"


_DEPLOYMENT_HEAD = (
    "runtime", "precision", "threads", "file", "p50 ms", "p90 ms", "p99 ms", "p99 at most, ms", "accuracy",
)  # fmt: skip


def _opening(manifest: Manifest) -> str:
    accuracy, accepted = manifest.accuracy, manifest.accepted
    limits = ", ".join(f"{name} {limit:.3f} ms" for name, limit in manifest.limits_ms.items())
    modes = "".join(f"- Latency, {name}: {_bounded(one)}.\n" for name, one in accepted.modes.items())
    energy = f"- Energy: {_safe(accepted.energy.words)}.\n" if accepted.energy else ""
    drop = (accuracy.teacher - accuracy.student) * 100
    return (
        f"# {_safe(manifest.name)}\n\n"
        f"A {_safe(manifest.task)} model{_for_classes(manifest)}, distilled and accepted by edgekd: "
        f"`{_code(str(manifest.spec))}`.\n\n"
        f"- Accepted file: `{accepted.files[0]}` on {accepted.name}, {_count(accepted.threads, 'thread')}.\n"
        f"- Latency: {_bounded(accepted.latency)}; limits: {limits}.\n"
        f"{modes}{energy}"
        f"- {_safe(accuracy.metric)} on {accuracy.test_samples} test samples: {accuracy.student:.4f} "
        f"({_points(drop)} the teacher's {accuracy.teacher:.4f})."
    )


def _measured_how(latency: LatencySummary) -> str:
    hardware, software = latency.conditions.hardware, latency.conditions.software
    reasons = f": {'; '.join(latency.trust.reasons)}" if latency.trust.reasons else ""
    p99 = latency.p99_disturbed
    disturbed = f" (p99 with them {p99:.3f} ms)" if latency.preempted and p99 is not None else ""
    return (
        f"Wall-clock time of one inference at batch 1, input and output copies included, in {latency.samples} "
        f"samples over {_count(latency.protocol.launches, 'fresh process', 'fresh processes')} on "
        f"{_safe(hardware.processor)} ({hardware.cores} cores, {_safe(software.system)} "
        f"{_safe(software.kernel)}); {latency.preempted} more, which lost the core to another process by the "
        f"scheduler's own count, are left out{disturbed}. Trust: {latency.trust.verdict.value}{_safe(reasons)}. "
        f'"p99 at most" is an upper confidence bound at {latency.confidence:.0%} that assumes no distribution. '
        "On another machine, measure again: `edgekd verify` checks the files and the numerics, and "
        "`python run.py` with `--benchmark 500` times this one."
    )


def _use(manifest: Manifest) -> str:
    runtimes = " or ".join(dict.fromkeys(f"`{one.runtime}`" for one in manifest.deployments))
    classes = ", ".join(_safe(name) for name in manifest.classes[:50])
    more = f", and {len(manifest.classes) - 50} more" if len(manifest.classes) > 50 else ""  # noqa: PLR2004
    what = "Learnt from the classes" if manifest.task == _UNSEEN else "Classes:"
    named = f"\n\n{what} {classes}{more}." if manifest.classes else ""
    needs = "numpy, Pillow" if runner.KINDS.get(manifest.task, ("",))[0] == "from_image" else "numpy"
    return f"## Use\n\nNeeds Python 3.10 or newer, {needs} and {runtimes}.\n\n{_calls(manifest)}{named}"


def _calls(manifest: Manifest) -> str:
    if manifest.task != "classification":
        return "```sh\npython run.py --help\n```"
    return (
        "```sh\npython run.py --image some.png --top 3\n```\n\n"
        "```python\nfrom run import Student, classify  # images: uint8, (N, H, W, C)\n"
        'labels, probabilities = classify(Student("path/of/this/folder"), images)\n```'
    )


def _for_classes(manifest: Manifest) -> str:
    counted = manifest.classes and manifest.task != _UNSEEN
    return f" for {len(manifest.classes)} classes" if counted else ""


def _origins(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for what in ("teacher", "data", "job", "calibration"):
        yield f"{what} sha256", f"`{_code(getattr(manifest, f'{what}_sha256')) or 'none'}`"
    yield "seed", str(manifest.seed)
    if manifest.command:
        yield "command", f"`{_code(manifest.command)}`"
    for name, version in manifest.tools.items():
        yield _safe(name), _safe(version)


def _deployment_row(deployment: Deployment) -> tuple[str, ...]:
    latency = deployment.latency
    upper = "too few samples" if latency.p99_upper is None else f"{latency.p99_upper:.3f}"
    times = (f"{value:.3f}" for value in (latency.p50, latency.p90, latency.p99))
    return (
        deployment.runtime,
        deployment.precision.value,
        str(deployment.threads),
        f"`{deployment.files[0]}`",
        *times,
        upper,
        f"{deployment.accuracy:.4f}",
    )


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bounded(latency: LatencySummary) -> str:
    if latency.p99_upper is None:
        return f"p50 {latency.p50:.3f} ms, p99 {latency.p99:.3f} ms"
    return f"p50 {latency.p50:.3f} ms, p99 at most {latency.p99_upper:.3f} ms at {latency.confidence:.0%} confidence"


def _points(drop: float) -> str:
    return f"{abs(drop):.2f} points {'below' if drop >= 0 else 'above'}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _safe(text: str) -> str:
    """Make text from outside inert in Markdown: no markup, no link, no second line, no second cell."""
    line = " ".join(html.escape(text, quote=False).split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#!" else letter for letter in line)


def _code(text: str) -> str:
    """Make text fit between backticks on one line of a table."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())
