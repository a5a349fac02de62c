"""Which rows make an optimizer step, and how a step's rows lie in micro-batches of packed sequences.

The order depends on seed and epoch alone, through a counter-based hash, so it is the same on every machine and a
resumed run can compute it anew.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

I32Array = npt.NDArray[np.int32]
WINDOW_ROWS = 256  # of rows in their own order, packed at a time


class Row(Protocol):
    """Tokens (n,) and train (n,): 1 where a token is a target."""

    @property
    def tokens(self) -> npt.NDArray[np.int32]: ...

    @property
    def train(self) -> npt.NDArray[np.uint8]: ...


class PackedRows(NamedTuple):
    """One micro-batch as int32 arrays: (n,) tokens and positions in their own row; (n, 2) the first key that each token
    sees and the one after the last; (m,) index of the positions that predict a trained token, and those targets."""

    tokens: I32Array
    positions: I32Array
    seen: I32Array
    index: I32Array  # type: ignore[assignment]  # hides the method of tuples
    targets: I32Array


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """0 .. count-1 in the order of a hash of (seed, epoch, i)."""

    def key(i: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{epoch}:{i}".encode(), digest_size=16).digest()

    return sorted(range(count), key=key)


def plan_epoch(
    lengths: Sequence[int], *, batch: int, capacity: int, accumulate: int, pack: bool, shuffle: bool, seed: int,
    epoch: int, rank: int = 0, ranks: int = 1, speeds: Sequence[int] = (),
) -> list[list[list[int]]]:  # fmt: skip
    """Steps of `batch` rows (the last may have fewer), each a list of the micro-batches of one rank, of row indices.
    `speeds`: of the ranks, in any unit; none: all alike.

    With `pack` a micro-batch holds as many rows as fit into `capacity` tokens (first fit, longest first), without it
    one row. A step has at least `accumulate` micro-batches, if it has as many rows. A row may be as long as `capacity`.
    """
    order = shuffled(len(lengths), seed, epoch) if shuffle else list(range(len(lengths)))
    steps = (order[i : i + batch] for i in range(0, len(order), batch))
    shares = (share(rows, lengths, rank, ranks, speeds) for rows in steps)
    return [_micro_batches(rows, lengths, capacity, accumulate, pack) for rows in shares]


def share(rows: list[int], lengths: Sequence[int], rank: int, ranks: int, speeds: Sequence[int] = ()) -> list[int]:
    """The rows of a step that one of several ranks runs, in the order of the step; none where there are too few. The
    longest rows are dealt first, each to the rank with the fewest tokens so far, or that ends it first by its speed."""
    if ranks == 1:
        return rows
    loads = [(0, other) for other in range(ranks)]
    mine = set()
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        length = lengths[row]
        if speeds:
            owner = min(range(ranks), key=lambda r: ((loads[r][0] + length) / speeds[r], r))
            loads[owner] = loads[owner][0] + length, owner
        else:
            tokens, owner = heapq.heappop(loads)
            heapq.heappush(loads, (tokens + length, owner))
        if owner == rank:
            mine.add(row)
    return [row for row in rows if row in mine]


def pack_in_order(lengths: Sequence[int], capacity: int, pack: bool = True) -> list[list[int]]:
    """Rows to be scored: micro-batches of neighbours, at most WINDOW_ROWS of which are packed together."""
    steps = plan_epoch(
        lengths, batch=WINDOW_ROWS, capacity=capacity, accumulate=1, pack=pack, shuffle=False, seed=0, epoch=0
    )
    return [rows for step in steps for rows in step]


def _micro_batches(
    rows: list[int], lengths: Sequence[int], capacity: int, accumulate: int, pack: bool
) -> list[list[int]]:
    if not pack:
        return [[row] for row in rows]
    bins: list[list[int]] = [[] for _ in rows]
    room = _Room(len(rows), capacity)
    for place, row in enumerate(sorted(rows, key=lambda r: (-lengths[r], r))):
        fit = place if place < accumulate else room.first(lengths[row])
        room.take(fit, lengths[row])
        bins[fit].append(row)
    return [micro for micro in bins if micro]


class _Room:
    """The room left in bins, as a tree of maxima: node i is the larger of nodes 2i and 2i + 1, and the leaves are the
    bins. All are there from the start, so the first one with enough room may be one that is empty yet."""

    def __init__(self, count: int, capacity: int) -> None:
        self.capacity, self.leaves = capacity, 1 << max(count - 1, 0).bit_length()
        self.most = [capacity] * (2 * self.leaves)

    def first(self, length: int) -> int:
        """The first bin that has so much room; an empty one for what fits in none."""
        node, length = 1, min(length, self.capacity)
        while node < self.leaves:
            node *= 2
            if self.most[node] < length:
                node += 1
        return node - self.leaves

    def take(self, bin: int, length: int) -> None:
        """Uses room of a bin."""
        node = bin + self.leaves
        self.most[node] -= length
        while node := node // 2:
            self.most[node] = max(self.most[2 * node], self.most[2 * node + 1])


def build_feed(rows: Sequence[Row]) -> PackedRows:
    """Rows one after the other; none sees another."""
    lengths = np.array([len(row.tokens) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int32)
    lo = np.repeat(starts, lengths).astype(np.int32)
    at = np.arange(len(tokens), dtype=np.int32)
    train = np.concatenate([row.train for row in rows]).astype(bool)
    train[starts] = False
    targets_at = np.flatnonzero(train).astype(np.int32)
    return PackedRows(tokens, at - lo, np.stack((lo, at + 1), axis=1), targets_at - 1, tokens[targets_at])
