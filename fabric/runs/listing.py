"""Runs by name: where they lie, what became of each, how they differ, and their removal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fabric.errors import DataError, MissingInputError, OutputError
from fabric.notices import notice
from fabric.runs.directory import (
    EVENTS,
    LOCK,
    METRICS,
    RESULTS,
    RUN,
    RUNS,
    StateName,
    events_of,
    files_of,
    lock_run,
    read_run,
    remove_lock,
)
from fabric.runs.state import is_running, read_state

WINDOWS = 4  # parts of the longest run, of which losses are compared


@dataclass(frozen=True)
class Summary:
    """A run in a list. Times in seconds since 1970; None: there was none yet."""

    name: str
    path: str
    state: StateName
    error: str
    """Why it failed."""
    model: str
    step: int
    steps: int | None
    loss: float | None
    lowest_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    bytes: int
    began: float
    ended: float | None

    @property
    def unfinished(self) -> bool:
        """Whether `resume` may go on with it."""
        return self.state in ("stopped", "failed")


def is_run(path: Path) -> bool:
    """Whether a folder is the directory of a run."""
    try:
        return (path / RUN).is_file()
    except (OSError, ValueError):
        return False


def find_run(name: str) -> Path:
    """The folder of that path or, in .fabric/runs, of that name."""
    here, there = Path(name), RUNS / name
    return there if is_run(there) and not is_run(here) else here


def metrics_of(source: str) -> str:
    """The metrics file of a run, by its directory or name; any other source as it is."""
    place = find_run(source)
    return str(place / METRICS) if is_run(place) else source


def find_runs(places: Sequence[str]) -> list[Path]:
    """The directories of runs: those named, those in folders that are named, or (none named) those in .fabric/runs.
    Raises MissingInputError."""
    if not places:
        return _inside(RUNS)
    found: list[Path] = []
    for place in places:
        path = find_run(place)
        runs = [path] if is_run(path) else _inside(path)
        if not runs:
            raise MissingInputError(no_run(path))
        found += [run for run in runs if run not in found]
    return found


def no_run(path: Path) -> str:
    """Why a path is not the directory of a run, and what to do."""
    hint = f"there is no {RUN} in it" if path.is_dir() else "it is a file" if path.exists() else "it does not exist"
    return f"{path} is not the directory of a run: {hint}; `fabric runs` lists the runs in {RUNS}"


def _inside(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.is_symlink() and is_run(path)]
    except OSError:
        return []


def summaries(runs: Sequence[Path]) -> list[Summary]:
    """Of each run, the newest first; one whose run.json is damaged is named and left out."""
    found = []
    for path in runs:
        try:
            found.append(summary(path))
        except (DataError, MissingInputError) as error:
            notice(f"not listed: {error}")
    return sorted(found, key=lambda one: one.began, reverse=True)


def summary(path: Path) -> Summary:
    """What became of a run. Raises DataError."""
    settings, said = read_run(path)["settings"], read_state(path)
    records = read_metrics(path)
    losses, validations = _column(records, "loss"), _column(records, "val_loss")
    if is_running(path):
        state: StateName = "running"
    elif said is None or said.state == "running":
        state = "failed"
    else:
        state = said.state
    error = said.error if said else ""
    if state == "failed" and not error:
        error = "it was killed, or the machine went down"
    return Summary(
        name=path.name or path.resolve().name, path=str(path), state=state, error=error,
        model=Path(str(settings.get("model"))).name, step=int(records[-1]["step"]) if records else 0,
        steps=said.steps if said else None, loss=losses[-1] if losses else None,
        lowest_loss=min(losses, default=None), val_loss=validations[-1] if validations else None,
        best_val_loss=min(validations, default=None), bytes=_bytes(path),
        began=said.began if said else (path / RUN).stat().st_mtime, ended=said.ended if said else None,
    )  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run that are whole."""
    found = []
    try:
        lines = (path / METRICS).read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
            if isinstance(record["step"], int):
                found.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _column(records: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if _is_finite(record.get(name))]


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _bytes(path: Path) -> int:
    return sum(one.lstat().st_size for one in path.rglob("*") if one.is_file() and not one.is_symlink())


def differing(runs: Sequence[Path]) -> dict[str, list[Any]]:
    """The settings that are not the same in all of the runs, by name, with the value of each."""
    settings = [read_run(path)["settings"] for path in runs]
    names = dict.fromkeys(name for one in settings for name in one if name not in ("run_dir", "name"))
    values = {name: [one.get(name) for one in settings] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def windows(runs: Sequence[Path]) -> list[tuple[int, int, list[float | None]]]:
    """Mean losses side by side: the first and last step of each part, and the loss of each run there."""
    metrics = [read_metrics(path) for path in runs]
    last = max((record["step"] for records in metrics for record in records), default=0)
    edges = sorted({round(last * part / WINDOWS) for part in range(WINDOWS + 1)})
    found = []
    for low, high in pairwise(edges):
        parts = [_column([r for r in records if low < r["step"] <= high], "loss") for records in metrics]
        found.append((low + 1, high, [sum(part) / len(part) if part else None for part in parts]))
    return found


@dataclass(frozen=True)
class Removed:
    """A run that was removed, or would be."""

    name: str
    path: str
    bytes: int
    result: str | None
    """What it had written and nothing else holds: the name of the file in it."""


def prune(runs: Sequence[Path], dry_run: bool) -> list[Removed]:
    """Removes what runs made in their directories, and the directories where nothing else is in them. A run that goes
    on is named and stays. Raises DataError, OutputError."""
    removed = []
    for path in runs:
        own = [path / name for name in sorted(files_of(path))] + events_of(path)
        output = read_run(path)["settings"].get("output")
        results = [name for name in RESULTS if (path / name).is_file()]
        only = results[0] if results and not (isinstance(output, str) and Path(output).is_file()) else None
        size = sum(one.stat().st_size for one in own)
        try:
            if not dry_run:
                _remove(path, own)
            elif is_running(path):
                raise OutputError("")
        except OutputError:
            if not is_running(path):
                raise
            notice(f"{path} is running, and stays")
            continue
        removed.append(Removed(path.name, str(path), size, only))
    return removed


def _remove(path: Path, own: Sequence[Path]) -> None:
    """Removes run.json first: what is left of a removal that was cut short is no run."""
    with lock_run(path) as lock:
        try:
            for one in sorted(own, key=lambda one: one.name != RUN):
                if one.name != LOCK:
                    one.unlink(missing_ok=True)
            events = path / EVENTS
            if events.is_dir() and not events.is_symlink() and not any(events.iterdir()):
                events.rmdir()
            remove_lock(path, lock)
            if not any(path.iterdir()):
                path.rmdir()
                return
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror}") from error
    notice(f"{path} stays, because files in it are not the run's own")


def newest_unfinished() -> Summary:
    """The run that `resume` takes where none is named. Raises MissingInputError."""
    found = next((one for one in summaries(_inside(RUNS)) if one.unfinished), None)
    if found is None:
        raise MissingInputError(f"no run in {RUNS} is unfinished; name the directory of one to go on with it")
    return found
