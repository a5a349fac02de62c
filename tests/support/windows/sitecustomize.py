"""A stand-in for Python on Windows: what it does not have there is missing, what is open can be neither removed nor
renamed, a folder cannot be opened, text has the encoding of the machine, and who writes to nobody is told that an
argument is wrong. Python reads this file at its start, where this folder is on PYTHONPATH.

Ctrl-Break is SIGQUIT here. CONSOLE=new in the environment: consoles understand escape sequences once they are asked to.
"""

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import select
import signal
import stat
import subprocess  # noqa: F401  (before there is an msvcrt, by which it knows Windows)
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TERM", None)
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None  # type: ignore[assignment]
for name in ("O_NOFOLLOW", "O_NONBLOCK", "fchmod", "fchown", "geteuid", "getuid", "mkfifo", "sched_getaffinity"):
    delattr(os, name)
signal.SIGBREAK = signal.SIGQUIT  # type: ignore[attr-defined]
for name in ("SIGPIPE", "SIGHUP", "SIGQUIT", "pthread_kill"):
    delattr(signal, name)


def _is_open(path: str) -> bool:
    """By this process or another, or mapped, or something in the folder is."""
    place = os.path.realpath(path)
    links = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            for fd in (process / "fd").iterdir() if process.name.isdigit() else ():
                with contextlib.suppress(OSError):
                    links.append(str(fd.readlink()))
    mapped = [line.split(None, 5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(link == place or link.startswith(place + "/") for link in links + mapped)


def _unless_open(change: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*paths: Any, **more: Any) -> Any:
        for path in paths:
            if _is_open(os.fspath(path)):
                raise PermissionError(errno.EACCES, "Permission denied", path)
        return change(*paths, **more)

    return checked


for name in ("remove", "unlink", "rename", "replace"):
    setattr(os, name, _unless_open(getattr(os, name)))
_open, _select, _end = os.open, select.select, os.kill


def _open_file(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
    if not flags & os.O_TMPFILE & ~os.O_DIRECTORY and Path(path).is_dir():  # that one Windows has its own way for
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return _open(path, flags, mode, **more)


def _select_sockets(*lists: Any) -> Any:
    for one in [one for many in lists[:3] for one in many]:
        if not stat.S_ISSOCK(os.fstat(one if isinstance(one, int) else one.fileno()).st_mode):
            raise OSError(10038, "An operation was attempted on something that is not a socket")
    return _select(*lists)


def _kill(process: int, number: int) -> None:
    if process == os.getpid():
        os._exit(number)
    _end(process, number)  # what subprocess has a call of its own for there


os.open, select.select, os.kill = _open_file, _select_sockets, _kill  # type: ignore[assignment]


class _FileIO(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise OSError(errno.EINVAL, "Invalid argument") from None


io.FileIO = _FileIO  # type: ignore[misc]


def _text(fd: int, mode: str) -> io.TextIOWrapper:
    raw = _FileIO(fd, mode, closefd=False)
    buffer = io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, "cp1252", newline=None if mode == "rb" else "\r\n", write_through=fd == 2)


if not sys.stdin.isatty():
    sys.stdin = _text(0, "rb")
if not sys.stdout.isatty():
    sys.stdout = _text(1, "wb")
if not sys.stderr.isatty():
    sys.stderr = _text(2, "wb")


def _locking(fd: int, how: int, size: int) -> None:
    assert how == 2 and size == 1 and 1 << 30 < os.lseek(fd, 0, os.SEEK_CUR) < 1 << 31
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


sys.modules["msvcrt"] = types.SimpleNamespace(  # type: ignore[assignment]
    locking=_locking, LK_NBLCK=2, get_osfhandle=lambda fd: fd, getwch=None
)


class _Kernel:
    """The functions of kernel32 that are called."""

    mode = 3

    def GetConsoleMode(self, console: Any, mode: Any) -> int:
        mode._obj.value = self.mode
        return int(os.isatty(console.value))

    def SetConsoleMode(self, console: Any, mode: int) -> int:
        if os.environ.get("CONSOLE") == "new":
            self.mode = mode
        return int(self.mode == mode)


ctypes.windll = types.SimpleNamespace(kernel32=_Kernel())  # type: ignore[attr-defined]
