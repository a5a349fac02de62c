"""What is read and then not used is said once, in one line; with --strict it is refused instead.

Code below `cli/` calls `notice` where it sets something aside, and `remark` where it chose something for the user. The
command line decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fabric.errors import DataError

# What a sentence begins with that nobody below the command line can hand up: a signal's handler writes it.
speaker = "fabric"

_show: Callable[[str], None] = lambda text: None  # noqa: E731
_strict = False
_said: set[str] = set()
_held: list[str] | None = None


def listen(show: Callable[[str], None], strict: bool) -> None:
    """Where notices of this process go from now on; with `strict` each one raises instead."""
    global _show, _strict
    _show, _strict = show, strict
    _said.clear()


def notice(text: str) -> None:
    """Says in one line, once, what was read and has no effect, with names and counts.

    Raises DataError where --strict was given, so call it before a result is complete.
    """
    if _held is not None:
        _held.append(text)
        return
    if _strict:
        raise DataError(f"{text} (refused because of --strict)")
    if text not in _said:
        _said.add(text)
        _show(text)


@contextmanager
def held() -> Iterator[None]:
    """Keeps notices until the block has ended, so that what is refused in it is refused in one line."""
    global _held
    outer, _held = _held, []
    mine = _held
    try:
        yield
    finally:
        _held = outer
    for text in mine:
        notice(text)


def remark(text: str) -> None:
    """Says in one line what was found out where the user named nothing, such as a separator. Never an error."""
    _show(text)
