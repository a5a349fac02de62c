"""The index of rows that wait in a file: where each lies and what decides where it goes, in 32 bytes a row; and the
orders, by hashes of a seed and of contents, in which they are divided and shuffled.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fabric.data.records import DIGEST_BYTES
from fabric.errors import DataError

Rows = npt.NDArray[np.int64]  # numbers of rows


class Column:
    """A value a row, kept once however many rows have it."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self.codes = array("i")

    def append(self, value: bytes) -> None:
        """The value of the next row."""
        self.codes.append(self.numbers.setdefault(value, len(self.numbers)))

    def groups(self, rows: Rows) -> Iterator[tuple[bytes, Rows]]:
        """Rows of each value, in the order that they are given in; values in the order of their first row."""
        codes = np.frombuffer(self.codes, np.intc)[rows]
        for value, code in self.numbers.items():
            if (found := rows[codes == code]).size:
                yield value, found


class Index:
    """Rows by number, in the order that they came in."""

    def __init__(self) -> None:
        self.ends = array("q", [0])
        self.digests = bytearray()
        self.balance, self.stratum = Column(), Column()

    def append(self, size: int, digest: bytes, balance: bytes, stratum: bytes) -> None:
        """The next row of the file, of `size` bytes."""
        self.ends.append(self.ends[-1] + size)
        self.digests += digest
        self.balance.append(balance)
        self.stratum.append(stratum)

    def all(self) -> Rows:
        """Every row."""
        return np.arange(len(self.ends) - 1)

    def digest(self, row: int) -> bytes:
        """The hash of a row's contents."""
        return bytes(self.digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES])

    def known(self) -> set[bytes]:
        """The hashes of all rows' contents."""
        return {self.digest(row) for row in range(len(self.ends) - 1)}

    def place(self, row: int) -> tuple[int, int]:
        """Its first byte and its size."""
        return self.ends[row], self.ends[row + 1] - self.ends[row]

    def ranked(self, rows: Rows, seed: int, purpose: str) -> Rows:
        """In an order that depends on seed, purpose and contents; copies stand side by side."""
        return rows[_order(rows, seed, purpose, self.digest)]

    def shuffled(self, rows: Rows, seed: int) -> Rows:
        """In an order that depends on seed and place, for copies are not to stay together."""
        return rows[_order(rows, seed, "shuffle", lambda row: self.ends[row].to_bytes(8, "little"))]


def split(index: Index, rows: Rows, parts: Sequence[tuple[str, float]], seed: int) -> list[Rows]:
    """What stays, and what each part gets: a name to call it by, and its fraction of all the rows and, as nearly as
    whole rows allow, of each stratum. All in the order of the rows; copies of a row follow the first.

    This is how rows are held out, whether `prepare` or `train` does it. Raises DataError for a part without a row.
    """
    left = dict(sorted(index.stratum.groups(index.ranked(rows, seed, "hold out") if parts else rows)))
    sizes = {stratum: len(group) for stratum, group in left.items()}
    held = []
    for name, fraction in parts:
        share = {stratum: fraction * sizes[stratum] for stratum in left}
        count = {stratum: int(rows) for stratum, rows in share.items()}
        missing = round(fraction * len(rows)) - sum(count.values())
        roomy = (stratum for stratum in left if count[stratum] < len(left[stratum]))
        for stratum in sorted(roomy, key=lambda stratum: count[stratum] - share[stratum])[:missing]:
            count[stratum] += 1
        part: list[Rows] = []
        for stratum, ranked in left.items():
            end = min(count[stratum], len(ranked))
            while 0 < end < len(ranked) and index.digest(ranked[end]) == index.digest(ranked[end - 1]):
                end += 1
            part.append(ranked[:end])
            left[stratum] = ranked[end:]
        if not sum(map(len, part)) and len(rows):
            raise DataError(f"{fraction:g} of {len(rows):,} rows is no row for {name}: hold out more")
        held.append(_in_order(part))
    return [_in_order(list(left.values())), *held]


def _in_order(parts: list[Rows]) -> Rows:
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def each(rows: Rows) -> Iterator[int]:
    """Their numbers, without a list of all."""
    for first in range(0, len(rows), 4096):
        yield from rows[first : first + 4096].tolist()


def _order(rows: Rows, seed: int, purpose: str, what: Callable[[int], bytes]) -> Sequence[int] | Rows:
    """By hash, of equal ones by number."""
    keys, start = bytearray(), hashlib.blake2b(f"{seed} {purpose} ".encode(), digest_size=DIGEST_BYTES)
    for row in each(rows):
        digest = start.copy()
        digest.update(what(row))
        keys += digest.digest()
    high, low = np.frombuffer(keys, ">u8").reshape(-1, 2).T
    return np.lexsort((rows, low, high))
