"""Sums by the CUDA cards of all ranks themselves (NCCL), where each rank has one of its own. MPI carries the rest: the
id by which they join, first values, and the signs of life. A wait here never ends by itself: the ranks' thread beside
it names the one that is lost or hangs, and MPI ends all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from fabric.core import Buffer, Device, Plan
from fabric.distributed.mpi import SILENT_S
from fabric.distributed.ranks import F64Array, Ranks
from fabric.errors import DeviceError, FabricError

_MOST_PAUSE_S = 0.001
_LEAST_S, _LEAST_BYTES_PER_S = 60.0, 1e7  # a sum that is slower than this will not end


def join(ranks: Ranks, device: Device, columns: int) -> tuple[Cards | None, str]:
    """The cards of all ranks, joined; or None, and why not where every rank has one. `columns` of the rows that travel
    with gradients. All ranks call it together."""
    is_card = device.info.backend == "cuda"
    peers_id, reason, card = b"", "", ""
    if is_card:
        try:
            card = device.card()
            peers_id = device.peers_id(make=ranks.rank == 0)
        except DeviceError as error:
            reason = str(error)
    cards, reasons = ranks.collect(card if is_card else "-"), ranks.collect(reason)
    if "-" in cards:
        return None, ""
    if (sentence := _refused(ranks, cards, reasons)) or (sentence := _joined(ranks, device, ranks.tell(peers_id))):
        return None, f"{sentence}; gradients travel over MPI"
    return Cards(ranks, device, columns), ""


def _refused(ranks: Ranks, cards: list[str], reasons: list[str]) -> str:
    first: dict[tuple[str, str], int] = {}
    for rank, reason in enumerate(reasons):
        if reason:
            return f"{ranks.name(rank)}: {reason}"
        other = first.setdefault((ranks.hosts[rank], cards[rank]), rank)
        if other != rank:
            return f"{ranks.name(other)} and rank {rank} share a card, which NCCL refuses"
    return ""


def _joined(ranks: Ranks, device: Device, peers_id: bytes) -> str:
    error = ""
    try:
        device.join(peers_id, ranks.rank, ranks.size)
    except DeviceError as failed:
        error = str(failed)
    for rank, reason in enumerate(ranks.collect(error)):
        if reason:
            device.leave()
            return f"{ranks.name(rank)}: {reason}"
    return ""


class Cards:
    """The cards of all ranks. What fails here ends all of them, since the others would wait in vain."""

    def __init__(self, ranks: Ranks, device: Device, columns: int) -> None:
        self.ranks, self.device = ranks, device
        self.columns = 2 * columns  # a number is two floats, whose sum it is
        self.rows = Buffer(device, ranks.size * self.columns * 4)

    def exchange(self, plan: Plan, row: F64Array, error: str = "") -> F64Array:
        """Adds up what is left of a plan's gradients; with them travel the rows of all ranks, which it returns.
        `error`: what this rank failed with before."""
        mine = np.zeros((self.ranks.size, self.columns), np.float32)
        high = row.astype(np.float32)
        with np.errstate(invalid="ignore"):
            low = (row - high.astype(np.float64)).astype(np.float32)
        mine[self.ranks.rank] = np.concatenate([high, np.where(np.isfinite(low), low, 0)])
        with self._ending(error):
            self.rows.write(mine)
            plan.sum(self.rows)
            self._wait(plan.trained_bytes)
            found = self.rows.read().reshape(mine.shape).astype(np.float64)
        return found[:, : len(row)] + found[:, len(row) :]

    def sum(self, buffer: Buffer, mean: bool = False) -> None:
        """Replaces a buffer by its sum over all ranks, or their mean."""
        with self._ending():
            buffer.sum(mean)
            self._wait(buffer.nbytes)

    @contextlib.contextmanager
    def _ending(self, error: str = "") -> Iterator[None]:
        try:
            yield
        except FabricError as failed:
            why = error or str(failed)
        else:
            return
        if not error:
            time.sleep(SILENT_S + 2)  # a rank that is gone is named by the rank after it
        self.ranks.fail(f"{self.ranks.name(self.ranks.rank)}: {why}", DeviceError.exit_code)

    def _wait(self, n_bytes: int) -> None:
        began, most_s = time.monotonic(), _LEAST_S + n_bytes / _LEAST_BYTES_PER_S
        while not self.device.summed():
            waited = time.monotonic() - began
            if waited > most_s:
                raise DeviceError(f"NCCL did not add up {n_bytes / 2**20:.0f} MiB in {waited:.0f} s")
            time.sleep(min(_MOST_PAUSE_S, waited / 20))
