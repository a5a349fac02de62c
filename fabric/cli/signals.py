"""The signals of this process, heard in one place: Ctrl-C, SIGTERM, Windows' Ctrl-Break and the end of the terminal.

The first one asks to stop (fabric.interrupts), a second one ends the process at once. Python runs a handler only
between two instructions of the main thread, so a thread beside it hears signals too: it cancels calls into the core,
and ends the process where the main thread answers neither the first signal in time nor the second one at all.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fabric import interrupts, notices, system

ANSWER_S = 0.8  # the main thread may take so long until it leaves what it does
SAME_S = 0.05  # a signal that comes again so soon is the same one: `timeout` sends two
HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
HEARD = {getattr(signal, name) for name in system.SIGNALS if hasattr(signal, name)}

number: int | None = None  # the first signal that was heard
_since = 0.0
_round = 0  # goes up when signals are forgotten
_message = b""


def listen() -> None:
    """Hears signals from now on; the end of the terminal only where it is not ignored, as under nohup."""
    for one in HEARD:
        if one != HANG_UP or signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, _hear)
    write, *read = system.wakers()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=read, name="fabric-signals", daemon=True).start()


def acknowledge(text: str) -> None:
    """From now on the first signal is answered with this line on stderr at once."""
    global _message
    _message = f"\n{text}\n".encode()


def forget() -> None:
    """What the signals were meant for has ended: the next one is a first one again."""
    global number, _round
    number, _round = None, _round + 1
    interrupts.forget()


def hung_up() -> bool:
    """Whether the terminal went away, so that nothing can be drawn on it."""
    return number is not None and number == HANG_UP


def exit_code() -> int:
    """Of a process that a signal ended."""
    return 128 + (number or signal.SIGINT)


def _hear(received: int, frame: FrameType | None) -> None:
    """What Python runs in the main thread."""
    global number, _since
    if number is not None:
        if number != HANG_UP and time.monotonic() - _since > SAME_S:
            interrupts.drop_unfinished()
            system.end_by(received)
        return
    number, _since = received, time.monotonic()
    with contextlib.suppress(OSError):
        os.write(2, _message)
    interrupts.request()
    if not interrupts.is_held():
        raise interrupts.Interrupted


def _watch(source: int, read: Callable[[], bytes]) -> NoReturn:
    """What the thread beside it does: `source` can be read as soon as a signal comes, and `read` gives its number."""
    first, since, seen = 0, 0.0, -1
    while True:
        late = seen == _round and number is None and not interrupts.is_held()  # the handler has not run yet
        if not select.select([source], [], [], ANSWER_S if late else None)[0]:
            if number is None and not interrupts.is_held():
                _leave(first)
            continue
        for received in read():
            if received not in HEARD:  # such as that of a window that changed its size
                continue
            if seen != _round:
                first, since, seen = received, time.monotonic(), _round
                if not interrupts.is_held():
                    interrupts.request()
            elif first != HANG_UP and time.monotonic() - since > SAME_S:
                time.sleep(SAME_S)  # for the handler, so that the process ends by the signal itself
                _leave(received)


def _leave(received: int) -> NoReturn:
    """Ends the process from beside the main thread, which does not answer."""
    with contextlib.suppress(OSError):
        os.write(2, f"{notices.speaker}: interrupted\n".encode())
    interrupts.drop_unfinished()
    os._exit(128 + received)
