"""Checkpoints in a run directory, which count only when whole.

step-00000042.ckpt   a line of JSON, then params, m and v as F32, then the SHA-256 of all before it
best.ckpt            the same of the params alone, where --patience keeps the best ones

Checkpoints of whole models take gigabytes, so they are written and read in pieces. One may come from a stranger:
everything that it says is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError, OutputError
from fabric.files import open_output
from fabric.notices import notice
from fabric.runs.directory import STEP
from fabric.training.dealing import shares_of

F32Array = npt.NDArray[np.float32]
_PIECE_BYTES = 1 << 22
_MOST_HEAD_BYTES = 1 << 16


@dataclass
class Totals:
    """Running totals that a checkpoint carries."""

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    smooth: float = math.nan  # running mean of the loss over about ten steps
    lowest: float = math.inf  # that it ever was
    val_loss: float | None = None
    validated: int = 0  # the step that val_loss is of
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0  # validations since the best one
    shares: str = ""  # of the ranks, where their speed was measured

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "shares" or value}


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
        """An array from its first element to its last. DataError where one is not finite."""
        with self.path.open("rb") as source:
            source.seek(self.start + array * self.size * 4)
            left = self.size * 4
            while left:
                piece = source.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise OutputError(f"{self.path} was cut while it was read")
                left -= len(piece)
                numbers = np.frombuffer(piece, np.float32)
                if not np.isfinite(numbers).all():
                    raise self.false("it holds numbers that are not finite")
                yield numbers

    def checked_totals(self) -> Totals:
        """The totals, all of them and nothing else; DataError where they are not those of a run at that step."""
        kinds = {field.name: str(field.type) for field in fields(Totals)}
        told = {"shares": "", **self.totals}
        if told.keys() != kinds.keys():
            raise self.false("its totals are not those of a run")
        for name, value in told.items():
            if name == "shares":
                self._check_shares(value)
                continue
            if value is None and "None" in kinds[name]:
                continue
            if type(value) is not int and (type(value) is not float or kinds[name] == "int"):
                raise self.false(f"its {name} is {json.dumps(value)[:40]}")
            if type(value) is int and not 0 <= value < 1 << 63:
                raise self.false(f"its {name} is out of range")
        totals = Totals(**told)
        if max(totals.validated, totals.best_step, totals.stale) > self.step or totals.trained_tokens > totals.tokens:
            raise self.false("its totals contradict each other")
        if not totals.seconds >= 0 or (totals.best_loss is None) != (totals.best_step == 0):
            raise self.false("its totals contradict each other")
        if self.step and not all(map(math.isfinite, (totals.seconds, totals.loss, totals.smooth, totals.lowest))):
            raise self.false("its totals are not finite")
        return totals

    def _check_shares(self, value: object) -> None:
        try:
            whole = isinstance(value, str) and (not value or shares_of(value) == value)
        except ValueError:
            whole = False
        if not whole:
            raise self.false(f"its shares are {json.dumps(value)[:40]}")

    def false(self, what: str) -> DataError:
        """What is wrong with a file that is whole and does not belong to the run."""
        return DataError(f"{self.path}: not a checkpoint of this run: {what}; remove it to go on from the one before")


def write_checkpoint(directory: Path, snapshot: Snapshot, keep: int = 2) -> Path:
    """Writes one atomically, then drops all but the newest `keep`."""
    path = directory / f"step-{snapshot.step:08d}.ckpt"
    write_snapshot(path, snapshot)
    for old in checkpoints(directory)[keep:]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(directory: Path) -> list[Path]:
    """Files that are called as checkpoints, the newest first."""
    named = ((STEP.fullmatch(path.name), path) for path in directory.iterdir())
    return [path for _, path in sorted(((int(name[1]), path) for name, path in named if name), reverse=True)]


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
    """None for one that is not there, cut or damaged; DataError for one that is whole and false."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            size = path.stat().st_size - digest.digest_size
            left = size
            while left > 0 and (piece := source.read(min(left, _PIECE_BYTES))):
                digest.update(piece)
                left -= len(piece)
            if left or source.read() != digest.digest():
                return None
            source.seek(0)
            line = source.readline(_MOST_HEAD_BYTES)
            start = source.tell()
    except OSError:
        return None
    found = Checkpoint(path, 0, {}, 0, 0, start)
    try:
        head = json.loads(line)
        found = Checkpoint(path, head.pop("step"), head.pop("totals"), head.pop("n"), head.pop("arrays"), start)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise found.false("its first line is not that of a checkpoint") from None
    counts = (found.step, found.size, found.arrays)
    if head or not isinstance(found.totals, dict) or any(type(n) is not int or not 0 <= n < 1 << 60 for n in counts):
        raise found.false("its first line is not that of a checkpoint")
    if found.arrays * found.size * 4 != size - start:
        raise found.false(f"it does not hold {found.arrays} times {found.size} numbers")
    if (name := STEP.fullmatch(path.name)) and int(name[1]) != found.step:
        raise found.false(f"it is of step {found.step}")
    return found


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest valid one, or None where the run had not come to its first. DataError for one that is false."""
    for path in checkpoints(directory):
        found = read_checkpoint(path)
        if found is not None:
            return found
        notice(f"{path} is cut or damaged, and passed over")
    return None
