"""A folder that a stranger made. Only regular files inside it are read, whole and of bounded size, and which ones were
read is remembered, so that a result can name its inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fabric.errors import DataError, MissingInputError
from fabric.fields import Fields, is_text, short

MOST_SETTINGS = 16 << 20  # bytes; real ones have some thousand
MOST_VOCABULARY = 128 << 20  # the largest have some 35 MB


class Folder:
    """Files by their names in a folder; every method takes a name such as "config.json"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: dict[str, Path] = {}  # name: path of each file that was opened

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def names(self, pattern: str) -> list[str]:
        """Sorted names of files that match a glob."""
        try:
            return sorted(path.name for path in self.path.glob(pattern) if path.is_file())
        except OSError as error:
            raise MissingInputError(f"{self.path} cannot be read: {_reason(error)}") from error

    def path_of(self, name: str, told_by: str) -> Path:
        """The path of a file that another file names; DataError when that leads out of the folder."""
        parts = PurePosixPath(name).parts
        odd = not is_text(name) or not name.isprintable() or "\\" in name or ":" in name
        if not parts or odd or name.startswith("/") or ".." in parts:
            raise DataError(f"{self.path / told_by}: {short(name)} is not the name of a file in this folder")
        return self.path / name

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A regular file, for reading. Raises DataError, MissingInputError."""
        path = self.path / name
        try:
            with os.fdopen(
                os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
            ) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise DataError(f"{path}: not a regular file")
                self.read[name] = path
                yield file
        except OSError as error:
            raise MissingInputError(f"{path} cannot be read: {_reason(error)}") from error

    def bytes(self, name: str, most: int = MOST_VOCABULARY) -> bytes:
        """A whole file. Raises DataError, MissingInputError."""
        with self.open(name) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= most else b""  # room is taken for all that is asked for
        if size > most or len(data) > most:
            raise DataError(f"{self.path / name}: larger than {most >> 20} MiB, which no such file is")
        return data

    def text(self, name: str, most: int = MOST_SETTINGS) -> str:
        """A whole file of UTF-8."""
        try:
            return self.bytes(name, most).decode()
        except UnicodeDecodeError:
            raise DataError(f"{self.path / name}: not UTF-8 text") from None

    def json(self, name: str, most: int = MOST_SETTINGS) -> Fields:
        """A file that must hold one JSON object."""
        try:
            told = json.loads(self.text(name, most))
        except (ValueError, RecursionError):
            raise DataError(f"{self.path / name}: not valid JSON") from None
        if not isinstance(told, dict):
            raise DataError(f"{self.path / name}: not a JSON object")
        return Fields(told, str(self.path / name))

    def json_if_any(self, name: str, most: int = MOST_SETTINGS) -> Fields:
        """The same, without any values where there is no such file."""
        return self.json(name, most) if self.has(name) else Fields({}, str(self.path / name))

    def hashes(self) -> list[str]:
        """SHA-256 of the files that were read, by their names."""
        hashes = []
        for name in sorted(self.read):
            digest = hashlib.sha256()
            with self.open(name) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            hashes.append(digest.hexdigest())
        return hashes


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
