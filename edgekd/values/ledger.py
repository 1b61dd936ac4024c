"""Where the time of one request goes, from the pixels of an image to its label."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What each part of a request takes, and the whole of it: medians, in ms.

    Decoding an image file and waiting in a queue are the application's, and are not in it.
    """

    preprocess_ms: float  # resize, scale, normalise, channels first
    copy_in_ms: float  # into memory that the runtime reads
    compute_ms: float
    copy_out_ms: float  # into arrays of the application's own
    postprocess_ms: float  # softmax, and the likeliest class
    whole_ms: float  # of other requests, each timed as one by the runtime's usual call
    samples: int  # requests in parts, and as many as one

    @property
    def parts_ms(self) -> dict[str, float]:
        """The parts in the order in which they happen."""
        return {
            "pre-processing": self.preprocess_ms,
            "copy in": self.copy_in_ms,
            "compute": self.compute_ms,
            "copy out": self.copy_out_ms,
            "post-processing": self.postprocess_ms,
        }

    @property
    def beside_ms(self) -> float:
        """What a request takes beside the model: a limit on the request leaves the model that much less."""
        return sum(self.parts_ms.values()) - self.compute_ms
