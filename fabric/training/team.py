"""A step and a validation on every rank: its share in the core, then the sums. The first rank says what comes next.

The seam for an engine is small: `Ranks.gather` carries a row of numbers a rank, `Ranks.sum` the flat gradients. Where
each rank has a CUDA card of its own, `Cards` does both at once, and begins while gradients are still computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from fabric.core import Cancelled, Feed, Progress, StepResult
from fabric.data.pack import pack_in_order
from fabric.distributed.cards import Cards
from fabric.distributed.ranks import F64Array, Ranks
from fabric.errors import DeviceError, FabricError
from fabric.text.encode import Example
from fabric.training.machine import Batches, Machine

T = TypeVar("T")
POLL_S = 0.05
LATEST = 16  # shares by which a rank that hangs is known
_LOSS, _TRAINED, _TOKENS, _SECONDS, _STOP, _FAILED, COLUMNS = range(7)


class Run(Protocol):
    """Runs a call into the core beside the main thread, which meanwhile listens for a wish to stop. The call is the
    `n`th of `calls` of a step or a validation."""

    def __call__(self, call: Callable[[Progress], T], n: int = 0, calls: int = 1) -> T: ...


class Step(NamedTuple):
    """A step of all ranks: sums, the tokens of all, and tokens per second of each."""

    result: StepResult
    tokens: int
    speeds: list[float]


class SharedError(DeviceError):
    """One that every rank has heard of."""


class Again(NamedTuple):
    """What the first rank tells the others to do: a step at a rate, or one of these."""

    step: int
    lr: float = 0.0
    speeds: tuple[int, ...] = ()


VALIDATE, AVERAGE = Again(0), Again(-1)


class Team:
    """The part of one rank in a run."""

    def __init__(
        self, ranks: Ranks, machine: Machine, batches: Batches, val: list[Example], cards: Cards | None = None
    ) -> None:
        self.ranks, self.machine, self.batches, self.cards = ranks, machine, batches, cards
        self.latest: dict[str, deque[float]] = {}  # seconds of the slowest shares, but for the very first
        self.apart = False  # the ranks' parameters differ: each updated its own
        self.val = val[ranks.rank :: ranks.size]
        lengths = [len(row.tokens) for row in self.val]
        self.val_packs = pack_in_order(lengths, machine.capacity, machine.settings.pack) if self.val else []

    def step(self, feeds: list[Feed], run: Run) -> Step:
        """An optimizer step, as the machine's optimizer is set. Raises Cancelled, DeviceError of any rank."""
        plan, optimizer = self.machine.plan, self.machine.optimizer
        tokens, began = sum(feed.tokens for feed in feeds), time.perf_counter()
        self._begin(Again(optimizer.t, optimizer.lr, self.batches.speeds))
        if self.ranks.size == 1:
            result = run(lambda progress: plan.step(feeds, optimizer, progress))
            return Step(result, tokens, [tokens / (time.perf_counter() - began)])

        every = self.machine.settings.sync_every

        def accumulate(progress: Progress) -> tuple[float, float]:
            plan.accumulate(feeds, progress, sum=bool(self.cards) and every == 1)
            sums = plan.sums().astype(np.float64)
            return sums[0] + sums[1], sums[2] + sums[3]

        def exchange(row: F64Array, error: str) -> F64Array:
            if self.cards and every == 1:
                return self.cards.exchange(plan, row, error)
            rows = self.ranks.gather(row)
            if every == 1 and not rows[:, [_STOP, _FAILED]].any():
                self.ranks.sum(self.machine.grads)
            return rows

        rows = self._share(lambda: run(accumulate), "step", exchange, tokens)
        loss, trained = _total(rows, _LOSS), _total(rows, _TRAINED)
        speeds = [float(row[_TOKENS] / row[_SECONDS]) for row in rows]
        if every == 1:
            plan.set_sums(np.array([*_halves(loss), *_halves(trained)], np.float32))
            result = plan.update(optimizer)
        else:
            result = self._update_own(StepResult(loss, int(trained), 0.0, True), bool(feeds))
            if optimizer.t % every == 0:
                self._average()
        return Step(result, int(_total(rows, _TOKENS)), speeds)

    def _update_own(self, sums: StepResult, has_rows: bool) -> StepResult:
        """Each rank by its own gradients alone; their norm is the mean of those of the ranks that have rows."""
        own = self.machine.plan.update(self.machine.optimizer) if has_rows else None
        self.apart = True
        found = self.ranks.gather(np.array([own.grad_norm if own else 0.0, own.finite if own else 1.0, has_rows]))
        norm = _total(found, 0) / max(1.0, _total(found, 2))
        return sums._replace(grad_norm=norm, finite=bool(found[:, 1].all()))

    def settle(self) -> None:
        """On the first rank, before parameters are read: averages what the ranks' own steps made of them."""
        if self.apart:
            self._begin(AVERAGE)
            self._average()

    def obey(self, again: Again, run: Run) -> None:
        """On any other rank: what the first one said."""
        optimizer = self.machine.optimizer
        if again == AVERAGE:
            self._average()
        elif again == VALIDATE:
            self.score(run)
        else:
            optimizer.t, optimizer.lr = again.step, again.lr
            self.step(self.batches.feeds(again.step, again.speeds), run)

    def _average(self) -> None:
        for buffer in self.machine.state:
            (self.cards or self.ranks).sum(buffer, mean=True)
        self.apart = False

    def score(self, run: Run) -> float:
        """Mean loss a trained token over the validation rows of all ranks."""
        scorer, machine = self.machine.scorer, self.machine
        assert scorer is not None
        self._begin(VALIDATE)

        def scores() -> tuple[float, float]:
            loss, trained = 0.0, 0
            for n, micro in enumerate(self.val_packs):
                feed = machine.feed([self.val[i] for i in micro])
                run(lambda progress, feed=feed: scorer.run(feed, progress), n, len(self.val_packs))  # type: ignore[misc]
                loss += float(scorer.read(machine.nll, feed.trained, 1).sum(dtype=np.float64))
                trained += feed.trained
            return loss, trained

        rows = self._share(scores, "validation", lambda row, error: self.ranks.gather(row))
        return _total(rows, _LOSS) / _total(rows, _TRAINED)

    def _begin(self, again: Again) -> None:
        if self.ranks.rank == 0:
            self.ranks.tell(again)

    def _share(
        self, work: Callable[[], tuple[float, float]], what: str, exchange: Callable[[F64Array, str], F64Array],
        tokens: int = 0,
    ) -> F64Array:  # fmt: skip
        """Does this rank's part, which comes to a loss and a count, and exchanges what all came to."""
        began, error = time.perf_counter(), ""
        row = np.zeros(COLUMNS)
        try:
            row[_LOSS], row[_TRAINED] = work()
        except Cancelled:
            row[_STOP] = 1
        except FabricError as failed:
            row[_FAILED], error = 1, str(failed)
        row[_TOKENS], row[_SECONDS] = tokens, time.perf_counter() - began
        with self.ranks.awaiting(what, max(self.latest.get(what, ()), default=0.0)):
            rows = exchange(row, error)
        if what in self.latest:
            self.latest[what].append(float(rows[:, _SECONDS].max()))
        self.latest.setdefault(what, deque(maxlen=LATEST))
        if rows[:, _FAILED].any():
            raise_first(self.ranks, error)
        if rows[:, _STOP].any():
            raise Cancelled("stopped")
        return rows


def raise_first(ranks: Ranks, error: str) -> None:
    """SharedError on every rank where any of them has an error, by the name of the first one that has."""
    for rank, text in enumerate(ranks.collect(error)):
        if text:
            raise SharedError(f"rank {rank} on {ranks.hosts[rank]}: {text}" if ranks.size > 1 else text)


def _total(rows: F64Array, column: int) -> float:
    total = 0.0
    for row in rows:
        total += float(row[column])
    return total


def _halves(value: float) -> tuple[np.float32, np.float32]:
    """Two floats whose sum it is."""
    high = np.float32(value)
    return high, np.float32(value - float(high))
