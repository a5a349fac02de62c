"""What a run left behind, read for a report: its metrics, its run.json, its samples, and the history of its result.

A run is a run directory or a file of metrics. It may come from a stranger and may still be written, so whatever is
missing is left out, a last line without its end is passed over, and nothing here is more than a text or a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.errors import DataError, MissingInputError
from fabric.files import is_there, read_input, shown
from fabric.plotting.runs import Run, add_record, named_runs
from fabric.runs.directory import METRICS, RESULTS, RUN, SAMPLES, files_of
from fabric.runs.listing import find_run
from fabric.runs.state import is_running, read_state
from fabric.weights.gguf import GGUF
from fabric.weights.history import read_history

_MOST_BYTES = 1 << 30  # of a file that is read whole
_MOST_RUN_BYTES = 1 << 20


@dataclass(frozen=True)
class Sample:
    """An answer that a model gave while it trained."""

    step: int
    prompt: str
    answer: str
    expected: str | None


@dataclass
class Reading:
    """All that is known of a run."""

    source: str
    metrics: Run
    told: dict[str, Any] = field(default_factory=dict)
    """run.json."""
    samples: list[Sample] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Of the adapter or model in the directory."""
    result: str | None = None
    result_bytes: int = 0
    state: str = ""
    """Empty where nothing is known of it."""
    error: str = ""
    """Why it failed."""

    @property
    def name(self) -> str:
        """As in legends: what tells it from the runs beside it."""
        return self.metrics.label

    def group(self, name: str) -> dict[str, Any]:
        """An object of run.json; empty where there is none."""
        found = self.told.get(name)
        return found if isinstance(found, dict) else {}

    def values(self, column: str) -> list[float]:
        """A column of the metrics; empty where there is none."""
        return self.metrics.columns[column].values if column in self.metrics.columns else []

    @property
    def last_step(self) -> int:
        """0 where nothing was measured yet."""
        return max((int(series.steps[-1]) for series in self.metrics.columns.values()), default=0)


def gather(sources: Sequence[str], growing: bool = False) -> list[Reading]:
    """Reads runs. `growing`: one that has no metrics yet is no error. Raises DataError, MissingInputError."""
    return [_read(source, run, growing) for source, run in zip(sources, named_runs(sources), strict=True)]


def _read(source: str, run: Run, growing: bool) -> Reading:
    reading, folder = Reading(source, run), find_run(source)
    if folder.is_dir():
        if METRICS not in files_of(folder) and not growing:
            raise MissingInputError(f"{source} is no run directory: it has no {METRICS}")
        reading.told = _run_json(folder / RUN)
        reading.samples = [_sample(line, where) for line, where in _lines(folder / SAMPLES)]
        _read_result(reading, folder)
        said = read_state(folder)
        reading.state, reading.error = (said.state, said.error) if said else ("", "")
        if is_running(folder):
            reading.state = "running"
        elif reading.state == "running":
            reading.state, reading.error = "failed", "it was killed, or the machine went down"
    elif not growing and source != "-" and not is_there(source):
        raise MissingInputError(f"{source} is neither a run directory nor a file of metrics: there is nothing there")
    for line, where in _lines(folder / METRICS if folder.is_dir() else source):
        add_record(reading.metrics, line, where)
    if not reading.metrics.columns and not growing:
        raise DataError(f"{shown(source)}: no metrics in it")
    return reading


def _lines(source: str | Path) -> list[tuple[bytes, str]]:
    """The whole lines of a file with their places; none where there is no file. A last one without a line feed counts
    if it is a whole object."""
    if str(source) != "-" and not is_there(str(source)):
        return []
    with read_input(source) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise DataError(f"{shown(source)}: too large to report on")
    lines = text.split(b"\n")
    if not lines[-1].rstrip().endswith(b"}"):
        lines.pop()
    return [(line, f"{shown(source)}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _run_json(path: Path) -> dict[str, Any]:
    if not is_there(str(path)):
        return {}
    with read_input(path) as file:
        text = file.read(_MOST_RUN_BYTES + 1)
    try:
        told = json.loads(text) if len(text) <= _MOST_RUN_BYTES else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise DataError(f"{path}: not the settings of a run")
    return told


def _sample(line: bytes, where: str) -> Sample:
    try:
        record = json.loads(line)
        step, prompt, answer, expected = (record.get(key) for key in ("step", "prompt", "answer", "expected"))
        texts = [None if value is None else _text(value) for value in (prompt, answer, expected)]
    except (ValueError, RecursionError, AttributeError):
        raise DataError(f"{where}: not a JSON object with step, prompt and answer") from None
    if not isinstance(step, int) or texts[0] is None or texts[1] is None:
        raise DataError(f"{where}: a sample needs a step, a prompt and an answer")
    return Sample(step, texts[0], texts[1], texts[2])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_result(reading: Reading, folder: Path) -> None:
    for name in RESULTS:
        if (folder / name).is_file():
            reading.result, reading.result_bytes = name, (folder / name).stat().st_size
            gguf = GGUF.open(str(folder / name))
            try:
                reading.history = read_history(gguf)
            finally:
                gguf.close()
