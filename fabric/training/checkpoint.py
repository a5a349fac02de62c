"""The run directory: its lock, its settings, and checkpoints that count only when whole.

run.json             settings and the hashes of data and base
data.jsonl           rows that came through stdin
metrics.jsonl        one object a step
step-00000042.ckpt   a line of JSON, then params, m and v as F32, then the SHA-256 of all before it
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError, MissingInputError, OutputError
from fabric.files import open_output

F32Array = npt.NDArray[np.float32]
KEPT = 2


class Checkpoint(NamedTuple):
    """All that a run needs to go on: flat arrays (n,), the optimizer steps done, and running totals."""

    step: int
    arrays: tuple[F32Array, ...]
    totals: dict[str, Any]


def lock_run(directory: Path) -> IO[bytes]:
    """Holds the run directory until the file is closed; OutputError when another process holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        raise OutputError(f"run directory {directory} cannot be written: {error.strerror}") from error
    try:
        import fcntl
    except ImportError:  # Windows: no lock, as there is no resume from a second shell to guard against
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise OutputError(f"{directory} is in use by another process; choose another --run-dir") from error
    return lock


def write_run(directory: Path, values: dict[str, Any]) -> None:
    """Settings and hashes, once, before the first step."""
    with open_output(directory / "run.json") as out:
        out.write(json.dumps(values, indent=1).encode() + b"\n")


def read_run(directory: Path) -> dict[str, Any]:
    """What `write_run` wrote; MissingInputError when there is no run there, DataError when it is damaged."""
    path = directory / "run.json"
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise MissingInputError(f"{directory} holds no run to resume: {path.name} cannot be read") from error
    except ValueError as error:
        raise DataError(f"{path}: not the settings of a run: {error}") from error
    if not isinstance(values, dict) or not {"settings", "model_sha256", "data_sha256"} <= values.keys():
        raise DataError(f"{path}: not the settings of a run")
    return values


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Writes one atomically, then drops all but the newest two."""
    head = {"step": checkpoint.step, "n": int(checkpoint.arrays[0].size), "arrays": len(checkpoint.arrays),
            "totals": checkpoint.totals}  # fmt: skip
    path = directory / f"step-{checkpoint.step:08d}.ckpt"
    digest = hashlib.sha256()
    with open_output(path) as out:
        pieces: list[bytes | memoryview] = [json.dumps(head).encode() + b"\n"]
        for piece in pieces + [a.data.cast("B") for a in checkpoint.arrays]:
            digest.update(piece)
            out.write(piece)
        out.write(digest.digest())
    for old in sorted(directory.glob("step-*.ckpt"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint | None:
    """None for one that is cut or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < 32 or hashlib.sha256(memoryview(data)[:-32]).digest() != data[-32:]:
        return None
    line, _, rest = data[:-32].partition(b"\n")
    head = json.loads(line)
    n, count = head["n"], head["arrays"]
    arrays = tuple(np.frombuffer(rest, np.float32, n, i * n * 4).copy() for i in range(count))
    return Checkpoint(head["step"], arrays, head["totals"])


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest valid one, or None where the run had not come to its first."""
    for path in sorted(directory.glob("step-*.ckpt"), reverse=True):
        found = read_checkpoint(path)
        if found is not None:
            return found
    return None
