"""What the ranks of a run need of each other. An engine fills this in; one process alone needs none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fabric.core import Buffer

F64Array = npt.NDArray[np.float64]


class Ranks(Protocol):
    """Calls that all ranks make together, in the same order. `rank` 0 is the first of `size`."""

    rank: int
    size: int
    local: int
    """The number of this rank among those of its host."""
    hosts: list[str]
    """Of each rank."""
    kept: str
    """How the run goes on where it ends by `fail`."""

    def tell(self, value: Any = None) -> Any:
        """The first rank's value, on every rank."""

    def collect(self, text: str) -> list[str]:
        """The texts of all ranks, on every rank."""

    def name(self, rank: int) -> str:
        """A rank, in words."""

    def awaiting(self, what: str, slowest_s: float) -> AbstractContextManager[None]:
        """A block that this rank begins when its share of a "step" is done, and leaves when the others did theirs and
        exchanged what it came to. `slowest_s`: what the slowest share of late took; a rank that is overdue by far ends
        the run, by its name. 0: that is not known yet."""

    def gather(self, row: F64Array) -> F64Array:
        """(size, n): the rows (n,) of all ranks, on every rank."""

    def sum(self, buffer: Buffer, mean: bool = False) -> None:
        """Replaces a buffer of F32 by its sum over all ranks, added up in their order, or by their mean."""

    def copy(self, buffer: Buffer) -> None:
        """Replaces a buffer by the first rank's."""

    def fail(self, sentence: str, code: int) -> NoReturn:
        """Ends all ranks at once, from any thread."""


class Alone:
    """One rank, which has nobody to wait for."""

    def __init__(self) -> None:
        self.rank, self.size, self.local, self.hosts, self.kept = 0, 1, 0, [""], ""

    def name(self, rank: int) -> str:
        return ""

    def awaiting(self, what: str, slowest_s: float) -> AbstractContextManager[None]:
        return nullcontext()

    def tell(self, value: Any = None) -> Any:
        return value

    def collect(self, text: str) -> list[str]:
        return [text]

    def gather(self, row: F64Array) -> F64Array:
        return row[np.newaxis]

    def sum(self, buffer: Buffer, mean: bool = False) -> None:
        pass

    def copy(self, buffer: Buffer) -> None:
        pass

    def fail(self, sentence: str, code: int) -> NoReturn:
        raise SystemExit(code)
