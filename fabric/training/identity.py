"""The files of a run as they were when it began: what their bytes hash to, and which of them have changed since."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from fabric.errors import DataError, MissingInputError
from fabric.files import is_stream, shown
from fabric.runs.directory import HASHED
from fabric.training.settings import TrainSettings
from fabric.weights.gguf import GGUF

_PIECE_BYTES = 1 << 20


class Inputs:
    """Made before any of them is read. A base that comes through a pipe has no file to look at again."""

    def __init__(self, settings: TrainSettings) -> None:
        self.files = {name: path for name, path in settings.files.items() if name in HASHED and not is_stream(path)}
        self.before = {name: _state(path) for name, path in self.files.items()}
        self.known: dict[str, str] = {}

    def hash_files(self) -> dict[str, str]:
        """SHA-256 by name, of all but the base."""
        self.known |= {
            name: _sha256(path) for name, path in self.files.items() if name != "model" and name not in self.known
        }
        return self.known

    def hashes(self, gguf: GGUF) -> dict[str, str | None]:
        """SHA-256 by name, of what was read. Raises DataError where a file changed while it was read."""
        self.known["model"] = gguf.sha256()
        self.hash_files()
        for name, path in self.files.items():
            if _state(path) != self.before[name]:
                raise DataError(f"{path}: it changed while it was read; start again")
        return {f"{name}_sha256": self.known.get(name) for name in HASHED}

    def changed(self) -> list[str]:
        """A sentence for each file that is no longer what it was."""
        found = []
        for name, path in self.files.items():
            now, before = _state(path), self.before[name]
            if now == before:
                continue
            if now is None:
                found.append(f"{path} has been removed since this run began; what is written is of the file as it was")
            elif _sha256(path) != self.known[name]:
                mixed = name == "model" and before is not None and now[:2] == before[:2]  # the same file, mapped
                result = "what is written may be of both" if mixed else "what is written is of the file as it was"
                found.append(f"{path} has changed since this run began; {result}")
        return found


def beside(work: Callable[[], dict[str, str | None]]) -> Future[dict[str, str | None]]:
    """Does the work in a thread that nobody has to wait for."""
    future: Future[dict[str, str | None]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fabric-identity", daemon=True).start()
    return future


def _state(path: str) -> tuple[int, ...] | None:
    """What changes with a file's content."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as source:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise MissingInputError(f"{shown(path)} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
