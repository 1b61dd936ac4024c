"""The next student to time untrained: the one that tells most of what is not yet known of the device."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from edgekd.stages.predict import groups_of, predict, shared_of
from edgekd.students import costs, draw
from edgekd.surrogates.latency import choose
from edgekd.values.measurement import Measurement
from edgekd.values.student import Space, StudentSpec
from edgekd.values.trial import History

_POOL = 400
_NEAR = 60  # of them that are looked at where there is a budget: the nearest to it
_LARGEST = 0.9  # quantile of dense and depthwise arithmetic: the very largest cost the device minutes


def next_probe(
    space: Space,
    history: History,
    *,
    seed: int,
    near_ms: float | None = None,
    stored: Sequence[Measurement] = (),
) -> StudentSpec | None:
    """Return the student whose latency takes most variance from the others'; None where nothing was timed yet.

    The runtime and precision that was timed on fewest students decides, as there most is left to learn; near the
    budget, where it has one in ms, since elsewhere nobody will look.
    """
    groups = groups_of(history, channels=space.channels, classes=space.classes)
    if not groups:
        return None
    name = min(groups, key=lambda key: (len(groups[key].p50_ms), key[0], key[1].value))
    timed = {trial.proposal.spec for trial in history.trials}
    rng = random.Random(f"{seed}/{len(timed)}/probe")  # noqa: S311 - not cryptography
    pool = [spec for spec in draw(space, _POOL, rng) if spec not in timed]
    rows = np.array([costs(spec, channels=space.channels, classes=space.classes) for spec in pool])
    work = rows[:, 2] + rows[:, 3]  # millions of multiply-accumulates, dense and depthwise
    within = np.flatnonzero(work <= np.quantile(work, _LARGEST))
    models = predict(history, {}, channels=space.channels, classes=space.classes, stored=stored).models
    if near_ms is not None and name in models:
        off = np.abs(np.log(np.maximum(rows[within] @ models[name].prices, 1e-9) / near_ms))
        within = within[np.argsort(off, kind="stable")[:_NEAR]]
    shared = shared_of(groups, name, stored)
    (best,) = choose(shared.fit(groups[name]), shared.rows(rows[within]), 1)
    return pool[int(within[best])]
