"""Files as the commands promise them: outputs that appear only when complete, `-` as stdin and stdout, and inputs that
need random access even when they come through a pipe. A closed pipe (BrokenPipeError) is left to `cli/`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from fabric import partials, system
from fabric.errors import MissingInputError, OutputError, UsageError
from fabric.printable import printable

STDIO = "-"
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/(\d+)")
_PART = re.compile(r"(?s)(.*)-\d{5}-of-(\d{5})\.gguf")
_READ = {STDIO: 0, "/dev/stdin": 0}
_WRITTEN = {STDIO: 1, "/dev/stdout": 1, "/dev/stderr": 2}


def is_stream(source: str | Path) -> bool:
    """Whether an input can be read only once, or by this process alone: `-`, a pipe or a device under any name, and
    whatever /dev/stdin and /dev/fd/N stand for. Who needs it twice, or later, keeps a copy of it."""
    name = str(source)
    return _descriptor(name, _READ) is not None or _is_special(Path(name))


def writes_straight(target: str | Path) -> bool:
    """Whether an output is a standard stream, a pipe or a device, which gets each byte at once."""
    return _descriptor(str(target), _WRITTEN) is not None or _is_special(Path(target))


def is_there(path: str) -> bool:
    """Whether there is a file, folder or pipe of that name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def check_streams(inputs: Iterable[str | Path | None], outputs: Iterable[str | Path | None]) -> None:
    """Raise UsageError when two inputs would share stdin, two outputs stdout or a file, or an output would take the
    place of an input, or of another part of a split input. None: not given."""
    read, written = ([str(path) for path in paths if path is not None] for paths in (inputs, outputs))
    if sum(_descriptor(path, _READ) == 0 for path in read) > 1:
        raise UsageError("two inputs are '-', but there is one stdin: give at least one of them as a file")
    pipes: set[str] = set()
    for path in read:
        if is_stream(path) and _descriptor(path, _READ) != 0 and not Path(path).is_char_device():
            place = os.path.realpath(path)
            if place in pipes:
                raise UsageError(f"two inputs are {path}, which can be read only once: give one of them as a file")
            pipes.add(place)
    if sum(_descriptor(path, _WRITTEN) == 1 for path in written) > 1:
        raise UsageError("two outputs are '-', but there is one stdout: write at least one of them to a file")
    places: set[str] = set()
    for path in written:
        if writes_straight(path):
            continue
        place = os.path.realpath(path)
        if any(place == os.path.realpath(other) or _same_split(place, os.path.realpath(other)) for other in read):
            raise UsageError(f"{path} is an input, which the output would replace: name another file")
        if place in places:
            raise UsageError(f"two outputs are {path}: give each a file of its own")
        places.add(place)


def is_stdout(target: str | Path) -> bool:
    """Whether an output is stdout, under any of its names."""
    return _descriptor(str(target), _WRITTEN) == 1


def is_terminal(target: str | Path) -> bool:
    """Whether an output, under any of the names that a standard stream has, is a terminal."""
    descriptor = _descriptor(str(target), _WRITTEN)
    return descriptor is not None and os.isatty(descriptor)


@contextlib.contextmanager
def open_output(target: str | Path, *, text: bool = False) -> Iterator[BinaryIO]:
    """Open an output for writing, in bytes; use `open_text` for lines.

    A regular file appears under its name only when the block ends without an exception: until then the bytes lie in
    `.NAME.XXXXXXXX.partial` beside it, and those of killed processes are removed there. `-`, /dev/stdout, /dev/fd/N,
    pipes and devices are written straight. The file has the permissions of the one it replaces from its first byte on;
    a symbolic link keeps pointing where it did.

    Text that reaches a terminal is printable. Raises OutputError before the block runs when the target cannot be
    written, and inside it when a write fails; UsageError when bytes (`text` false) would go to a terminal.
    """
    name = str(target)
    descriptor = _descriptor(name, _WRITTEN)
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
        out = (_Shown if os.isatty(fd) else io.BufferedWriter)(sink, 1 << 16)
        yield cast(BinaryIO, out)
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
        except OSError as error:
            if system.is_closed_pipe(error):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise OutputError(f"writing {self.shown_as} failed: {_reason(error)}") from error


class _Shown(io.BufferedWriter):
    """A terminal: text reaches it with what would act on it spelled out. Each write ends with a whole character."""

    def write(self, data: Any) -> int:
        super().write(printable(bytes(data).decode("utf-8", "surrogateescape")).encode())
        return len(data)


@contextlib.contextmanager
def _closing(sink: _Sink) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sink.close()


@contextlib.contextmanager
def _replacing(name: str) -> Iterator[BinaryIO]:
    try:
        path = Path(os.path.realpath(name))
        old = path.stat() if path.exists() else None
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if old is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        partial, fd = partials.claim(path, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777)
    except (OSError, ValueError) as error:
        raise OutputError(f"{name} cannot be written: {_reason(error)}") from error
    sink = _Sink(fd, name)
    try:
        with _closing(sink):
            out = io.BufferedWriter(sink, 1 << 20)
            if old is not None:
                _keep_access(fd, old)
            yield cast(BinaryIO, out)
            out.flush()
            _seal(fd, name)
            with _written(name):
                partials.publish(partial, path, sink.close)
    except BaseException:
        partials.drop(partial)
        raise


@contextlib.contextmanager
def open_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an exception; until then it is
    `.NAME.XXXXXXXX.partial`. Raises UsageError when there is one already, OutputError."""
    if target.exists():
        raise UsageError(f"{target} exists already; name a folder that does not")
    try:
        partial, fd = partials.claim(target, None)
    except (OSError, ValueError) as error:
        raise OutputError(f"{target} cannot be written: {_reason(error)}") from error
    with contextlib.ExitStack() as mark:
        mark.callback(os.close, fd)
        try:
            yield partial
            with _written(str(target)):
                partials.publish(partial, target, mark.close)
        except BaseException:
            mark.close()
            partials.drop(partial)
            raise


def _keep_access(fd: int, old: os.stat_result) -> None:
    """Gives a new file the group and mode of the one it replaces; another group than that one's gets no access."""
    if not system.HAS_POSIX:
        return
    mode = stat.S_IMODE(old.st_mode)
    if os.fstat(fd).st_gid != old.st_gid:
        try:
            os.fchown(fd, -1, old.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG
    with contextlib.suppress(OSError):  # as on a file system without modes
        os.fchmod(fd, mode)


def _seal(fd: int, name: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise OutputError(f"writing {name} failed: {_reason(error)}") from error


@contextlib.contextmanager
def _written(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{name} cannot be written: {_reason(error)}") from error


def _open_source(source: str | Path) -> BinaryIO:
    name = str(source)
    try:
        descriptor = _descriptor(name, _READ)
        if descriptor is not None:
            return open(os.dup(descriptor), "rb")  # noqa: PTH123
        if Path(name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return Path(name).open("rb")
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{shown(name)} cannot be read: {_reason(error)}") from error


def _same_split(path: str, other: str) -> bool:
    """Whether two names are of parts of one split model."""
    a, b = _PART.fullmatch(path), _PART.fullmatch(other)
    return a is not None and b is not None and a.groups() == b.groups()


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(name: str, standard: dict[str, int]) -> int | None:
    """The number of the open file that a name stands for, `standard` naming those of the direction."""
    numbered = _DESCRIPTOR.fullmatch(name)
    return int(numbered[1]) if numbered else standard.get(name)


def _reason(error: Exception) -> str:
    if getattr(error, "errno", 0) == errno.EFAULT:  # what is written is mapped, and was cut
        return "a file became shorter while it was being read; put back the whole file and run the command again"
    return (getattr(error, "strerror", None) or str(error)).lower()
