"""What became of a run, in its state.json: for lists alone. A run goes on from its settings and checkpoints."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_args

from fabric import system
from fabric.errors import OutputError, StoppedError
from fabric.files import open_output
from fabric.interrupts import Interrupted
from fabric.printable import shortened
from fabric.runs.directory import LOCK, STATE, StateName
from fabric.settings import is_of

_MOST_BYTES = 1 << 16
_MOST_ERROR_CHARS = 500


@dataclass(frozen=True)
class State:
    """Times in seconds since 1970; `steps` is how many the run is to have; `error` is why it failed."""

    state: StateName
    steps: int
    began: float
    ended: float | None = None
    error: str = ""


@contextlib.contextmanager
def recorded(directory: Path, steps: int) -> Iterator[None]:
    """Keeps the state of a run that goes on inside the block."""
    before = read_state(directory)
    now = State("running", steps, before.began if before else time.time())
    _write(directory, now)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, (StoppedError, Interrupted))
        why = "" if stopped else shortened(str(error) or type(error).__name__, _MOST_ERROR_CHARS)
        with contextlib.suppress(OutputError):  # the cause is reported anyway
            _write(directory, replace(now, state="stopped" if stopped else "failed", ended=time.time(), error=why))
        raise
    with contextlib.suppress(OutputError):  # the result is there
        _write(directory, replace(now, state="finished", ended=time.time()))


def read_state(directory: Path) -> State | None:
    """What is known of a run; None where nothing is known."""
    kinds = {"state": str, "steps": int, "began": float, "ended": float | None, "error": str}
    try:
        with (directory / STATE).open("rb") as source:
            values = json.loads(source.read(_MOST_BYTES))
        if values.keys() != {field.name for field in fields(State)} or values["state"] not in get_args(StateName):
            return None
        return State(**values) if all(is_of(values[name], kind) for name, kind in kinds.items()) else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def is_running(directory: Path) -> bool:
    """Whether a process holds a run."""
    return system.is_locked(directory / LOCK)


def _write(directory: Path, state: State) -> None:
    with open_output(directory / STATE) as out:
        out.write(json.dumps(asdict(state)).encode() + b"\n")
