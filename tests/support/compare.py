"""How numbers are compared: errors relative to the largest magnitude, divergence of distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


def relative_error(got: Numbers, want: Numbers) -> float:
    """Largest difference over the largest magnitude of `want`; infinite when shapes or finiteness differ."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - want).max() / max(float(np.abs(want).max()), 1e-30))


def rms_error(got: Numbers, want: Numbers) -> float:
    """Root mean square of the difference over that of `want`."""
    difference = got.astype(np.float64) - want
    return float(np.sqrt((difference**2).sum() / (want.astype(np.float64) ** 2).sum()))


def flat(pairs: Mapping[str, tuple[Numbers, Numbers]]) -> Numbers:
    """All pairs as one vector, by name, A before B."""
    return np.concatenate([part.ravel() for name in sorted(pairs) for part in pairs[name]])


def log_softmax(logits: Numbers) -> Numbers:
    """Over the last axis, in f64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def mean_kl(truth: Numbers, other: Numbers) -> float:
    """Mean over positions of KL(truth || other), in nats, from logits."""
    p, q = log_softmax(truth), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def mean_nll(logits: Numbers, tokens: list[int]) -> float:
    """Mean -log p of each token but the first, given those before it."""
    return float(-log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]].mean())
