"""Rows for parity tests: random tokens with random trained spans, as the same numbers for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One training row: token ids, and 1 where a token is a target (never the first)."""

    tokens: Sequence[int]
    train: Sequence[int]


def batches(vocab: int, steps: int, rows: int = 3, longest: int = 40, seed: int = 5) -> list[list[Row]]:
    """Batches of rows of 4 .. `longest` tokens; each row trains on a span of its own, at least one token."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(steps):
        batch = []
        for _ in range(rows):
            n = int(rng.integers(4, longest + 1))
            first = int(rng.integers(1, n - 1))
            last = int(rng.integers(first + 1, n + 1))
            tokens = [int(t) for t in rng.integers(3, vocab, n)]
            batch.append(Row(tokens, [int(first <= i < last) for i in range(n)]))
        found.append(batch)
    return found
