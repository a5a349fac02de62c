"""The run directory: its lock, its settings, and checkpoints that count only when whole.

run.json             settings and the hashes of data and base
data.jsonl           rows that came through stdin
metrics.jsonl        one object a step
step-00000042.ckpt   a line of JSON, then params, m and v as F32, then the SHA-256 of all before it
best.ckpt            the same of the params alone, where --patience keeps the best ones

Checkpoints of whole models take gigabytes, so they are written and read in pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError, MissingInputError, OutputError
from fabric.files import open_output

F32Array = npt.NDArray[np.float32]
_PIECE_BYTES = 1 << 22


class Snapshot(NamedTuple):
    """All that a run needs to go on: the optimizer steps done, running totals, and arrays of `size` elements, each in
    pieces."""

    step: int
    totals: dict[str, Any]
    size: int
    arrays: Sequence[Iterable[F32Array]]


class Checkpoint(NamedTuple):
    """A snapshot in a file that was found whole; its arrays begin at byte `start`."""

    path: Path
    step: int
    totals: dict[str, Any]
    size: int
    arrays: int
    start: int

    def pieces(self, array: int) -> Iterator[F32Array]:
        """An array from its first element to its last."""
        with self.path.open("rb") as source:
            source.seek(self.start + array * self.size * 4)
            left = self.size * 4
            while left:
                piece = source.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise OutputError(f"{self.path} was cut while it was read")
                left -= len(piece)
                yield np.frombuffer(piece, np.float32)


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


def write_checkpoint(directory: Path, snapshot: Snapshot, keep: int = 2) -> Path:
    """Writes one atomically, then drops all but the newest `keep`."""
    path = directory / f"step-{snapshot.step:08d}.ckpt"
    write_snapshot(path, snapshot)
    for old in sorted(directory.glob("step-*.ckpt"))[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Writes one under that name, atomically."""
    head = {"step": snapshot.step, "n": snapshot.size, "arrays": len(snapshot.arrays), "totals": snapshot.totals}
    digest = hashlib.sha256()
    with open_output(path) as out:

        def put(piece: bytes | memoryview) -> None:
            digest.update(piece)
            out.write(piece)

        put(json.dumps(head).encode() + b"\n")
        for array in snapshot.arrays:
            for piece in array:
                put(piece.data.cast("B"))
        out.write(digest.digest())


def read_checkpoint(path: Path) -> Checkpoint | None:
    """None for one that is cut or damaged."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            left = path.stat().st_size - digest.digest_size
            while left > 0 and (piece := source.read(min(left, _PIECE_BYTES))):
                digest.update(piece)
                left -= len(piece)
            if left or source.read() != digest.digest():
                return None
            source.seek(0)
            head = json.loads(source.readline())
            return Checkpoint(path, head["step"], head["totals"], head["n"], head["arrays"], source.tell())
    except OSError:
        return None


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest valid one, or None where the run had not come to its first."""
    for path in sorted(directory.glob("step-*.ckpt"), reverse=True):
        found = read_checkpoint(path)
        if found is not None:
            return found
    return None
