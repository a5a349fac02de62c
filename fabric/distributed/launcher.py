"""Which launcher started this process, and as which of how many, by the environment that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """Process `rank` of `size` that `launcher` started; `local`: its number among those of its host, -1: not known."""

    rank: int
    size: int
    launcher: str
    local: int = -1


# The variables of the number of processes and of this one's number. A launcher that runs under Slurm comes first.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "Open MPI"),
    ("PMI_SIZE", "PMI_RANK", "mpiexec"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MVAPICH"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
)
_LOCAL = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
ALONE = Launch(0, 1, "", 0)


def launched(environment: Mapping[str, str]) -> Launch:
    """The launch that the environment tells of; ALONE where there is none."""
    for size, rank, launcher in _LAUNCHERS:
        found = environment.get(size, ""), environment.get(rank, "")
        if all(text.isascii() and text.isdigit() for text in found) and int(found[1]) < int(found[0]):
            local = (environment.get(name, "") for name in _LOCAL)
            told = next((text for text in local if text.isascii() and text.isdigit()), "-1")
            return Launch(int(found[1]), int(found[0]), launcher, int(told))
    return ALONE
