"""What a loss costs, forward and backward, against a loop body that writes the same formula out by hand.

    .venv/bin/python tools/bench/losses.py [--rounds 30] [NAME ...]

Prints JSON. Logits are (256, 100), maps (256, 64, 8, 8), pooled features (256, 64). The two take turns in each round,
each as often as fills 20 ms of process CPU time, on one thread unless OMP_NUM_THREADS says otherwise; a ratio is the
median over the rounds. Both must give the same value, to 1e-4 in fp32. Adapters are left out on both sides. `around` is
what `total_loss` adds to a loss, whichever: casts, weight, sum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - after the number of threads is set
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgekd.distillation.knowledge import Batch, Knowledge, total_loss  # noqa: E402
from edgekd.distillation.losses import LOSSES  # noqa: E402

BATCH, CLASSES = 256, 100
SECONDS = 0.02  # of each side, in each round
BAR = 1.5

Body = Callable[[Tensor, Tensor, Batch], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="what a loss costs")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    assert set(BODIES) == set(LOSSES), set(BODIES) ^ set(LOSSES)
    names = arguments.names or list(BODIES)
    found = {name: measured(name, arguments.rounds) for name in names}
    worst = max(found, key=lambda name: found[name]["ratio"])
    report = {
        "schema_version": 1,
        "bench": "losses",
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
        "losses": found,
        "around": around(arguments.rounds),
        "worst": {"name": worst, "ratio": found[worst]["ratio"]},
        "bars": {"ratio": f"<= {BAR}"},
        "passed": all(one["ratio"] <= BAR for one in found.values()),
    }
    print(json.dumps(report, indent=1))


def measured(name: str, rounds: int) -> dict[str, float]:
    student, teacher, batch = inputs(name)
    settings = {"eta": 9.0} if name in ("ail", "aht") else {}
    ours = partial(LOSSES[name].loss, **settings) if settings else LOSSES[name].loss
    steps = {
        "ours": partial(step, ours, student, teacher, batch),
        "hand": partial(step, BODIES[name], student, teacher, batch),
    }
    values = {kind: float(run()) for kind, run in steps.items()}
    assert abs(values["ours"] - values["hand"]) <= 1e-4 * abs(values["hand"]) + 1e-6, (name, values)
    times = {kind: max(1, round(SECONDS / _seconds(run, 1))) for kind, run in steps.items()}
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(rounds):
        for kind in ("ours", "hand") if number % 2 else ("hand", "ours"):
            found[kind].append(_seconds(steps[kind], times[kind]) * 1e3)
    return {
        "ours_ms": round(statistics.median(found["ours"]), 4),
        "hand_ms": round(statistics.median(found["hand"]), 4),
        "ratio": round(statistics.median(a / b for a, b in zip(found["ours"], found["hand"])), 3),
    }


def around(rounds: int) -> dict[str, float]:
    """Time the smallest loss alone and in a total."""
    student, teacher, batch = inputs("mse")
    one = Knowledge(name="mse", loss=LOSSES["mse"].loss)

    def total(s: Tensor, t: Tensor, b: Batch) -> Tensor:
        return total_loss((one,), nn.ModuleDict(), {"logits": s}, {"logits": t}, b)

    runs = [partial(step, loss, student, teacher, batch) for loss in (total, one.loss)]
    gaps = [_seconds(runs[0], 200) - _seconds(runs[1], 200) for _ in range(rounds)]
    return {"added_ms": round(statistics.median(gaps) * 1e3, 4)}


def step(loss: Body, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    student.grad = None
    value = loss(student, teacher, batch)
    value.backward()
    return value.detach()


def _seconds(run: Callable[[], Tensor], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        run()
    return max((time.process_time() - start) / times, 1e-7)


# ---- inputs


def inputs(name: str) -> tuple[Tensor, Tensor, Batch]:
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (BATCH,))
    batch = Batch(labels=labels)
    if name in MAPS:
        student, teacher = torch.randn(BATCH, 64, 8, 8), torch.randn(BATCH, 64, 8, 8)
    elif name in POOLED:
        student, teacher = torch.randn(BATCH, 64), torch.randn(BATCH, 64)
    elif name in REGRESSION:
        student, teacher = torch.randn(BATCH, 4), torch.randn(BATCH, 4)
        batch = Batch(labels=torch.randn(BATCH, 4), outputs=torch.randn(BATCH, 4))
    elif name in TOKENS:
        student, teacher = torch.randn(16, 16, CLASSES), torch.randn(16, 16, CLASSES)
        batch = Batch(labels=torch.randint(CLASSES, (16, 16)), valid=torch.rand(16, 16) < 0.8)
    elif name in BOXES:
        student, teacher = torch.randn(BATCH, 4, 17), torch.randn(BATCH, 4, 17)
    elif name == "vid":
        student = torch.cat([torch.randn(BATCH, 64, 8, 8), torch.rand(BATCH, 64, 8, 8) + 0.5], 1)
        teacher = torch.randn(BATCH, 64, 8, 8)
    elif name == "pixels":
        student, teacher = torch.randn(16, 21, 32, 32), torch.randn(16, 21, 32, 32)
    elif name == "relevance":
        student = torch.randn(BATCH, CLASSES)
        batch = Batch(labels=torch.randint(-1, 4, (BATCH, CLASSES)))
    elif name == "crd":
        student, teacher = torch.randn(BATCH, 1025), torch.randn(BATCH, 1025)
    else:
        student, teacher = 2 * torch.randn(BATCH, CLASSES), 2 * torch.randn(BATCH, CLASSES)
    teacher = labels if name == "ce" else batch.labels if name in TRUTH else teacher
    return student.requires_grad_(), teacher, batch


MAPS = {"fitnet", "at", "reviewkd", "mgd", "ickd", "cwd"}
POOLED = {"pooled", "directions", "embedding", "srd", "rkd", "sp", "cc", "pkt", "irg", "infonce", "experts"}
REGRESSION = {"squares", "bounded", "rejecting", "ail", "aht", "differences"}
TOKENS = {"word", "reverse", "gkd", "sequence", "minillm"}
TRUTH = {"sequence", "relevance"}  # compared with what the batch holds
BOXES = {"ld", "crosskd_boxes"}


# ---- the same formulas, as a training script would hold them


def kd(s: Tensor, t: Tensor, _b: Batch, tau: float = 1.0) -> Tensor:
    return F.kl_div(F.log_softmax(s / tau, 1), F.softmax(t / tau, 1), reduction="batchmean") * tau**2


def dkd(s: Tensor, t: Tensor, b: Batch, *, tau: float = 4.0, alpha: float = 1.0, beta: float = 2.0) -> Tensor:
    mask = F.one_hot(b.labels, CLASSES).bool()
    p, q = F.softmax(s / tau, 1), F.softmax(t / tau, 1)
    p2 = torch.stack([(p * mask).sum(1), (p * ~mask).sum(1)], 1)
    q2 = torch.stack([(q * mask).sum(1), (q * ~mask).sum(1)], 1)
    tckd = F.kl_div(p2.log(), q2, reduction="batchmean") * tau**2
    rest_s, rest_t = F.log_softmax(s / tau - 1000 * mask, 1), F.softmax(t / tau - 1000 * mask, 1)
    return alpha * tckd + beta * F.kl_div(rest_s, rest_t, reduction="batchmean") * tau**2


def dist(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def pearson(x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True), dim=1)

    p, q = s.softmax(1), t.softmax(1)
    return 1 - pearson(p, q).mean() + 1 - pearson(p.T, q.T).mean()


def lskd(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    def z(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True))

    return kd(z(s), z(t), b, 2.0)


def nkd(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    target = b.labels[:, None]
    log_s, log_t = F.log_softmax(s, 1), F.softmax(t, 1)
    hit = -(log_t.gather(1, target) * log_s.gather(1, target)).mean()
    mask = torch.ones_like(s).scatter_(1, target, 0).bool()
    rest_s, rest_t = s[mask].view(len(s), -1), t[mask].view(len(s), -1)
    return hit - 1.5 * (F.softmax(rest_t, 1) * F.log_softmax(rest_s, 1)).sum(1).mean()


def wttm(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    powered = F.softmax(t, 1) ** 0.2
    mass = powered.sum(1, keepdim=True)
    return (F.kl_div(F.log_softmax(s, 1), powered / mass, reduction="none").sum(1) * mass[:, 0]).mean()


def ofa(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    sure = F.one_hot(b.labels, CLASSES)
    return torch.sum(-((F.softmax(t, 1) + sure) ** 1.5 - sure) * F.log_softmax(s, 1), dim=-1).mean()


def at(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def attention(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).view(len(x), -1))

    return (attention(s) - attention(t)).pow(2).mean()


def reviewkd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    loss, share, total = F.mse_loss(s, t), 1.0, 1.0
    for side in (4, 2, 1):
        share /= 2
        loss = loss + share * F.mse_loss(
            F.adaptive_avg_pool2d(s, (side, side)), F.adaptive_avg_pool2d(t, (side, side))
        )
        total += share
    return loss / total


def rkd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def distances(x: Tensor) -> Tensor:
        square = x.pow(2).sum(1)
        d = (square[:, None] + square[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(x)))
        return d / d[d > 0].mean()

    def angles(x: Tensor) -> Tensor:
        e = F.normalize(x[None] - x[:, None], p=2, dim=2)
        return torch.bmm(e, e.transpose(1, 2)).view(-1)

    return 25 * F.smooth_l1_loss(distances(s), distances(t)) + 50 * F.smooth_l1_loss(angles(s), angles(t))


def sp(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return (F.normalize(s @ s.T) - F.normalize(t @ t.T)).pow(2).sum() / len(s) ** 2


def cc(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    delta = torch.abs(s - t)
    return torch.mean((delta[:-1] * delta[1:]).sum(1))


def pkt(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def picks(x: Tensor) -> Tensor:
        x = F.normalize(x)
        likeness = (x @ x.T + 1) / 2
        return likeness / likeness.sum(1, keepdim=True)

    p, q = picks(t), picks(s)
    return (p * torch.log(p / q)).mean()


def ickd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def channels(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return F.normalize(torch.bmm(x, x.permute(0, 2, 1)), dim=2)

    return ((channels(s) - channels(t)) ** 2).sum() / (len(s) * s.shape[1] ** 2)


def irg(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def edges(x: Tensor) -> Tensor:
        square = x.pow(2).sum(1)
        d = (square[:, None] + square[None] - 2 * x @ x.T).clamp(min=1e-12) * (1 - torch.eye(len(x)))
        return d / d.max()

    return F.mse_loss(edges(s), edges(t))


def vid(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    mean, variance = s[:, :64], s[:, 64:]
    return torch.mean(0.5 * ((mean - t) ** 2 / variance + torch.log(variance)))


def infonce(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return F.cross_entropy(F.normalize(s) @ F.normalize(t).T / 0.07, torch.arange(len(s)))


def crd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    def nce(x: Tensor) -> Tensor:
        target = torch.zeros_like(x)
        target[:, 0] = 1
        return F.binary_cross_entropy_with_logits(x, target, reduction="sum") / len(x)

    return nce(s) + nce(t)


def cwd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    s, t = (x.reshape(-1, 64) / 4.0 for x in (s, t))
    return F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="sum") * 16 / (BATCH * 64)


def pixels(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="none").sum(1).mean()


def ld(s: Tensor, t: Tensor, _b: Batch, tau: float = 10.0) -> Tensor:
    loss = F.kl_div(F.log_softmax(s / tau, -1), F.softmax(t / tau, -1), reduction="none")
    return loss.mean(-1).mean() * tau**2


def crosskd_classes(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    target = t.sigmoid()
    loss = F.binary_cross_entropy_with_logits(s, target, reduction="none") * (s.sigmoid() - target).abs().pow(
        1.0
    )
    return loss.sum(1).mean()


def bounded(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    own, bound = ((s - b.labels) ** 2).sum(1), ((t - b.labels) ** 2).sum(1)
    return F.smooth_l1_loss(s, b.labels) + 0.5 * torch.where(own > bound, own, torch.zeros_like(own)).mean()


def rejecting(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    gap = (b.labels - t).abs()
    kept = (gap <= 3 * 1.4826 * gap.median(0).values).float()
    return ((s - b.labels) ** 2 * kept).sum() / kept.sum() + ((s - t) ** 2).mean()


def ail(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    trust = 1 - ((t - b.labels) ** 2).sum(1) / 9.0
    return (0.5 * ((s - b.labels) ** 2).sum(1) + 0.5 * trust * ((s - t) ** 2).sum(1)).mean()


def differences(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return (((s[:, None] - s[None]) - (t[:, None] - t[None])) ** 2).mean()


def score_differences(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return (((s[:, :, None] - s[:, None]) - (t[:, :, None] - t[:, None])) ** 2).mean()


def listnet(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    return -(F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1).mean()


def rank_distillation(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    best = t.topk(10, 1).indices
    ranks = torch.arange(1, 11).float()
    places = s.detach().argsort(1, descending=True).argsort(1).gather(1, best) + 1
    weights = F.softmax(-ranks, 0) * torch.tanh(0.1 * (places - ranks)).clamp(min=0)
    return -(weights * F.logsigmoid(s.gather(1, best))).sum(1).mean()


def rrd(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    scores = s.gather(1, t.argsort(1, descending=True))
    best, rest = scores[:, :40], scores[:, 40:].logsumexp(1, keepdim=True)
    below = torch.cat([rest, best.flip(1)], 1).logcumsumexp(1)[:, 1:].flip(1)
    return -(best - below).sum(1).mean()


def rankdistil(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    scores = s.gather(1, t.argsort(1, descending=True))
    best, rest = scores[:, :10], scores[:, 10:]
    upper = torch.triu(torch.ones(10, 10), 1).bool()
    return (
        F.softplus(best[:, None] - best[:, :, None])[:, upper].mean()
        + F.softplus(rest[:, None] - best[:, :, None]).mean()
    )


def relevance(s: Tensor, t: Tensor, _b: Batch) -> Tensor:
    absent = t < 0
    gains = (2.0 ** t.float() - 1).masked_fill(absent, 0)
    found = F.log_softmax(s.masked_fill(absent, -torch.inf), 1).masked_fill(absent, 0)
    return -(gains / gains.sum(1, keepdim=True).clamp_min(1e-12) * found).sum(1).mean()


def cosface(s: Tensor, _: Tensor, b: Batch) -> Tensor:
    return F.cross_entropy(16 * (s - 0.2 * F.one_hot(b.labels, s.shape[1])), b.labels)


def word(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    loss = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="none").sum(-1)
    return (loss * b.valid).sum() / b.valid.sum()


def reverse(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    p, q = F.log_softmax(s, -1), F.log_softmax(t, -1)
    return ((p.exp() * (p - q)).sum(-1) * b.valid).sum() / b.valid.sum()


def gkd(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    p, q = F.log_softmax(s, -1), F.log_softmax(t, -1)
    mix = torch.logsumexp(torch.stack([p, q]), 0) - torch.log(torch.tensor(2.0))
    loss = 0.5 * (q.exp() * (q - mix)).sum(-1) + 0.5 * (p.exp() * (p - mix)).sum(-1)
    return (loss * b.valid).sum() / b.valid.sum()


def sequence(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    loss = F.cross_entropy(s.flatten(0, 1), t.flatten(), reduction="none").view_as(t)
    return (loss * b.valid).sum() / b.valid.sum()


def minillm(s: Tensor, t: Tensor, b: Batch) -> Tensor:
    p, q, valid = F.log_softmax(s, -1), F.log_softmax(t, -1), b.valid.float()
    own, given = (x.gather(-1, b.labels.unsqueeze(-1)).squeeze(-1) for x in (p, q))
    reward = (given - own).detach() * valid
    later = reward.flip(1).cumsum(1).flip(1) - reward
    left = (valid.flip(1).cumsum(1).flip(1) - valid).clamp(min=1)
    loss = (p.exp() * (p - q)).sum(-1) - later / left * own
    return (loss * valid).sum() / valid.sum()


BODIES: dict[str, Body] = {
    "ce": lambda s, t, _: F.cross_entropy(s, t),
    "kd": kd, "camkd": kd, "mse": lambda s, t, _: F.mse_loss(s, t), "dkd": dkd, "dist": dist, "lskd": lskd, "nkd": nkd,
    "wttm": wttm, "bkd": lambda s, t, _: F.binary_cross_entropy_with_logits(s, F.softmax(t, 1)), "ofa": ofa,
    "pooled": lambda s, t, _: F.mse_loss(s, t), "fitnet": lambda s, t, _: F.mse_loss(s, t),
    "directions": lambda s, t, _: (F.normalize(s) - F.normalize(t)).pow(2).sum(1).mean(),
    "at": at, "reviewkd": reviewkd, "mgd": lambda s, t, _: F.mse_loss(s, t, reduction="sum") / len(s),
    "srd": lambda s, t, _: torch.log(torch.abs(s - t).pow(4).sum()),
    "rkd": rkd, "sp": sp, "cc": cc, "pkt": pkt, "ickd": ickd, "irg": irg, "vid": vid, "infonce": infonce, "crd": crd,
    "cwd": cwd, "pixels": pixels, "ld": ld, "crosskd_classes": crosskd_classes,
    "crosskd_boxes": lambda s, t, _: F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="none").sum(-1).mean(),
    "aht": lambda s, t, b: ((1 - ((b.outputs - b.labels) ** 2).sum(1) / 9.0) * ((s - t) ** 2).sum(1)).mean(),
    "experts": lambda s, t, _: F.mse_loss(s, t),
    "bounded": bounded, "rejecting": rejecting, "ail": ail, "differences": differences,
    "embedding": lambda s, t, _: (F.normalize(s) - F.normalize(t)).pow(2).sum(1).mean(), "cosface": cosface, "squares": lambda s, t, _: F.mse_loss(s, t), "relevance": relevance,
    "listnet": listnet, "rank_distillation": rank_distillation, "rrd": rrd, "rankdistil": rankdistil,
    "score_differences": score_differences,
    "word": word, "reverse": reverse, "gkd": gkd, "sequence": sequence, "minillm": minillm,
}  # fmt: skip


if __name__ == "__main__":
    main()
