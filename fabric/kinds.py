"""What a path holds where something else was expected, and what to do about it, in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from fabric.files import is_stream, shown
from fabric.runs.directory import RESULTS, RUN
from fabric.system import quoted

Kind = Literal["run", "peft", "checkpoint", "folder", "gguf", "safetensors", "pytorch"]
_NOUNS: dict[Kind, str] = {
    "run": "the directory of a run",
    "peft": "a folder with a PEFT adapter",
    "checkpoint": "a Hugging Face folder",
    "folder": "a folder",
    "gguf": "a GGUF file",
    "safetensors": "a safetensors file",
    "pytorch": "a PyTorch file",
}
_MOST_NAMED = 3


def kind_of(source: str | Path) -> Kind | None:
    """What a path holds, by its names or its first bytes; None for text, for a pipe, and for what is not there."""
    if is_stream(source):
        return None
    path = Path(source)
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        with path.open("rb") as file:
            head = file.read(256)
            size = path.stat().st_size
    except (OSError, ValueError):
        return None
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"PK\3\4") and b"/data.pkl" in head:  # its first entry
        return "pytorch"
    header = struct.unpack("<Q", head[:8])[0] if len(head) >= 16 else size
    return "safetensors" if head[8:9] == b"{" and header < size else None


def _kind_of_folder(path: Path) -> Kind:
    if (path / RUN).is_file():
        return "run"
    if (path / "adapter_config.json").is_file():
        return "peft"
    is_checkpoint = (path / "config.json").is_file() or any(path.glob("*.safetensors"))
    return "checkpoint" if is_checkpoint else "folder"


def instead_of_gguf(source: str | Path) -> str | None:
    """A sentence where a path that should be a GGUF file holds something else that is known."""
    path, kind = Path(source), kind_of(source)
    if kind in (None, "gguf"):
        return None
    results = [name for name in RESULTS if (path / name).is_file()]
    if kind == "run":
        what = f"its result is {path / results[0]}" if results else f"`fabric resume {quoted(path)}` finishes it"
    elif kind == "peft":
        what = f"`fabric convert {path} -m base.gguf -o adapter.gguf` makes an adapter of it"
    elif kind == "checkpoint":
        what = f"`fabric convert {path} -o base.gguf` makes one of it"
    elif kind == "folder":
        what = f"name a file{_inside(path, '*.gguf')}"
    else:
        what = f"`fabric convert {path.parent}` reads it with the files beside it"
    return _sentence(source, kind, "a GGUF file is", what)


def instead_of_rows(source: str | Path) -> str | None:
    """The same for a file of rows."""
    kind = kind_of(source)
    if kind is None:
        return None
    if kind == "gguf":
        return _sentence(source, kind, "rows are", "a model goes after -m, and an adapter after -a")
    what = f"name a file{_inside(Path(source), '*.jsonl')}" if Path(source).is_dir() else "name a file of rows"
    return _sentence(source, kind, "rows are", what)


def instead_of_metrics(source: str | Path) -> str | None:
    """The same for a file of metrics; folders are checked where runs are read."""
    kind = kind_of(source)
    if kind is None or Path(source).is_dir():
        return None
    return _sentence(source, kind, "metrics are", "name a run, or the file of `train --metrics`")


def _sentence(source: str | Path, kind: Kind, expected: str, what: str) -> str:
    return f"{shown(source)} is {_NOUNS[kind]}, where {expected} expected: {what}"


def _inside(folder: Path, pattern: str) -> str:
    """What a folder has to offer."""
    names = sorted(path.name for path in folder.glob(pattern))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f" in it: {', '.join(names[:_MOST_NAMED])}{more}" if names else ""
