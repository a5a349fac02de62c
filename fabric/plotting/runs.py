"""The metrics of training runs, read from JSONL: once, or again and again while a run goes on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fabric.errors import DataError
from fabric.files import is_stream, read_input, shown
from fabric.kinds import instead_of_metrics
from fabric.runs.listing import metrics_of

POLL_S = 0.5  # between looks at a growing file
_BETWEEN = "-_/ "
_WORDS = re.compile(r"(?:\d[\d.]*e-\d+|[^-_/ ])+|[-_/ ]+")  # 1e-3 is one


@dataclass
class Series:
    """One column of one run."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Run:
    """A run's name, the part of it that tells it from those beside it, and its columns."""

    name: str
    label: str
    columns: dict[str, Series] = field(default_factory=dict)


def read_runs(sources: Iterable[str]) -> list[Run]:
    """Reads metrics JSONL, a run a source. Raises DataError for a line without a step or a run without numbers."""
    sources = list(sources)
    runs = named_runs(sources)
    for run, source in zip(runs, map(metrics_of, sources), strict=True):
        with read_input(source) as lines:
            for number, line in enumerate(lines, 1):
                add_record(run, line, f"{shown(source)}:{number}")
        if not run.columns:
            raise DataError(f"{shown(source)}: no metrics in it")
    return runs


def follow_runs(sources: Sequence[str]) -> Iterator[list[Run]]:
    """The runs as they are, and again whenever they have grown; a pipe until it ends, files until the caller stops.

    A line that is still being written is left for the next time; a file that is not there yet is waited for.
    Raises DataError for a line without a step.
    """
    if len(sources) == 1 and is_stream(sources[0]):
        yield from _follow_stream(sources[0])
        return
    seen: list[int] = []
    files = [metrics_of(source) for source in sources]
    while True:
        sizes = [Path(source).stat().st_size if Path(source).exists() else 0 for source in files]
        if sizes != seen:
            seen, runs = sizes, named_runs(sources)
            for run, source in zip(runs, files, strict=True):
                whole = Path(source).read_bytes().split(b"\n")[:-1] if Path(source).exists() else []
                for number, line in enumerate(whole, 1):
                    add_record(run, line, f"{shown(source)}:{number}")
            if any(run.columns for run in runs):
                yield runs
        time.sleep(POLL_S)


def _follow_stream(source: str) -> Iterator[list[Run]]:
    run, drawn, fresh = named_runs([source])[0], 0.0, False
    with read_input(source) as lines:
        for number, line in enumerate(iter(lines.readline, b""), 1):
            add_record(run, line, f"{shown(source)}:{number}")
            fresh = True
            if run.columns and time.monotonic() - drawn > POLL_S:
                yield [run]
                drawn, fresh = time.monotonic(), False
    if not run.columns:
        raise DataError(f"{shown(source)}: no metrics in it")
    if fresh:
        yield [run]


def named_runs(sources: Sequence[str]) -> list[Run]:
    """Runs without columns yet: called by the names of their files or folders, or by their paths where those are
    equal. Raises DataError for a model or an adapter."""
    for source in sources:
        if wrong := instead_of_metrics(source):
            raise DataError(wrong)
    stems = [_stem(source) for source in sources]
    names = stems if len(set(stems)) == len(stems) else [source.rstrip("/") for source in sources]
    return [Run(name, label) for name, label in zip(names, differing_parts(names), strict=True)]


def _stem(source: str) -> str:
    path = Path(source)
    if source == "-":
        return "stdin"
    return path.resolve().name if metrics_of(source) != source else path.stem


def differing_parts(names: Sequence[str]) -> list[str]:
    """Of each name the words between those that all names begin and end with; or the names where that is empty."""
    words = [_WORDS.findall(name) for name in names]
    shortest = min(map(len, words), default=0)
    first = next((n for n in range(shortest) if len({one[n] for one in words}) > 1), shortest)
    last = next((n for n in range(shortest - first) if len({one[-1 - n] for one in words}) > 1), shortest - first)
    parts = ["".join(one[first : len(one) - last]).strip(_BETWEEN) for one in words]
    return parts if all(parts) and len(set(parts)) == len(parts) else list(names)


def add_record(run: Run, line: bytes, where: str) -> None:
    """Adds the numbers of a line of metrics to a run. Raises DataError for a line without a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not a JSON object; this is not what train writes with --metrics") from None
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, (int, float)) or not _is_number(step):
        raise DataError(f"{where}: no step number; this is not what train writes with --metrics")
    for key, value in record.items():
        if key != "step" and _is_number(value):
            series = run.columns.setdefault(key, Series())
            series.steps.append(float(step))
            series.values.append(float(value))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
