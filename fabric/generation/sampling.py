"""The choice of the next token: the likeliest, or one drawn with numbers keyed by (seed, answer, position) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError
from fabric.generation.settings import GenerateSettings

_SORTED = 1024  # so many likeliest tokens nearly always hold `top_p`; the rest is sorted only where they do not


def uniform(seed: int, row: int, position: int) -> float:
    """A number in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{row}:{position}".encode(), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def pick(
    logits: npt.NDArray[np.float32],
    settings: GenerateSettings,
    row: int,
    position: int,
    said: Sequence[int] = (),
) -> int:
    """A token from logits (vocab,). In this order: repetition penalty, temperature, top_k, top_p, min_p.

    `said`: the tokens of prompt and answer so far. Raises DataError where the logits are not numbers.
    """
    if settings.repeat_penalty != 1 and settings.repeat_window:
        logits = _penalized(logits, sorted(set(said[-settings.repeat_window :])), settings.repeat_penalty)
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise DataError(f"{settings.model}: the logits are not numbers; the model or an adapter is damaged")
    if settings.temperature == 0:
        return best
    with np.errstate(over="ignore"):  # a temperature next to 0 leaves only the likeliest
        weights = np.exp((logits.astype(np.float64) - float(logits[best])) / settings.temperature)
    kept = _likeliest(weights, settings.top_k, settings.top_p)
    if settings.min_p:
        kept = kept[weights[kept] >= settings.min_p]  # the likeliest weighs 1
    cumulative = np.cumsum(weights[kept])
    drawn = uniform(settings.seed, row, position) * cumulative[-1]
    return int(kept[np.searchsorted(cumulative, drawn, side="right")])


def _penalized(logits: npt.NDArray[np.float32], said: Sequence[int], penalty: float) -> npt.NDArray[np.float32]:
    """Keskar et al. 2019, https://arxiv.org/abs/1909.05858."""
    logits, at = logits.copy(), list(said)
    found = logits[at]
    logits[at] = np.where(found > 0, found / np.float32(penalty), found * np.float32(penalty))
    return logits


def _likeliest(weights: npt.NDArray[np.float64], top_k: int, top_p: float) -> npt.NDArray[np.int64]:
    """What top_k, then top_p leave, the likeliest first; where neither is set, every token in its own order."""
    if not 0 < top_k < len(weights):
        if top_p == 1:
            return np.arange(len(weights))
        top_k = len(weights)
        head = _first(weights, _SORTED)
        if weights[head].sum() >= top_p * weights.sum():
            return _nucleus(weights, head, top_p * float(weights.sum()))
    chosen = _first(weights, top_k)
    return _nucleus(weights, chosen, top_p * float(weights[chosen].sum()))


def _first(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    chosen = np.arange(len(weights))
    if count < len(weights):
        chosen = np.sort(np.argpartition(-weights, count - 1)[:count])
    return chosen[np.argsort(-weights[chosen], kind="stable")]


def _nucleus(weights: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64], mass: float) -> npt.NDArray[np.int64]:
    return chosen[: int(np.searchsorted(np.cumsum(weights[chosen]), mass)) + 1]
