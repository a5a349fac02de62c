"""Whether this process was asked to stop.

Who hears signals calls `request` (fabric/cli/signals.py). Python code in the main thread is then left by `Interrupted`,
as by KeyboardInterrupt, and running calls into the core end early. Work that must not be cut in two runs inside
`held()`: nothing breaks into it, and it asks `asked()` itself where it may end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_asked = False
_held = 0
_running: set[Callable[[], None]] = set()
_unfinished: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop, and what it did is left where it was."""


def request() -> None:
    """Asks to stop. Safe from any thread, and from a signal handler."""
    global _asked
    _asked = True
    if not _held:
        for cancel in tuple(_running):
            cancel()


def forget() -> None:
    """Takes the request back: what it was meant for has ended."""
    global _asked
    _asked = False


def asked() -> bool:
    """Whether a request came and was not taken back."""
    return _asked


def is_held() -> bool:
    """Whether a request has to wait."""
    return _held > 0


def check() -> None:
    """Raises Interrupted where a request came."""
    if _asked:
        raise Interrupted


def before_an_end(drop: Callable[[], None]) -> None:
    """Has what is unfinished dropped where the process ends at once, without leaving its blocks."""
    _unfinished.append(drop)


def drop_unfinished() -> None:
    """What the process does last before such an end, in any thread."""
    for drop in _unfinished:
        drop()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block that a request does not break into."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1


@contextlib.contextmanager
def cancelled_by(cancel: Callable[[], None]) -> Iterator[None]:
    """A call that a request ends early, through `cancel`; the error that it ends with becomes Interrupted."""
    _running.add(cancel)
    try:
        if _asked and not _held:
            cancel()
        yield
    except Exception:
        if _asked and not _held:
            raise Interrupted from None
        raise
    finally:
        _running.discard(cancel)
