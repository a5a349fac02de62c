"""Files as the commands promise them: outputs that appear only when complete, `-` as stdin and stdout, and inputs that
need random access even when they come through a pipe. A closed pipe (BrokenPipeError) is left to `cli/`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from fabric.errors import MissingInputError, OutputError, UsageError

STDIO = "-"
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/(\d+)")
_STDIN = {STDIO, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}
_STANDARD = {STDIO: 1, "/dev/stdout": 1, "/dev/stderr": 2}


def check_streams(inputs: Iterable[str | Path | None], outputs: Iterable[str | Path | None]) -> None:
    """Raise UsageError when two inputs would share stdin, two outputs stdout or a file, or an output would take the
    place of an input. None: not given."""
    read, written = ([str(path) for path in paths if path is not None] for paths in (inputs, outputs))
    if sum(path in _STDIN for path in read) > 1:
        raise UsageError("two inputs are '-', but there is one stdin: give at least one of them as a file")
    if sum(_descriptor(path) == 1 for path in written) > 1:
        raise UsageError("two outputs are '-', but there is one stdout: write at least one of them to a file")
    places: set[str] = set()
    for path in written:
        if _descriptor(path) is not None or _is_special(Path(path)):
            continue
        place = os.path.realpath(path)
        if any(place == os.path.realpath(other) for other in read):
            raise UsageError(f"{path} is an input, which the output would replace: name another file")
        if place in places:
            raise UsageError(f"two outputs are {path}: give each a file of its own")
        places.add(place)


def is_terminal(target: str | Path) -> bool:
    """Whether an output, under any of the names that a standard stream has, is a terminal."""
    descriptor = _descriptor(str(target))
    return descriptor is not None and os.isatty(descriptor)


@contextlib.contextmanager
def open_output(target: str | Path, *, text: bool = False) -> Iterator[BinaryIO]:
    """Open an output for writing, in bytes; use `open_text` for lines.

    A regular file appears under its name only when the block ends without an exception: until then the bytes lie in
    `.NAME.XXXXXXXX.partial` beside it. `-`, /dev/stdout, /dev/fd/N, pipes and devices are written straight. The file
    keeps the permissions of the one it replaces; a symbolic link keeps pointing where it did.

    Raises OutputError before the block runs when the target cannot be written, and inside it when a write fails;
    UsageError when bytes (`text` false) would go to a terminal.
    """
    name = str(target)
    descriptor = _descriptor(name)
    path = Path(name)
    if descriptor is None and not _is_special(path):
        with _replacing(name) as out:
            yield out
        return
    try:
        fd = os.dup(descriptor) if descriptor is not None else os.open(path, os.O_WRONLY)
    except OSError as error:
        raise OutputError(f"{shown(name, 'stdout')} cannot be written: {_reason(error)}") from error
    sink = _Sink(fd, shown(name, "stdout"))
    with _closing(sink):
        if not text and os.isatty(fd):
            raise UsageError(f"{shown(name, 'stdout')} is a terminal: give a file with -o, or send it into a pipe")
        out = cast(BinaryIO, io.BufferedWriter(sink, 1 << 16))
        yield out
        out.flush()


@contextlib.contextmanager
def open_text(target: str | Path) -> Iterator[TextIO]:
    """Open an output for UTF-8 lines; otherwise as `open_output`, and a terminal is welcome."""
    with open_output(target, text=True) as out:
        lines = io.TextIOWrapper(out, encoding="utf-8", newline="\n", line_buffering=out.isatty())
        yield lines
        lines.flush()
        lines.detach()


@contextlib.contextmanager
def read_input(source: str | Path) -> Iterator[BinaryIO]:
    """Open a file or `-` for reading from start to end. Raises MissingInputError."""
    handle = _open_source(source)
    try:
        yield handle
    finally:
        handle.close()


@contextlib.contextmanager
def seekable_input(source: str | Path, magic: bytes = b"") -> Iterator[BinaryIO]:
    """Open an input for random access; what comes through a pipe is first copied to an unlinked temporary file, but no
    further than `magic` where it does not begin with that.

    Raises MissingInputError, UsageError when stdin is a terminal, OutputError when the temporary directory is full.
    """
    with read_input(source) as handle:
        if stat.S_ISREG(os.fstat(handle.fileno()).st_mode) and handle.tell() == 0:
            yield handle
            return
        if handle.isatty():
            raise UsageError("a model or adapter is expected on stdin, but stdin is a terminal: give a file")
        with tempfile.TemporaryFile() as spool:
            try:
                first = handle.read(len(magic))
                spool.write(first)
                if first == magic:
                    shutil.copyfileobj(handle, spool, 1 << 20)
                spool.flush()
            except OSError as error:
                place = tempfile.gettempdir()
                raise OutputError(f"copying {shown(source)} to {place} failed: {_reason(error)}") from error
            spool.seek(0)
            yield cast(BinaryIO, spool)


def shown(source: str | Path, stream: str = "stdin") -> str:
    """Name an input or output in a sentence: `-` is called by the stream it stands for."""
    return stream if str(source) == STDIO else str(source)


class _Sink(io.FileIO):
    """A raw file whose failing writes are OutputErrors, except those of a closed pipe."""

    def __init__(self, fd: int, shown_as: str) -> None:
        super().__init__(fd, "wb")
        self.shown_as = shown_as

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"writing {self.shown_as} failed: {_reason(error)}") from error


@contextlib.contextmanager
def _closing(sink: _Sink) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sink.close()


@contextlib.contextmanager
def _replacing(name: str) -> Iterator[BinaryIO]:
    mode = None
    try:
        path = Path(os.path.realpath(name))
        partial = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.partial")
        if path.exists():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            mode = stat.S_IMODE(path.stat().st_mode)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        fd = os.open(partial, flags, 0o666)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name} cannot be written: {_reason(error)}") from error
    sink = _Sink(fd, name)
    try:
        with _closing(sink):
            out = io.BufferedWriter(sink, 1 << 20)
            yield cast(BinaryIO, out)
            out.flush()
            _seal(fd, mode, name)
        _rename(partial, path, name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _seal(fd: int, mode: int | None, name: str) -> None:
    try:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(fd, mode)
        os.fsync(fd)
    except OSError as error:
        raise OutputError(f"writing {name} failed: {_reason(error)}") from error


def _rename(partial: Path, path: Path, name: str) -> None:
    try:
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{name} cannot be written: {_reason(error)}") from error
    with contextlib.suppress(OSError):  # not every system can open or sync a directory
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _open_source(source: str | Path) -> BinaryIO:
    name = str(source)
    try:
        if name == STDIO:
            return open(os.dup(0), "rb")  # noqa: PTH123
        if Path(name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return Path(name).open("rb")
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{shown(name)} cannot be read: {_reason(error)}") from error


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(name: str) -> int | None:
    numbered = _DESCRIPTOR.fullmatch(name)
    return int(numbered[1]) if numbered else _STANDARD.get(name)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
