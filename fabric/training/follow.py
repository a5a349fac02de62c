"""A rank other than the first: it opens the same model, takes rows and first values from the first rank, and does its
share until rank 0 ends the run. It writes and prints nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import NamedTuple, TypeVar

import numpy as np

from fabric import interrupts
from fabric.core import Cancelled, Progress
from fabric.devices.opening import opened
from fabric.distributed.cards import Cards, join
from fabric.distributed.ranks import Ranks
from fabric.errors import DataError, FabricError
from fabric.models.recorder import Weights
from fabric.text.encode import Example
from fabric.training.machine import Batches, Machine, capacities
from fabric.training.parameters import Layout
from fabric.training.settings import RunSettings
from fabric.training.team import COLUMNS, POLL_S, SharedError, Team, raise_first
from fabric.weights.gguf import GGUF

T = TypeVar("T")
_SAMPLE_BYTES = 1024


class Job(NamedTuple):
    """What the first rank tells all others before the first step."""

    settings: RunSettings
    layout: Layout
    alpha: float
    train: list[Example]
    val: list[Example]
    model: str
    """What `sketch` made of the base."""
    kept: str
    """How the run goes on after an end that nobody could prepare for."""


class Enlisted(NamedTuple):
    """All ranks, ready for the first step: the names of their devices, their cards where those add up by themselves,
    and why they do not where each rank has one."""

    devices: list[str]
    cards: Cards | None = None
    reason: str = ""


def enlist(ranks: Ranks, job: Job, machine: Machine) -> Enlisted:
    """On the first rank: what the other ranks need. DeviceError where one cannot."""
    if ranks.size == 1:
        return Enlisted([_device(machine)])
    ranks.kept = job.kept
    with interrupts.held():
        ranks.tell(job)
        raise_first(ranks, "")
        return _ready(ranks, machine)


def follow(ranks: Ranks) -> None:
    """On any other rank, until the first says that nothing follows."""
    with interrupts.held(), ThreadPoolExecutor(1, "fabric-step") as worker:
        job = ranks.tell()
        if job is None:
            return
        ranks.kept = job.kept
        with contextlib.ExitStack() as closing, contextlib.suppress(Cancelled, SharedError):
            machine = None
            error = ""
            try:
                machine = _open(job, closing, ranks.local)
            except FabricError as failed:
                error = str(failed)
            raise_first(ranks, error)
            assert machine is not None
            cards = _ready(ranks, machine).cards
            batches = Batches(machine, job.train, ranks.rank, ranks.size)
            team = Team(ranks, machine, batches, job.val, cards)

            def run(call: Callable[[Progress], T], n: int = 0, calls: int = 1) -> T:
                progress = Progress()
                future = worker.submit(call, progress)
                while True:
                    if interrupts.asked():
                        progress.cancel()
                    try:
                        return future.result(timeout=POLL_S)
                    except FutureTimeout:
                        continue

            while (again := ranks.tell()) is not None:
                with contextlib.suppress(Cancelled, SharedError):
                    team.obey(again, run)
            return
        while ranks.tell() is not None:  # the first rank knows what went wrong, and reports it
            pass


def _open(job: Job, closing: contextlib.ExitStack, local: int) -> Machine:
    settings = job.settings
    gguf = GGUF.open(settings.model)
    closing.callback(gguf.close)
    if sketch(gguf) != job.model:
        raise DataError(f"{settings.model} is another file than on the first rank")
    lengths = [[len(e.tokens) for e in part] for part in (job.train, job.val) if part]

    @contextlib.contextmanager
    def make(settings: RunSettings, weights: Weights) -> Iterator[Machine]:
        with contextlib.closing(
            Machine(settings, weights, job.layout, job.alpha, capacities(settings, *lengths))
        ) as machine:
            yield machine

    return closing.enter_context(opened(settings, gguf, make, profiled=False, local=local)).made


def _ready(ranks: Ranks, machine: Machine) -> Enlisted:
    """On every rank: its first values, and its card joined to those of the others, with a first sum, by which they
    reach each other before any step is timed."""
    names = ranks.collect(_device(machine))
    for buffer in machine.state:
        ranks.copy(buffer)
    cards, reason = join(ranks, machine.weights.device, COLUMNS)
    if cards:
        error = ""
        try:
            machine.plan.accumulate([])
        except FabricError as failed:
            error = str(failed)
        raise_first(ranks, error)
        cards.exchange(machine.plan, np.zeros(COLUMNS))
    return Enlisted(names, cards, reason)


def _device(machine: Machine) -> str:
    return machine.weights.device.info.name


def sketch(gguf: GGUF) -> str:
    """Tells files apart without reading all of them: their size, tensors, and the beginning of each."""
    digest = hashlib.sha256(str(gguf.file_bytes).encode())
    for name, info in gguf.tensors.items():
        digest.update(f"{name} {info.type} {info.shape} {info.offset}".encode())
        digest.update(gguf.data(name)[:_SAMPLE_BYTES])
    return digest.hexdigest()
