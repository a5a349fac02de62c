"""Which rows of memory hold the states of which sequences, for models that carry a state from token to token.

A sequence goes by its first slot of the cache. Where it goes on from a position at which no state was kept, the tokens
since the nearest one run again, so that callers may return to any position, as a cache of keys and values lets them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

I32Array = npt.NDArray[np.int32]
Key = tuple[int, int]
"""The first slot of a sequence, and how many of its tokens a state has seen."""


class States:
    """For `sequences` at a time over a cache of `slots`: of each what it has come to, what it was before the last token
    of a longer feed (from there the same prompt is answered again), and another that may be returned to."""

    def __init__(self, sequences: int, slots: int) -> None:
        self.rows = 3 * sequences + 1
        self.said = np.zeros(slots, np.int32)
        self._free = list(range(self.rows))
        self._held: dict[Key, int] = {}  # rows, those used last at the end
        self._passing: set[Key] = set()  # after single tokens, and between feeds that run again: they go first
        self._needed: set[Key] = set()  # by the feed that comes
        self._used: set[Key] = set()  # by the one that is placed

    def missing(self, lo: I32Array, positions: I32Array, most: int) -> Iterator[tuple[int, int, int]]:
        """Sequences and positions [start, stop) to run again before a feed, at most so many tokens at a time."""
        self._needed = {(first, at) for _, _, first, at in _runs(lo, positions) if at}
        for first, at in sorted(self._needed - self._held.keys()):
            start = max((n for begin, n in self._held if begin == first and n < at), default=0)
            for stop in [*range(start + most, at, most), at]:
                yield first, start, stop
                start = stop

    def places(self, tokens: I32Array, lo: I32Array, positions: I32Array, passing: bool) -> I32Array:
        """(T, 2) of a feed: the state, from 1 on, that a token begins from, and the one that it leaves; 0: none."""
        found = np.zeros((len(tokens), 2), np.int32)
        runs = list(_runs(lo, positions))
        self._used = set()
        for start, end, first, at in runs:
            self._drop(first, at)
            self.said[first + at : first + at + end - start] = tokens[start:end]
            if at:
                self._held[first, at] = self._held.pop((first, at))
                self._used.add((first, at))
                found[start, 0] = self._held[first, at] + 1
        for start, end, first, at in runs:
            n = end - start
            if n > 1 and not passing:
                found[end - 2, 1] = self._row((first, at + n - 1)) + 1
            found[end - 1, 1] = self._row((first, at + n), passing or n == 1) + 1
        return found

    def copied(self, source: int, target: int, tokens: int) -> tuple[int, int] | None:
        """For a sequence that begins with tokens of another: the row of that one's state then, and that of its own."""
        self._drop(target, 0)
        self.said[target : target + tokens] = self.said[source : source + tokens]
        if (source, tokens) not in self._held:
            return None
        self._used = {(source, tokens)}
        return self._held[source, tokens], self._row((target, tokens))

    def _drop(self, first: int, at: int) -> None:
        for key in [key for key in self._held if key[0] == first and key[1] > at]:
            self._free.append(self._held.pop(key))
            self._passing.discard(key)

    def _row(self, key: Key, passing: bool = False) -> int:
        if not self._free:
            others = [held for held in self._held if held not in self._needed | self._used]
            oldest = next((held for held in others if held in self._passing), others[0])
            self._free.append(self._held.pop(oldest))
            self._passing.discard(oldest)
        self._held[key] = self._free.pop()
        self._used.add(key)
        if passing:
            self._passing.add(key)
        return self._held[key]


def _runs(lo: I32Array, positions: I32Array) -> Iterator[tuple[int, int, int, int]]:
    """Stretches of a feed [start, end) that are one sequence's, its first slot, and the position that they begin at."""
    ends = np.flatnonzero((np.diff(lo) != 0) | (np.diff(positions) != 1)) + 1
    starts = [0, *ends.tolist()]
    for start, end in zip(starts, [*starts[1:], len(lo)], strict=True):
        if end > start:
            yield start, end, int(lo[start]), int(positions[start])
