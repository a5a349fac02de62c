"""All that Python does differently from one operating system to another: POSIX, and Windows. What the core does
differently lies in native/os.c. Leans on nothing.

Which of the two it is shows in what Python has there: `fcntl` on POSIX, `msvcrt` on Windows.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

try:
    import fcntl
except ImportError:
    import msvcrt

    fcntl = None  # type: ignore[assignment]

HAS_POSIX = fcntl is not None
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # that end a process; SIGBREAK: Ctrl-Break, and a closed console
BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)  # the exit code of who writes to nobody
MAPPED_GONE = (
    "became shorter while it was being read; put back the whole file and run the command again" if HAS_POSIX else
    "can no longer be read, as its drive or share went away; connect it and run the command again"
)  # fmt: skip
_LOCKED_AT = 0x7FFFFFF0  # where the lock of a file lies: there are none on whole files
_AGAIN_S = 2.0  # so long a file that others look into (a virus scanner, an indexer) may be in the way
_VIRTUAL_TERMINAL = 4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING


# ---- locks ----


def lock(fd: int) -> bool:
    """Takes the lock of an open file, which its closing gives back. False: another process has it. OSError where the
    file system has no locks."""
    try:
        if HAS_POSIX:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(fd, _LOCKED_AT, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file; False where there is no such file, or there are no locks."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if HAS_POSIX:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return not lock(fd)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


# ---- names of files ----


def replace(old: Path, new: Path) -> None:
    """Gives a file or folder another name, in place of what has it. On Windows nobody may have either open."""
    until = time.monotonic() + _AGAIN_S
    while True:
        try:
            old.replace(new)
            break
        except PermissionError as error:
            if HAS_POSIX:
                raise
            if time.monotonic() > until:
                raise PermissionError(errno.EACCES, "it is open in another program; close it there") from error
            time.sleep(0.05)
    if HAS_POSIX:  # the name is on the disk once its folder is
        try:
            fd = os.open(new.parent, os.O_RDONLY)
        except OSError:  # not every file system lets a folder be opened
            return
        try:
            os.fsync(fd)
        except OSError:
            pass
        finally:
            os.close(fd)


def quoted(word: str | Path) -> str:
    """A word as it is typed in the shell of the system."""
    if HAS_POSIX:
        import shlex

        return shlex.quote(str(word))
    import subprocess

    return subprocess.list2cmdline([str(word)])


# ---- signals and pipes ----


def wakers() -> tuple[int, int, Callable[[], bytes]]:
    """What a thread waits for at a signal: the descriptor for signal.set_wakeup_fd, one to select, and the numbers of
    the signals that came, as bytes. Windows takes nothing but sockets there."""
    if HAS_POSIX:
        out, into = os.pipe()
        os.set_blocking(into, False)
        return into, out, lambda: os.read(out, 64)
    import socket

    write, read = socket.socketpair()
    write.setblocking(False)
    return write.detach(), read.fileno(), lambda: read.recv(64)


def end_by(number: int) -> NoReturn:
    """Ends the process by a signal, or with the exit code of one where nothing else can be told to who started it."""
    if HAS_POSIX:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def is_closed_pipe(error: BaseException) -> bool:
    """Whether a write failed because nobody reads any more. Windows says that an argument is wrong."""
    closed = isinstance(error, OSError) and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or (closed and not HAS_POSIX)


# ---- streams and consoles ----


def set_up_streams() -> None:
    """Makes text streams that are no console UTF-8 with line feeds, as files and pipes are: on Windows they would have
    the encoding of the machine, and carriage returns. What is no text (bytes of names) is written escaped."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not HAS_POSIX and not stream.isatty():
            stream.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def draws(stream: Any) -> bool:
    """Whether a stream is a terminal that understands escape sequences."""
    if not stream.isatty():
        return False
    kind = os.environ.get("TERM")
    if kind is None and not HAS_POSIX:
        return _turn_on_sequences(stream.fileno())
    return kind not in (None, "", "dumb")


def _turn_on_sequences(fd: int) -> bool:
    """Has a console of Windows understand escape sequences; False where it is too old for them."""
    import ctypes

    kernel, mode = ctypes.windll.kernel32, ctypes.c_uint32()  # type: ignore[attr-defined]
    console = ctypes.c_void_p(msvcrt.get_osfhandle(fd))  # type: ignore[attr-defined]
    if not kernel.GetConsoleMode(console, ctypes.byref(mode)):
        return False
    return bool(mode.value & _VIRTUAL_TERMINAL or kernel.SetConsoleMode(console, mode.value | _VIRTUAL_TERMINAL))
