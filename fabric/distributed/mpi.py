"""Ranks over MPI, through mpi4py.

Every call is a nonblocking one that is polled, so that no rank waits for ever. A thread beside it sends a sign of life
to the next rank each second and listens for that of the rank before: one that was stopped, or whose host is gone, ends
the run. A sign also says whether its rank awaits others: one that does not, long after this rank did its share, hangs.
The same thread carries the wish to stop. All calls into MPI are made under one lock.

MPI only moves bytes here. Sums are our own, in the order of the ranks, because the order in which MPI_Allreduce adds
may change with the implementation, the message and the placement of ranks.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from fabric import interrupts
from fabric.core import Buffer
from fabric.distributed.launcher import Launch
from fabric.distributed.ranks import F64Array
from fabric.errors import DeviceError

TICK_S = 0.1  # the thread looks so often
BEAT_S = 1.0  # between signs of life
SILENT_S = 12.0  # without one: that rank is lost
LEAST_WAIT_S = 20.0  # for a rank whose process lives; more where steps take long
FIRST_WAIT_S = 600.0  # in the first steps, which may have to compile kernels
SLOWER = 10.0  # times the slowest share of the steps before: that rank hangs
_PIECE = 1 << 22  # elements of the gradients, or bytes of an object, that travel at a time
_INLINE = 1024  # bytes of a message that needs no second one
_BEAT, _STOP = 71, 72
_BUSY, _AWAITS, _END = 0, 1, 2  # what such a message says: its rank works, or awaits others; or it is the last
_MOST_PAUSE_S = 0.002
_LAST_S = 2.0


class MpiRanks:
    """The ranks that a launcher started. `say` writes a sentence where nothing else can."""

    def __init__(self, launch: Launch, say: Callable[[str], None]) -> None:
        """DeviceError where mpi4py is missing or belongs to another MPI than the launcher."""
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            why = "mpi4py finds no MPI library: let MPI4PY_LIBMPI name the libmpi.so of that launcher"
            if isinstance(error, ModuleNotFoundError):
                why = "mpi4py, through which they share a run, is not installed: pip install 'fabric-llm[mpi]'"
            raise DeviceError(f"{launch.launcher} started {launch.size} processes, and {why}") from error
        self.mpi: Any = MPI
        self.comm: Any = MPI.COMM_WORLD
        self.say = say
        self.rank, self.size = int(self.comm.Get_rank()), int(self.comm.Get_size())
        if (self.rank, self.size) != launch[:2]:
            library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip()
            raise DeviceError(
                f"{launch.launcher} started {launch.size} processes, but mpi4py uses {library}, which sees "
                f"{self.size}: start fabric with the mpirun of that library, or let MPI4PY_LIBMPI name the other one"
            )
        self.lock = threading.Lock()
        self.inside = False  # of a call that all ranks make together
        self.awaits: tuple[float, float, str] | None = None  # others, since when, how long at most, and to do what
        self.kept = ""  # how the run can go on, where it ends here
        self.left = threading.Event()
        self.after, self.before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        self.told = (
            range(1, self.size) if self.rank == 0 else range(1)
        )  # where the wish to stop goes to, and comes from
        self.sent: list[Any] = []  # by the thread, and perhaps still under way
        self.silent: set[tuple[int, int]] = set()  # ranks and tags whose last message came
        self.busy = False  # the rank before, as far as is known
        self.hosts = [socket.gethostname()] * self.size
        self.pulse = threading.Thread(target=self._pulse, name="fabric-ranks", daemon=True)
        self.pulse.start()
        self.hosts = self.collect(socket.gethostname())
        here = [rank for rank in range(self.size) if self.hosts[rank] == self.hosts[self.rank]]
        self.local = launch.local if launch.local >= 0 else here.index(self.rank)
        self._divide_cores(here)

    def name(self, rank: int) -> str:
        """A rank, in words."""
        return f"rank {rank} on {self.hosts[rank]}"

    def tell(self, value: Any = None) -> Any:
        """The first rank's value, on every rank."""
        with self._together():
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if self.rank == 0 else b""
            head = np.zeros(8 + _INLINE, np.uint8)
            if self.rank == 0:
                head[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
                head[8 : 8 + min(len(data), _INLINE)] = np.frombuffer(data[:_INLINE], np.uint8)
            self._wait([self._start("Ibcast", head)])
            size = int.from_bytes(head[:8].tobytes(), "little")
            if size <= _INLINE:
                return value if self.rank == 0 else pickle.loads(head[8 : 8 + size].tobytes())
            body = np.frombuffer(data, np.uint8) if self.rank == 0 else np.empty(size, np.uint8)
            for at in range(0, size, _PIECE):
                piece = body[at : at + _PIECE]
                self._wait([self._start("Ibcast", piece)])
            return value if self.rank == 0 else pickle.loads(body.tobytes())

    def collect(self, text: str) -> list[str]:
        """The texts of all ranks, on every rank."""
        mine = text.encode()
        found = []
        for root, size in enumerate(self.gather(np.array([len(mine)], np.float64))[:, 0]):
            data = np.frombuffer(mine, np.uint8).copy() if root == self.rank else np.empty(int(size), np.uint8)
            if len(data):
                with self._together():
                    self._wait([self._start("Ibcast", data, root)])
            found.append(data.tobytes().decode())
        return found

    @contextlib.contextmanager
    def awaiting(self, what: str, slowest_s: float) -> Iterator[None]:
        """This rank did its share, and awaits the others: the one before it is ended where it hangs."""
        limit_s = max(LEAST_WAIT_S, SLOWER * slowest_s) if slowest_s else FIRST_WAIT_S
        self.awaits = time.monotonic(), limit_s, what
        try:
            yield
        finally:
            self.awaits = None

    def gather(self, row: F64Array) -> F64Array:
        """The rows of all ranks, on every rank."""
        with self._together():
            rows = np.empty((self.size, len(row)))
            self._wait([self._start("Iallgather", np.ascontiguousarray(row), rows)])
            return rows

    def sum(self, buffer: Buffer, mean: bool = False) -> None:
        """The sum or mean over all ranks, piece by piece: every rank adds up one slice of each piece."""
        with self._together():
            n, total = self.size, buffer.nbytes // 4
            most = -(-min(_PIECE, total) // n) * n
            send, got, part = np.zeros(most, np.float32), np.empty(most, np.float32), np.empty(most // n, np.float32)
            for at in range(0, total, most):
                count = min(most, total - at)
                width = -(-count // n)
                flat, theirs, mine = send[: width * n], got[: width * n], part[:width]
                flat[count:] = 0
                buffer.read_into(flat[:count], at * 4)
                self._wait([self._start("Ialltoall", flat, theirs)])
                rows = theirs.reshape(n, width)
                np.copyto(mine, rows[0])
                for row in rows[1:]:
                    mine += row
                if mean:
                    mine /= n
                self._wait([self._start("Iallgather", mine, flat)])
                buffer.write(flat[:count], at * 4)

    def copy(self, buffer: Buffer) -> None:
        """The first rank's buffer, on every rank."""
        with self._together():
            total = buffer.nbytes // 4
            piece = np.empty(min(_PIECE, total), np.float32)
            for at in range(0, total, _PIECE):
                part = piece[: min(_PIECE, total - at)]
                if self.rank == 0:
                    buffer.read_into(part, at * 4)
                self._wait([self._start("Ibcast", part)])
                if self.rank:
                    buffer.write(part, at * 4)

    def fail(self, sentence: str, code: int) -> NoReturn:
        """Ends all ranks at once."""
        self.say(f"{sentence}; {self.kept}" if self.kept else sentence)
        interrupts.drop_unfinished()
        self.comm.Abort(code)
        os._exit(code)

    def leave(self, failed: bool = False) -> None:
        """No more calls follow: the first rank has told so. Where it `failed` it ends last: launchers kill what is left
        when a process ends so, and would report that in place of its exit code."""
        self.left.set()
        self.pulse.join()
        self._take_the_last()
        self.mpi.Finalize()
        if failed:
            time.sleep(_LAST_S)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def _start(self, call: str, *arguments: Any) -> Any:
        with self.lock:
            return getattr(self.comm, call)(*arguments)

    def _wait(self, requests: list[Any]) -> None:
        """Until all have ended; pauses grow with the wait, to a twentieth of it."""
        began = time.monotonic()
        while True:
            with self.lock:
                if all(request.Test() for request in requests):
                    return
            time.sleep(min(_MOST_PAUSE_S, (time.monotonic() - began) / 20))

    def _pulse(self) -> None:
        """The thread: signs of life, and the wish to stop, which goes to the first rank and from there to all."""
        signs = np.array([[_BUSY], [_AWAITS]], np.uint8)
        last_heard = looked = time.monotonic()
        last_sent, passed_on = 0.0, False
        while not self.left.wait(TICK_S):
            now = time.monotonic()
            if now - looked > BEAT_S:  # this process was stopped itself
                last_heard = now
            looked = now
            with self.lock:
                if now - last_sent >= BEAT_S:
                    self.sent.append(self.comm.Isend(signs[int(self.awaits is not None)], self.after, _BEAT))
                    last_sent = now
                if self._heard(self.before, _BEAT):
                    last_heard = now
                if any(self._heard(rank, _STOP) for rank in self.told):
                    interrupts.request()
                if interrupts.asked() and not passed_on:
                    passed_on = True
                    self.sent += [self.comm.Isend(signs[0], rank, _STOP) for rank in self.told]
                self.sent = [request for request in self.sent if not request.Test()]
            silent_s = now - last_heard
            if silent_s > SILENT_S:
                self.fail(f"{self.name(self.before)} has not answered for {silent_s:.0f} s", DeviceError.exit_code)
            began, limit_s, what = self.awaits or (now, math.inf, "")
            if now - began > limit_s and self.busy and last_heard > began + limit_s / 2:
                others = f"{self.name(self.rank)} did its share {now - began:.0f} s ago"
                self.fail(f"{self.name(self.before)} hung in a {what}: {others}", DeviceError.exit_code)

    def _heard(self, rank: int, tag: int) -> bool:
        """Whether signs came from a rank. Reads all that are there; the last of all is noted, and whether the rank
        works."""
        signs, value = 0, np.zeros(1, np.uint8)
        while self.comm.Iprobe(rank, tag):
            self.comm.Recv(value, rank, tag)
            if value[0] == _END:
                self.silent.add((rank, tag))
            else:
                signs += 1
                self.busy = value[0] == _BUSY if tag == _BEAT else self.busy
        return signs > 0

    def _take_the_last(self) -> None:
        """Reads what is still under way: MPI may refuse to end with a message unread."""
        end, began = np.full(1, _END, np.uint8), time.monotonic()
        self.sent += [
            self.comm.Isend(end, self.after, _BEAT),
            *(self.comm.Isend(end, rank, _STOP) for rank in self.told),
        ]
        awaited = {(self.before, _BEAT), *((rank, _STOP) for rank in self.told)}
        while awaited - self.silent and time.monotonic() - began < SILENT_S:
            for rank, tag in awaited - self.silent:
                self._heard(rank, tag)
            time.sleep(_MOST_PAUSE_S)
        self._wait(self.sent)

    def _divide_cores(self, here: list[int]) -> None:
        """The ranks of a host that may all run on the same cores divide them; a launcher that bound them did so."""
        if not hasattr(os, "sched_getaffinity"):
            return
        mine = sorted(os.sched_getaffinity(0))
        told = self.collect(",".join(map(str, mine)))
        if len(here) > 1 and len({told[r] for r in here}) == 1:
            at, n, k = here.index(self.rank), len(here), len(mine)
            share = mine[at * k // n : (at + 1) * k // n] or [mine[at % k]]
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, share)
