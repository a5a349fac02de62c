"""Metrics of a run as JSONL: in the run directory always, and wherever `--metrics` says."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from fabric.errors import OutputError
from fabric.files import open_output, writes_straight
from fabric.runs.directory import METRICS

Also = Callable[[dict[str, Any]], None]
_MOST_LINE_BYTES = 1 << 16


class MetricsLog:
    """Appends records; on resume first drops those after the checkpoint's step, so that no step is in it twice. `also`
    gets each record once it is whole."""

    def __init__(self, directory: Path, target: str | None, after_step: int, also: Also = lambda record: None) -> None:
        self.also = also
        self.files: list[tuple[BinaryIO, int]] = []  # with where the last record begins
        self.streams: list[BinaryIO] = []
        self.last: dict[str, Any] = {}
        self.open = contextlib.ExitStack()
        straight = target is not None and writes_straight(target)
        for path in [directory / METRICS, *([] if target is None or straight else [Path(target)])]:
            try:
                end, begin, last = records_until(path, after_step) if after_step else (0, 0, {})
                file = self.open.enter_context(path.open("ab"))
                file.truncate(end)
            except OSError as error:
                self.open.close()
                raise OutputError(f"{path} cannot be written: {error.strerror}") from error
            self.last = self.last or last
            self.files.append((file, begin))
        if target is not None and straight:
            self.streams.append(self.open.enter_context(open_output(target, text=True)))

    def write(self, record: dict[str, Any]) -> None:
        """One line in each file."""
        self.files = [(file, file.seek(0, os.SEEK_END)) for file, _ in self.files]
        self.last = record
        _put(record, [file for file, _ in self.files])

    def stream(self) -> None:
        """The last record to where somebody reads along, who may keep us waiting."""
        self.also(self.last)
        _put(self.last, self.streams)

    def amend(self, step: int, **values: Any) -> None:
        """Adds to the record of the last step."""
        same = self.last.get("step") == step
        for file, begin in self.files if same else []:
            file.truncate(begin)
        self.write({**self.last, **values} if same else {"step": step, **values})
        self.stream()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()


def _put(record: dict[str, Any], files: list[BinaryIO]) -> None:
    line = json.dumps(record).encode() + b"\n"
    try:
        for file in files:
            file.write(line)
            file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"metrics cannot be written: {error.strerror}") from error


def records_until(path: Path, step: int) -> tuple[int, int, dict[str, Any]]:
    """Of the whole records up to a step's, which come first: where they end, and where the last one begins, and it."""
    end, begin = 0, 0
    last: dict[str, Any] = {}
    if not path.exists():
        return end, begin, last
    with path.open("rb") as source:
        while line := source.readline(_MOST_LINE_BYTES):
            try:
                record = json.loads(line)
                if not line.endswith(b"\n") or not 0 <= record["step"] <= step:
                    break
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            begin, end, last = end, end + len(line), record
    return end, begin, last
