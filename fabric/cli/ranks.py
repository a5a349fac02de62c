"""Commands under a launcher of several processes (mpirun, mpiexec, srun): `train` and `resume` share their work, the
others are refused, because each copy would write what the others write.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric import interrupts, notices
from fabric.distributed.launcher import Launch, launched
from fabric.errors import FabricError, OutputError, UsageError

if TYPE_CHECKING:
    from fabric.distributed.mpi import MpiRanks

TOGETHER = ("train", "resume")
COPIES = ("devices",)  # what each process says is its own
FIRST_S = 2.0  # the first rank may take so long to say what all of them would say


def launch() -> Launch:
    """Which of how many processes this is."""
    return launched(os.environ)


def check(command: str) -> None:
    """UsageError for a command that several processes would only repeat."""
    if command not in (*TOGETHER, *COPIES):
        found = launch()
        raise UsageError(
            f"{found.launcher} started {found.size} processes, and each would do the same work and write the same "
            f"files: start `fabric {command}` without it ({' and '.join(TOGETHER)} run on several)"
        )


def named(message: str) -> str:
    """A message of this process. One that is not the first waits for the first to say the same and end them all."""
    found = launch()
    if found.rank == 0:
        return message
    time.sleep(FIRST_S)
    return f"rank {found.rank}: {message}"


@contextlib.contextmanager
def joined() -> Iterator[MpiRanks | None]:
    """The ranks that the launcher started, until the first of them is done; None where this process is alone."""
    if launch().size == 1:
        yield None
        return
    from fabric.distributed.mpi import MpiRanks

    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink can leave the cards of a host out of service
    with interrupts.held():
        ranks = MpiRanks(launch(), _say)
    try:
        yield ranks
    except BaseException as error:
        if ranks.rank or ranks.inside:  # the others wait in vain
            with interrupts.held():
                code = error.exit_code if isinstance(error, FabricError) else FabricError.exit_code
                ranks.fail(f"{ranks.name(ranks.rank)}: {str(error) or type(error).__name__}", code)
        _end(ranks, failed=True)
        if isinstance(error, OutputError):
            raise OutputError(f"{ranks.name(0)}: {error}") from error
        raise
    _end(ranks)


def follow(ranks: MpiRanks) -> None:
    """What every rank but the first does."""
    from fabric.training.follow import follow

    follow(ranks)


def _end(ranks: MpiRanks, failed: bool = False) -> None:
    with interrupts.held():
        if ranks.rank == 0:
            ranks.tell(None)
        ranks.leave(failed)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{notices.speaker}: {sentence}\n".encode())
