"""Metrics of a run as JSONL: in the run directory always, and wherever `--metrics` says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from fabric.errors import OutputError


def peak_bytes() -> int:
    """The most memory this process ever had resident, mapped file pages included."""
    try:
        # Linux counts in ru_maxrss what the process that started this one had resident.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class MetricsLog:
    """Appends records; on resume first drops those after the checkpoint's step, so that no step is told twice."""

    def __init__(self, directory: Path, target: str | None, after_step: int) -> None:
        self.files: list[TextIO] = []
        self.stdout = target == "-"
        for path in [directory / "metrics.jsonl", *([Path(target)] if target and not self.stdout else [])]:
            try:
                kept = _length_until(path, after_step) if after_step and path.is_file() else 0
                file = path.open("a", encoding="utf-8")
                if path.is_file():
                    file.truncate(kept)
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror}") from error
            self.files.append(file)

    def write(self, record: dict[str, Any]) -> None:
        """One line, flushed."""
        line = json.dumps(record) + "\n"
        try:
            for file in [*self.files, *([sys.stdout] if self.stdout else [])]:
                file.write(line)
                file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"metrics cannot be written: {error.strerror}") from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()


def _length_until(path: Path, step: int) -> int:
    """Bytes of the whole records up to a step's, which come first."""
    length = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step or not line.endswith(b"\n"):
                break
        except (ValueError, KeyError, TypeError):
            break
        length += len(line)
    return length
