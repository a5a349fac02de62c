"""What an output is until it is complete: `.NAME.XXXXXXXX.partial`, beside where it will be. Those of killed processes
are removed by the next one that writes there.

A partial file or folder is in use while its process lives. On POSIX it is locked. On Windows it is open: there, what is
open cannot be removed, and it is closed just before it gets its name, so a young one is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from fabric import interrupts, system

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)
_HELD = ".held"  # the open file of a folder, on Windows
_YOUNG_S = 60
_mine: set[Path] = set()  # what this process is writing


def claim(target: Path, mode: int | None) -> tuple[Path, int]:
    """A new partial file with these permissions, or a partial folder (None), and the descriptor that marks it as in
    use. Raises OSError."""
    remove_left_over(target.parent)
    while True:
        partial = target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.partial")
        if mode is not None:
            fd = os.open(partial, _NEW, mode)
        else:
            partial.mkdir()
            fd = os.open(partial, os.O_RDONLY) if system.HAS_POSIX else os.open(partial / _HELD, _NEW)
        _mine.add(partial)
        if not system.HAS_POSIX:
            return partial, fd
        with contextlib.suppress(OSError):  # not every file system has locks
            system.lock(fd)
        if os.fstat(fd).st_nlink:
            return partial, fd
        _mine.discard(partial)  # another process took it for left over before the lock was there
        os.close(fd)


def publish(partial: Path, target: Path, close: Callable[[], None]) -> None:
    """Gives it its name. `close` closes the descriptor that marks it. Raises OSError."""
    if not system.HAS_POSIX:
        close()
        if partial.is_dir():
            (partial / _HELD).unlink()
    system.replace(partial, target)
    _mine.discard(partial)


def drop(partial: Path) -> None:
    """Removes what will not be complete, once it is closed."""
    with contextlib.suppress(OSError):
        _remove(partial)
    _mine.discard(partial)


def remove_left_over(folder: Path) -> None:
    """Removes what killed processes left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and not entry.is_symlink():
                with contextlib.suppress(OSError):
                    (_remove_unlocked if system.HAS_POSIX else _remove_closed)(Path(entry.path))


def _remove_unlocked(partial: Path) -> None:
    fd = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        if found.st_uid == os.geteuid() and plain and system.lock(fd):
            _remove(partial)
    finally:
        os.close(fd)


def _remove_closed(partial: Path) -> None:
    if time.time() - partial.stat().st_mtime > _YOUNG_S:
        if partial.is_dir():
            (partial / _HELD).unlink(missing_ok=True)  # fails where it is open
        _remove(partial)


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


def _drop_all() -> None:
    for partial in list(_mine):
        drop(partial)


interrupts.before_an_end(_drop_all)
