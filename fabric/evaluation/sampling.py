"""The choice of the next token: the likeliest, or one drawn with numbers that depend on (seed, row, position) alone."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError
from fabric.evaluation.settings import GenerateSettings


def uniform(seed: int, row: int, position: int) -> float:
    """A number in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{row}:{position}".encode(), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def pick(logits: npt.NDArray[np.float32], settings: GenerateSettings, row: int, position: int) -> int:
    """A token from logits (vocab,): temperature first, then top_k, then top_p. DataError where they are not numbers."""
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise DataError(f"{settings.model}: the logits are not numbers; the model or an adapter is damaged")
    if settings.temperature == 0:
        return best
    with np.errstate(over="ignore"):  # a temperature next to 0 leaves only the likeliest
        scaled = (logits.astype(np.float64) - float(logits[best])) / settings.temperature
    chosen = np.arange(len(scaled))
    if 0 < settings.top_k < len(scaled):
        chosen = np.sort(np.argpartition(-scaled, settings.top_k - 1)[: settings.top_k])
    chosen = chosen[np.argsort(-scaled[chosen], kind="stable")]
    cumulative = np.cumsum(np.exp(scaled[chosen]))
    kept = int(np.searchsorted(cumulative, settings.top_p * cumulative[-1])) + 1
    drawn = uniform(settings.seed, row, position) * cumulative[min(kept, len(chosen)) - 1]
    return int(chosen[np.searchsorted(cumulative, drawn, side="right")])
