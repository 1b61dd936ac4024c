"""Each loss against its equation, written out once more in numpy, with loops where the equation has sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, logsumexp, softmax

from edgekd.distillation.losses import LOSSES, regression
from tests.distillation.examples import example
from tests.distillation.losses import dense_formulas

Array = NDArray[np.float64]


def kl(p: Array, q: Array, axis: int = -1) -> Array:
    return (p * (np.log(p) - np.log(q))).sum(axis)


def kd(s: Array, t: Array, y: Array, temperature: float = 1.0) -> float:
    return temperature**2 * kl(softmax(t / temperature, 1), softmax(s / temperature, 1)).mean()


def others(row: Array, target: int) -> Array:
    return np.delete(row, target)


def dkd(
    s: Array, t: Array, y: Array, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 2.0
) -> float:
    total = 0.0
    for row_s, row_t, target in zip(s / temperature, t / temperature, y):
        p, q = softmax(row_t)[target], softmax(row_s)[target]
        total += alpha * kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
        total += beta * kl(softmax(others(row_t, target)), softmax(others(row_s, target)))
    return temperature**2 * total / len(s)


def dist(
    s: Array, t: Array, y: Array, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> float:
    p, q = softmax(s / temperature, 1), softmax(t / temperature, 1)
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def lskd(s: Array, t: Array, y: Array, temperature: float = 2.0) -> float:
    def z(x: Array) -> Array:
        return (x - x.mean(1, keepdims=True)) / (1e-7 + x.std(1, ddof=1, keepdims=True))

    return kd(z(s), z(t), y, temperature)


def nkd(s: Array, t: Array, y: Array, temperature: float = 1.0, gamma: float = 1.5) -> float:
    total = 0.0
    for row_s, row_t, target in zip(s, t, y):
        total -= softmax(row_t)[target] * log_softmax(row_s)[target]
        p = softmax(others(row_t, target) / temperature)
        total -= gamma * temperature**2 * (p * np.log(softmax(others(row_s, target) / temperature))).sum()
    return total / len(s)


def wttm(s: Array, t: Array, y: Array, gamma: float = 0.2) -> float:
    powered = softmax(t, 1) ** gamma
    mass = powered.sum(1)
    return (mass * kl(powered / mass[:, None], softmax(s, 1))).mean()


def bkd(s: Array, t: Array, y: Array) -> float:
    p = softmax(t, 1)
    return -(p * np.log(expit(s)) + (1 - p) * np.log(expit(-s))).mean()


def ofa(s: Array, t: Array, y: Array, temperature: float = 1.0, epsilon: float = 1.5) -> float:
    sure = np.eye(s.shape[1])[y]
    given = (softmax(t / temperature, 1) + sure) ** epsilon - sure
    return -(given * log_softmax(s / temperature, 1)).sum(1).mean()


def mse(s: Array, t: Array, y: Array) -> float:
    return ((s - t) ** 2).mean()


def length_one(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def at(s: Array, t: Array, y: Array, power: int = 2) -> float:
    def attention(x: Array) -> Array:
        return length_one((x**power).mean(1).reshape(len(x), -1))

    return ((attention(s) - attention(t)) ** 2).mean()


def pooled(x: Array, side: int) -> Array:
    """Average pooling to a side; windows as torch cuts them: floor of the start to ceiling of the end."""
    n = x.shape[-1]
    cuts = [(at * n // side, -(-(at + 1) * n // side)) for at in range(side)]
    return np.array([[x[:, :, a:b, c:d].mean((2, 3)) for c, d in cuts] for a, b in cuts]).transpose(
        2, 3, 0, 1
    )


def reviewkd(s: Array, t: Array, y: Array) -> float:
    parts = [(1.0, mse(s, t, y))] + [
        (0.5 ** (at + 1), mse(pooled(s, side), pooled(t, side), y)) for at, side in enumerate((4, 2, 1))
    ]
    return sum(w * v for w, v in parts) / sum(w for w, _ in parts)


def rkd(s: Array, t: Array, y: Array, distance: float = 25.0, angle: float = 50.0) -> float:
    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    def distances(x: Array) -> Array:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / d[d > 0].mean()

    def cosines(x: Array) -> Array:
        n = len(x)
        found = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    a, b = x[j] - x[i], x[k] - x[i]
                    if a.any() and b.any():
                        found[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return found

    gaps = distances(s) - distances(t), cosines(s) - cosines(t)
    return distance * np.vectorize(huber)(gaps[0]).mean() + angle * np.vectorize(huber)(gaps[1]).mean()


def sp(s: Array, t: Array, y: Array) -> float:
    gap = length_one(s @ s.T) - length_one(t @ t.T)
    return (gap**2).sum() / len(s) ** 2


def cc(s: Array, t: Array, y: Array) -> float:
    gap = np.abs(s - t)
    return np.mean([gap[i] @ gap[i + 1] for i in range(len(s) - 1)])


def pkt(s: Array, t: Array, y: Array) -> float:
    def picks(x: Array) -> Array:
        likeness = (1 + length_one(x) @ length_one(x).T) / 2
        return likeness / likeness.sum(1, keepdims=True)

    p, q = picks(t), picks(s)
    return (p * np.log(p / q)).mean()


def ickd(s: Array, t: Array, y: Array) -> float:
    def channels(x: Array) -> Array:
        flat = x.reshape(*x.shape[:2], -1)
        return length_one(flat @ flat.transpose(0, 2, 1))

    return np.mean([((a - b) ** 2).sum() / s.shape[1] ** 2 for a, b in zip(channels(s), channels(t))])


def irg(s: Array, t: Array, y: Array) -> float:
    def edges(x: Array) -> Array:
        d = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
        return d / d.max()

    return mse(edges(s), edges(t), y)


def vid(s: Array, t: Array, y: Array) -> float:
    mean, variance = np.split(s, 2, axis=1)
    return (0.5 * ((t - mean) ** 2 / variance + np.log(variance))).mean()


def infonce(s: Array, t: Array, y: Array, tau: float = 0.07) -> float:
    scores = length_one(s) @ length_one(t).T / tau
    return -np.diag(log_softmax(scores, 1)).mean()


def crd(s: Array, t: Array, y: Array) -> float:
    """-log h of the own sample, -log(1 - h) of the others, h = odds / (odds + 1)."""
    total = 0.0
    for odds in (np.exp(s), np.exp(t)):
        h = odds / (odds + 1)
        total -= np.log(h[:, 0]).mean() + np.log(1 - h[:, 1:]).sum(1).mean()
    return total


def cwd(s: Array, t: Array, y: Array, temperature: float = 4.0) -> float:
    flat_s, flat_t = (x.reshape(*x.shape[:2], -1) / temperature for x in (s, t))
    return temperature**2 * kl(softmax(flat_t, 2), softmax(flat_s, 2)).sum() / (s.shape[0] * s.shape[1])


def smooth_l1(x: Array) -> Array:
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def bounded(s: Array, t: Array, y: Array, margin: float = 0.0, nu: float = 0.5) -> float:
    bound = 0.0
    for a, b, c in zip(s, t, y):
        own = ((a - c) ** 2).sum()
        bound += own if own + margin > ((b - c) ** 2).sum() else 0.0
    return smooth_l1(s - y).mean() + nu * bound / len(s)


def rejecting(s: Array, t: Array, y: Array, cut: float = 3.0) -> float:
    gap = np.abs(y - t)
    # torch's median is the lower of the two middle values
    deviation = 1.4826 * np.sort(gap, 0)[(len(gap) - 1) // 2]
    kept = gap <= cut * deviation
    assert not kept.all()
    return ((s - y) ** 2)[kept].mean() + ((s - t) ** 2).mean()


def ail(s: Array, t: Array, y: Array, alpha: float = 0.5, eta: float = 9.0) -> float:
    return np.mean(
        [
            alpha * ((a - c) ** 2).sum()
            + (1 - alpha) * (1 - ((b - c) ** 2).sum() / eta) * ((a - b) ** 2).sum()
            for a, b, c in zip(s, t, y)
        ]
    )


def differences(s: Array, t: Array, y: Array) -> float:
    n = len(s)
    return np.mean([((s[i] - s[j]) - (t[i] - t[j])) ** 2 for i in range(n) for j in range(n)])


def score_differences(s: Array, t: Array, y: Array) -> float:
    return np.mean([differences(a[:, None], b[:, None], y) for a, b in zip(s, t)])


def listnet(s: Array, t: Array, y: Array, temperature: float = 1.0) -> float:
    return -(softmax(t / temperature, 1) * log_softmax(s / temperature, 1)).sum(1).mean()


def rank_distillation(
    s: Array, t: Array, y: Array, *, top: int = 10, decay: float = 1.0, mu: float = 0.1
) -> float:
    total = 0.0
    for a, b in zip(s, t):
        order, own = np.argsort(-b), np.argsort(-a)
        fixed = np.exp(-np.arange(1, top + 1) / decay)
        fixed /= fixed.sum()
        for rank in range(1, top + 1):
            item = order[rank - 1]
            place = int(np.flatnonzero(own == item)[0]) + 1
            weight = fixed[rank - 1] * (max(0.0, np.tanh(mu * (place - rank))) if mu else 1.0)
            total -= weight * np.log(expit(a[item]))
    return total / len(s)


def rrd(s: Array, t: Array, y: Array, top: int = 40) -> float:
    total = 0.0
    for a, b in zip(s, t):
        order = np.argsort(-b)
        for rank in range(min(top, len(a))):
            total -= a[order[rank]] - logsumexp(a[order[rank:]])
    return total / len(s)


def rankdistil(s: Array, t: Array, y: Array, top: int = 10, press: float = 1.0) -> float:
    pairs, below = [], []
    for a, b in zip(s, t):
        order = np.argsort(-b)
        best = a[order[:top]]
        pairs += [np.log1p(np.exp(best[j] - best[i])) for i in range(top) for j in range(i + 1, top)]
        below += [np.log1p(np.exp(low - high)) for low in a[order[top:]] for high in best]
    return np.mean(pairs) + press * np.mean(below)


def relevance(s: Array, t: Array, y: Array) -> float:
    total = 0.0
    for scores, labels in zip(s, t):
        present = labels >= 0
        gains = 2.0 ** labels[present] - 1
        total -= (gains / gains.sum()) @ log_softmax(scores[present])
    return total / len(s)


def cosface(s: Array, t: Array, y: Array, margin: float = 0.2, scale: float = 16.0) -> float:
    total = 0.0
    for cosines, at in zip(s, y):
        others = np.exp(scale * np.delete(cosines, at)).sum()
        own = np.exp(scale * (cosines[at] - margin))
        total -= np.log(own / (own + others))
    return total / len(s)


FORMULAS: dict[str, Callable[..., float]] = {
    "kd": kd, "camkd": kd, "mse": mse, "dkd": dkd, "dist": dist, "lskd": lskd, "nkd": nkd, "wttm": wttm, "bkd": bkd, "ofa": ofa,
    "ce": lambda s, t, y: -np.mean([log_softmax(row)[at] for row, at in zip(s, y)]),
    "masks": dense_formulas.masks, "boxes": dense_formulas.boxes,
    "pooled": mse, "fitnet": mse, "experts": mse, "at": at, "reviewkd": reviewkd,
    "directions": lambda s, t, y: ((length_one(s) - length_one(t)) ** 2).sum() / len(s),
    "embedding": lambda s, t, y: ((length_one(s) - length_one(t)) ** 2).sum() / len(s),
    "cosface": cosface, "squares": mse, "relevance": relevance,
    "mgd": lambda s, t, y: ((s - t) ** 2).sum() / len(s),
    "srd": lambda s, t, y, power=4: np.log((np.abs(s - t) ** power).sum()),
    "rkd": rkd, "sp": sp, "cc": cc, "pkt": pkt, "ickd": ickd, "irg": irg, "vid": vid, "infonce": infonce, "crd": crd,
    "cwd": cwd, "bounded": bounded, "rejecting": rejecting, "ail": ail, "differences": differences,
    "listnet": listnet, "rank_distillation": rank_distillation, "rrd": rrd, "rankdistil": rankdistil,
    "score_differences": score_differences,
}  # fmt: skip


def valid_mean(values: Array, valid: Array) -> float:
    return values[valid].mean()


def word(s: Array, t: Array, valid: Array, temperature: float = 1.0) -> float:
    return temperature**2 * valid_mean(kl(softmax(t / temperature, -1), softmax(s / temperature, -1)), valid)


def reverse(s: Array, t: Array, valid: Array, temperature: float = 1.0) -> float:
    return temperature**2 * valid_mean(kl(softmax(s / temperature, -1), softmax(t / temperature, -1)), valid)


def gkd(s: Array, t: Array, valid: Array, beta: float = 0.5, temperature: float = 1.0) -> float:
    p, q = softmax(t / temperature, -1), softmax(s / temperature, -1)
    mix = beta * p + (1 - beta) * q
    return temperature**2 * valid_mean(beta * kl(p, mix) + (1 - beta) * kl(q, mix), valid)


def crosskd_boxes(s: Array, t: Array, valid: Array, temperature: float = 1.0) -> float:
    return word(s, t, valid, temperature)


MASKED: dict[str, Callable[..., float]] = {
    "word": word,
    "reverse": reverse,
    "gkd": gkd,
    "crosskd_boxes": crosskd_boxes,
    "ld": lambda s, t, valid, temperature=10.0: word(s, t, valid, temperature) / s.shape[-1],
    "pixels": lambda s, t, valid, temperature=1.0: word(np.moveaxis(s, 1, -1), np.moveaxis(t, 1, -1), valid, temperature),
}  # fmt: skip

OTHERWISE: list[tuple[str, dict[str, float]]] = [
    ("kd", {"temperature": 4.0}),
    ("dkd", {"temperature": 1.0, "alpha": 0.5, "beta": 8.0}),
    ("dist", {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}),
    ("lskd", {"temperature": 3.0}),
    ("nkd", {"temperature": 3.0, "gamma": 3.5}),
    ("wttm", {"gamma": 0.5}),
    ("ofa", {"epsilon": 1.0, "temperature": 2.0}),
    ("at", {"power": 1}),
    ("srd", {"power": 2}),
    ("rkd", {"distance": 1.0, "angle": 0.0}),
    ("rkd", {"distance": 0.0, "angle": 1.0}),
    ("infonce", {"tau": 0.5}),
    ("cwd", {"temperature": 1.0}),
    ("cosface", {"margin": 0.5, "scale": 4.0}),
    ("bounded", {"margin": 3.0, "nu": 1.0}),
    ("ail", {"alpha": 0.2, "eta": 20.0}),
    ("listnet", {"temperature": 2.0}),
    ("rank_distillation", {"top": 3, "decay": 2.0, "mu": 0.0}),
    ("rrd", {"top": 3}),
    ("rankdistil", {"top": 4, "press": 0.1}),
]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in FORMULAS), *OTHERWISE])
def test_a_loss_is_its_published_formula(name: str, settings: dict[str, float]):
    given = example(name, **settings)
    expected = FORMULAS[name](
        given.student.numpy(), given.teacher.numpy(), given.batch.labels.numpy(), **settings
    )
    assert float(given.value()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in MASKED),
        ("gkd", {"beta": 0.1}),
        ("word", {"temperature": 2.0}),
        ("ld", {"temperature": 1.0}),
    ],
)
def test_a_loss_over_places_counts_only_those_that_are_valid(name: str, settings: dict[str, float]):
    given = example(name, **settings)
    expected = MASKED[name](
        given.student.numpy(), given.teacher.numpy(), given.batch.valid.numpy(), **settings
    )
    assert float(given.value()) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_decoded_sequences_counts_no_padding():
    given = example("sequence")
    tokens, valid = given.batch.labels.numpy(), given.batch.valid.numpy()
    chosen = np.take_along_axis(log_softmax(given.student.numpy(), -1), tokens[..., None], -1)[..., 0]
    assert float(given.value()) == pytest.approx(-valid_mean(chosen, valid), rel=1e-6)


def test_crosskd_focuses_on_classes_where_the_two_disagree():
    given = example("crosskd_classes")
    s, t = given.student.numpy(), expit(given.teacher.numpy())
    entropy = -(t * np.log(expit(s)) + (1 - t) * np.log(expit(-s)))
    assert float(given.value()) == pytest.approx((np.abs(t - expit(s)) * entropy).sum(1).mean(), rel=1e-6)


def test_attentive_hints_count_as_far_as_the_teacher_is_right():
    given = example("aht")
    s, t, y = given.student.numpy(), given.teacher.numpy(), given.batch.labels.numpy()
    trust = 1 - ((given.batch.outputs.numpy() - y) ** 2).sum(1) / 9.0
    assert float(given.value()) == pytest.approx((trust * ((s - t) ** 2).sum(1)).mean(), rel=1e-6)


def test_attentive_losses_take_the_range_of_the_teacher_s_errors_from_the_batch_where_it_is_not_given():
    given = example("ail")
    errors = ((given.teacher - given.batch.labels) ** 2).sum(1)
    own = regression.ail(given.student, given.teacher, given.batch)
    spread = float(errors.max() - errors.min())
    assert own == regression.ail(given.student, given.teacher, given.batch, eta=spread)


def test_minillm_is_the_reverse_kl_of_a_word_and_what_its_choice_brings_later():
    given = example("minillm")
    s, t = (log_softmax(x.numpy(), -1) for x in (given.student, given.teacher))
    tokens, valid = given.batch.labels.numpy(), given.batch.valid.numpy()
    total = 0.0
    for row in range(len(s)):
        last = valid[row].sum()
        own = [s[row, at, tokens[row, at]] for at in range(last)]
        reward = [t[row, at, tokens[row, at]] - own[at] for at in range(last)]
        for at in range(last):
            later = np.mean(reward[at + 1 :]) if at + 1 < last else 0.0
            total += (np.exp(s[row, at]) * (s[row, at] - t[row, at])).sum() - later * own[at]
    assert float(given.value()) == pytest.approx(total / valid.sum(), rel=1e-6)


def test_every_loss_in_the_table_has_a_formula_here():
    written = {*FORMULAS, *MASKED, "sequence", "crosskd_classes", "aht", "minillm"}
    assert written == set(LOSSES)
