"""Losses on next tokens: logits (B, T, V), tokens (B, T) in `batch.labels`, and `batch.valid` (B, T) where tokens count.

All are means over the tokens that count, not over padding, and need one vocabulary for both networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distillation.knowledge import Batch


def word(student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match each next word: forward KL. Kim and Rush 2016 (word-level)."""
    learnt, given = _log_probabilities(student, teacher, temperature)
    return _mean(_kl(given, learnt), batch) * temperature**2


def reverse(student: Tensor, teacher: Tensor, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Match each next word: reverse KL, which seeks one mode (Gu et al. 2024, MiniLLM)."""
    learnt, given = _log_probabilities(student, teacher, temperature)
    return _mean(_kl(learnt, given), batch) * temperature**2


def gkd(
    student: Tensor, teacher: Tensor, batch: Batch, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """Match each next word by a Jensen-Shannon divergence. Agarwal et al. 2024 (GKD).

    beta KL(teacher || mix) + (1 - beta) KL(student || mix), mix = beta teacher + (1 - beta) student. At beta = 0 it is
    forward KL and at 1 reverse KL, the limits after division by beta and by 1 - beta.
    """
    if beta in (0.0, 1.0):
        return (reverse if beta else word)(student, teacher, batch, temperature=temperature)
    learnt, given = _log_probabilities(student, teacher, temperature)
    shares = student.new_tensor([beta, 1 - beta]).log()
    mix = torch.logaddexp(given + shares[0], learnt + shares[1])
    return _mean(beta * _kl(given, mix) + (1 - beta) * _kl(learnt, mix), batch) * temperature**2


def sequence(student: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
    """Learn sequences that the teacher decoded: cross-entropy. Kim and Rush 2016 (sequence-level)."""
    losses = F.cross_entropy(student.flatten(0, 1), tokens.flatten(), reduction="none")
    return _mean(losses.view_as(tokens), batch)


def minillm(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """Descend the reverse KL of whole sequences that the student wrote. Gu et al. 2024 (MiniLLM).

    Its value is the reverse KL of each next word, exactly, plus a term whose gradient is that of the words to come:
    the log-probability of a token times its later return, normalised by length.
    """
    learnt, given = _log_probabilities(student, teacher, 1.0)
    own = learnt.gather(2, batch.labels[..., None])[..., 0]
    valid = torch.ones_like(own) if batch.valid is None else batch.valid.to(own.dtype)
    reward = (given.gather(2, batch.labels[..., None])[..., 0] - own).detach() * valid
    later = _after(reward) / _after(valid).clamp_min(1)
    return _mean(_kl(learnt, given) - later * own, batch)


def _after(values: Tensor) -> Tensor:
    """Sum what follows each place of (B, T)."""
    return values.flip(1).cumsum(dim=1).flip(1) - values


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) (B, T) of log-probabilities."""
    return (first.exp() * (first - second)).sum(dim=-1)


def _mean(losses: Tensor, batch: Batch) -> Tensor:
    if batch.valid is None:
        return losses.mean()
    return (losses * batch.valid).sum() / batch.valid.sum().clamp_min(1)
