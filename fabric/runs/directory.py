"""One run directory: the names in it, its lock, and run.json.

run.json             settings, the hashes of data and base, and for people: what the run began on
data.jsonl           rows that came through a pipe; so val.jsonl, prompts.jsonl (of --sample), start.gguf (an adapter)
                     and template.jinja
metrics.jsonl        one object a step
samples.jsonl        answers to prompts, one object each; see fabric/training/samples.py
state.json           what became of the run; see state.py
tensorboard          a folder of event files, where --track asks for them
step-00000042.ckpt   a checkpoint; see fabric/training/checkpoint.py
best.ckpt            the best parameters, where --patience keeps them

A directory may come from a stranger: what has one of these names must be a regular file, and everything that a file
says is checked.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import time
from pathlib import Path
from typing import IO, Any, Literal

from fabric import system
from fabric.errors import DataError, MissingInputError, OutputError, UsageError
from fabric.files import open_output
from fabric.notices import remark

KEPT = {
    "data": "data.jsonl",
    "val": "val.jsonl",
    "adapter": "start.gguf",
    "template": "template.jinja",
    "sample": "prompts.jsonl",
}
RUNS = Path(".fabric") / "runs"  # where runs lie that were not told where
HASHED = ("model", "data", "val", "adapter", "template")  # what a result depends on
RUN, STATE, LOCK, BEST = "run.json", "state.json", "lock", "best.ckpt"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
EVENTS = "tensorboard"  # a folder, of files that TensorBoard reads
StateName = Literal["running", "finished", "stopped", "failed"]
RESULTS = ("adapter.gguf", "model.gguf")
STEP = re.compile(r"step-(\d{8,18})\.ckpt")
_NAMES = {RUN, STATE, LOCK, METRICS, SAMPLES, BEST, *KEPT.values(), *RESULTS}
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_RUN_BYTES = 1 << 20
_LOOK_S = 0.2  # so long may somebody hold a lock who only looks whether it is held


def lock_run(directory: Path, new: bool = False) -> IO[bytes]:
    """Holds the run directory until the file is closed.

    Raises OutputError when another process holds it, DataError where one of its names is not a regular file, and
    UsageError where a `new` run would replace files that no run has made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = files_of(directory)
        if new and found and LOCK not in found:
            raise UsageError(
                f"{directory} holds {min(found)} already, which the run would replace; choose another --run-dir"
            )
        lock = (directory / LOCK).open("ab")
    except OSError as error:
        raise OutputError(f"run directory {directory} cannot be written: {error.strerror}") from error
    deadline = time.monotonic() + _LOOK_S
    try:
        while not system.lock(lock.fileno()):
            if time.monotonic() > deadline:
                lock.close()
                raise OutputError(f"{directory} is in use by another process; choose another --run-dir")
            time.sleep(_LOOK_S / 10)
    except OSError as error:
        remark(f"{directory} cannot be locked ({error.strerror}), so nothing keeps a second run out of it")
    return lock


def files_of(directory: Path) -> set[str]:
    """The names of a run's files that are taken there."""
    found = {path.name for path in directory.iterdir() if path.name in _NAMES or STEP.fullmatch(path.name)}
    for name in sorted(found):
        mode = (directory / name).lstat().st_mode
        if not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "not a file"
            raise DataError(f"{directory / name} is {what}, where a run keeps a file of its own; remove it")
    return found


def events_of(directory: Path) -> list[Path]:
    """The event files that TensorBoard has of a run."""
    folder = directory / EVENTS
    there = [] if folder.is_symlink() or not folder.is_dir() else list(folder.iterdir())
    return [one for one in there if one.name.startswith("events.") and one.is_file() and not one.is_symlink()]


def remove_new(directory: Path, lock: IO[bytes]) -> None:
    """Removes what a run made in its directory before it came to its first step."""
    for name in files_of(directory) - {*RESULTS, LOCK}:
        (directory / name).unlink(missing_ok=True)
    remove_lock(directory, lock)


def remove_lock(directory: Path, lock: IO[bytes]) -> None:
    """Removes the file of the lock, last of all. On Windows it must be closed, and who takes it then keeps it."""
    if system.HAS_POSIX:
        (directory / LOCK).unlink(missing_ok=True)
        return
    lock.close()
    with contextlib.suppress(PermissionError):
        (directory / LOCK).unlink(missing_ok=True)


def place_of(directory: Path) -> int:
    """What a copy of a run directory does not have in common with it."""
    return (directory / LOCK).stat().st_ino


def write_run(directory: Path, values: dict[str, Any]) -> None:
    """Settings and hashes, before the first step."""
    assert _is_hash(values["data_sha256"]) and _is_hash(values["model_sha256"])
    with open_output(directory / RUN) as out:
        out.write(json.dumps(values, indent=1).encode() + b"\n")


def read_run(directory: Path) -> dict[str, Any]:
    """What `write_run` wrote; MissingInputError when there is no run there, DataError when it is damaged."""
    path = directory / RUN
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as source:
            text = source.read(_MOST_RUN_BYTES + 1)
        values = json.loads(text) if len(text) <= _MOST_RUN_BYTES else None
    except OSError as error:
        raise MissingInputError(f"{directory} holds no run to resume: {path.name} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not the settings of a run: {error}") from error
    hashes = {f"{name}_sha256" for name in HASHED}
    known = {"settings", "fingerprints", "extended", "place", "about", *hashes}
    if not isinstance(values, dict) or not isinstance(values.get("settings"), dict):
        raise DataError(f"{path}: not the settings of a run")
    if unknown := sorted(values.keys() - known):
        raise DataError(f"{path}: not the settings of a run: what is {unknown[0]!r}?")
    for name in sorted(hashes):
        if not _is_hash(values.get(name)) and (name in ("data_sha256", "model_sha256") or values.get(name) is not None):
            raise DataError(f"{path}: not the settings of a run: it has no {name}")
    return values


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None
