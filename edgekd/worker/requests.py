"""Time a whole request as an application makes it: pixels to tensor, through the model, logits to a label.

In turns one request is timed in parts and another as one, by the session's usual call: what reading the clock
five times costs, and where copies differ between the two, shows as a difference of their sums.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd import runner
from edgekd.errors import DataError, ModelError
from edgekd.timing.session import Session, Tensors
from edgekd.values.artifact import Artifact
from edgekd.values.ledger import Ledger
from edgekd.values.preprocess import Preprocess

_LEAD_IN = 5  # rounds that are not recorded
_LEAST = 5  # rounds, however slow the model is
_MOST_MS = 10_000.0  # of rounds
_MOST_TRIES = 3  # rounds for each one wanted, where others take the core

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Round:
    """One request in parts and one as one, of the same image."""

    parts_ns: tuple[int, ...]  # in the order of `Ledger`
    whole_ns: int
    preempted: bool  # the scheduler gave the core to another process meanwhile


def read_images(file: Artifact, recipe: Preprocess) -> Images:
    """Read what the requests are about.

    Returns:
        (n, H, W, C), n at least 1.

    Raises:
        DataError: it is no .npy, or does not hold images of as many channels as the recipe takes.

    """
    path = file.verified()
    try:
        images: Images = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path.name} is not a readable .npy file", cause=str(error)) from error
    wanted = (4, recipe.channels)
    found = (images.ndim, images.shape[-1] if images.ndim else 0)
    if images.dtype != np.uint8 or found != wanted or not images.size:
        raise DataError(
            f"the images must be uint8 of shape (n, H, W, {recipe.channels})",
            cause=f"{path.name} holds {images.dtype} {images.shape}",
        )
    return images


def itemise(session: Session, images: Images, recipe: Preprocess, requests: int) -> Ledger:
    """Time so many requests in parts and as many as one, in turns, and boil them down.

    A round during which the scheduler gave the core to another process is replaced, up to three times as many.
    The image changes from round to round, and so does which of the two ways comes first.

    Raises:
        ModelError: the model does not take what the recipe makes, one image at a time.

    """
    name = _input(session, recipe)
    rounds = _rounds(session, images, recipe, name)
    for _ in range(_LEAD_IN):
        next(rounds)
    start_ns, taken, undisturbed = session.clock_ns(), [], 0
    for one in rounds:
        taken.append(one)
        undisturbed += not one.preempted
        late = (session.clock_ns() - start_ns) / 1e6 > _MOST_MS and len(taken) >= _LEAST
        if undisturbed >= requests or len(taken) >= _MOST_TRIES * requests or late:
            break
    return _ledger([one for one in taken if not one.preempted] or taken)


def _rounds(session: Session, images: Images, recipe: Preprocess, name: str) -> Iterator[_Round]:
    switches: Callable[[], int] = _involuntary_switches if session.real_time else int
    at = 0
    while True:
        image = images[at % len(images)][None]
        before = switches()
        if at % 2:
            whole_ns = _as_one(session, image, recipe, name)
            parts_ns = _in_parts(session, image, recipe, name)
        else:
            parts_ns = _in_parts(session, image, recipe, name)
            whole_ns = _as_one(session, image, recipe, name)
        yield _Round(parts_ns=parts_ns, whole_ns=whole_ns, preempted=switches() != before)
        at += 1


def _in_parts(session: Session, image: Images, recipe: Preprocess, name: str) -> tuple[int, ...]:
    clock = session.clock_ns
    start = clock()
    tensor = runner.preprocess(image, recipe)
    ready = clock()
    parts = session.run_in_parts({name: tensor})
    done = clock()
    _label(parts.outputs)
    end = clock()
    return ready - start, parts.copy_in_ns, parts.compute_ns, parts.copy_out_ns, end - done


def _as_one(session: Session, image: Images, recipe: Preprocess, name: str) -> int:
    start = session.clock_ns()
    _label(session.run({name: runner.preprocess(image, recipe)}))
    return session.clock_ns() - start


def _label(outputs: Tensors) -> int:
    logits = next(iter(outputs.values())).reshape(1, -1).astype(np.float64)
    return int(runner.softmax(logits).argmax())


def _ledger(rounds: list[_Round]) -> Ledger:
    parts_ms = [statistics.median(column) / 1e6 for column in zip(*(one.parts_ns for one in rounds))]
    preprocess_ms, copy_in_ms, compute_ms, copy_out_ms, postprocess_ms = parts_ms
    return Ledger(
        preprocess_ms=preprocess_ms,
        copy_in_ms=copy_in_ms,
        compute_ms=compute_ms,
        copy_out_ms=copy_out_ms,
        postprocess_ms=postprocess_ms,
        whole_ms=statistics.median(one.whole_ns for one in rounds) / 1e6,
        samples=len(rounds),
    )


def _input(session: Session, recipe: Preprocess) -> str:
    made = ("float32", (1, recipe.channels, recipe.height, recipe.width))
    takes = [(spec.dtype, spec.shape) for spec in session.signature.inputs]
    if takes != [made]:
        words = " and ".join(f"{dtype} {shape}" for dtype, shape in takes) or "nothing"
        raise ModelError(
            "the model does not take what its pre-processing makes",
            cause=f"it takes {words}, not {made[0]} {made[1]}",
        )
    return session.signature.inputs[0].name


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
