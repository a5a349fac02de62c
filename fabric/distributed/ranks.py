"""What the ranks of a run need of each other. An engine fills this in; one process alone needs none."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fabric.core import Buffer

F64Array = npt.NDArray[np.float64]


class Ranks(Protocol):
    """Calls that all ranks make together, in the same order. `rank` 0 is the first of `size`."""

    rank: int
    size: int
    hosts: list[str]
    """Of each rank."""
    kept: str
    """How the run goes on where it ends by `fail`."""

    def tell(self, value: Any = None) -> Any:
        """The first rank's value, on every rank."""

    def collect(self, text: str) -> list[str]:
        """The texts of all ranks, on every rank."""

    def gather(self, row: F64Array, what: str = "", slowest_s: float = 0.0) -> F64Array:
        """(size, n): the rows (n,) of all ranks, on every rank. `slowest_s`: what the slowest rank ever took until its
        row of such a "step" was there; the first rank ends the run where one is overdue by far. 0: nobody knows."""

    def sum(self, buffer: Buffer, empty: bool = False, mean: bool = False) -> None:
        """Replaces a buffer of F32 by its sum over all ranks, added up in their order, or by their mean. `empty`: this
        rank adds 0."""

    def copy(self, buffer: Buffer) -> None:
        """Replaces a buffer by the first rank's."""

    def fail(self, sentence: str, code: int) -> NoReturn:
        """Ends all ranks at once, from any thread."""


class Alone:
    """One rank, which has nobody to wait for."""

    def __init__(self) -> None:
        self.rank, self.size, self.hosts, self.kept = 0, 1, [""], ""

    def tell(self, value: Any = None) -> Any:
        return value

    def collect(self, text: str) -> list[str]:
        return [text]

    def gather(self, row: F64Array, what: str = "", slowest_s: float = 0.0) -> F64Array:
        return row[np.newaxis]

    def sum(self, buffer: Buffer, empty: bool = False, mean: bool = False) -> None:
        pass

    def copy(self, buffer: Buffer) -> None:
        pass

    def fail(self, sentence: str, code: int) -> NoReturn:
        raise SystemExit(code)
