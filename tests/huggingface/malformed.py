"""Checkpoints and adapters with one value of one file changed, each converted in this one process:

    python -m tests.huggingface.malformed FOLDER

prints a line of JSON for each: what was changed, the exit code, what was said, and how long it took. The memory of the
process is limited.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fabric.cli import signals
from fabric.cli.app import run
from tests.support import foreign

MEMORY_BYTES = 3 << 30  # of addresses: the libraries alone map one
MISSING = object()
DEEP = json.loads("[" * 200 + "]" * 200)
VALUES: tuple[Any, ...] = (
    MISSING, None, True, -1, 0, 1, 3, 1 << 31, 1 << 70, -1.5, 0.1, 1e300, float("nan"), float("inf"), "", "x", "\ud800",
    "a\nb\x1b[31m", "x" * 100_000, [], [1], ["x"], [None], [[]], [-1, "x"], {}, {"x": 1}, {"content": 5}, DEEP, [0] * 9,
)  # fmt: skip
FOLDERS: dict[str, Any] = {
    "checkpoint": foreign.checkpoint,
    "pieces": lambda: _with(foreign.checkpoint(262), "tokenizer.json", foreign.pieces_json()),
    "tekken": lambda: _with(foreign.checkpoint(260), "tekken.json", foreign.tekken_json(), drop="tokenizer.json"),
    "adapter": foreign.adapter,
}
RAW = (
    b"",
    b"{",
    b"[]",
    b"nul",
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 10_000,
    b'{"a":1e999999}',
    b"{}",
)


def _with(files: foreign.Files, name: str, told: Any, drop: str = "") -> foreign.Files:
    files.json.pop(drop, None)
    files.json[name] = told
    return files


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value inside a value; of long lists and tables the first two."""
    yield path
    if isinstance(value, dict):
        for key in [*value][: 30 if len(path) < 2 else 2]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 2)):
            yield from places(value[i], (*path, i))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with one value inside replaced, or taken out."""
    if not path:
        return {} if new is MISSING else new
    value = copy.copy(value)
    if new is MISSING and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def cases() -> Iterator[tuple[str, foreign.Files]]:
    """What is changed, and the files with it."""
    for kind, make in FOLDERS.items():
        names = [*make().json]
        if kind in ("pieces", "tekken"):
            names = [name for name in names if name in ("tokenizer.json", "tekken.json")]
        for name in names:
            whole = make()
            for path in places(whole.json[name]):
                for new in VALUES[: None if len(path) < 3 else 12]:
                    told = (
                        f"{kind}: {name} {'.'.join(map(str, path))} = {'missing' if new is MISSING else repr(new)[:40]}"
                    )
                    yield told, _with(make(), name, changed(whole.json[name], path, new))
            for raw in RAW:
                yield f"{kind}: {name} = {raw[:20]!r}", _with(make(), name, raw)
    for kind in ("checkpoint", "adapter"):
        for tensor in [*FOLDERS[kind]().tensors][:2]:
            for key in ("dtype", "shape", "data_offsets"):
                for new in (*VALUES, [1 << 47, 0], [0], [1 << 40, 1 << 40], [1] * 40, [4, 0], "I64", "F8_E4M3"):
                    files = FOLDERS[kind]()
                    true = json.loads(foreign.safetensors(files.tensors)[8:].split(b"}}")[0] + b"}}")[tensor]
                    files.header[tensor] = changed(true, (key,), new)
                    yield f"{kind}: header of {tensor}: {key} = {repr(new)[:40]}", files
            for axis in range(FOLDERS[kind]().tensors[tensor].ndim):
                files = FOLDERS[kind]()
                files.tensors[tensor] = files.tensors[tensor].repeat(2, axis)
                yield f"{kind}: {tensor} of shape {files.tensors[tensor].shape}", files
            files = FOLDERS[kind]()
            del files.tensors[tensor]
            yield f"{kind}: no {tensor}", files


def main() -> None:
    """Converts each case in a folder."""
    root = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    mock.patch.object(signals, "listen").start()  # which starts a thread, and a process runs one command
    foreign.checkpoint().write(root / "base")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert run(["convert", str(root / "base"), "-o", str(root / "base.gguf")]) == 0
    for told, files in cases():
        folder, out, said = root / "case", root / "out.gguf", io.StringIO()
        shutil.rmtree(folder, ignore_errors=True)
        files.write(folder)
        base = ["-m", str(root / "base.gguf")] if told.startswith("adapter") else []
        began = time.process_time()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run(["convert", str(folder), *base, "-o", str(out)])
        seconds = time.process_time() - began
        print(
            json.dumps({"case": told, "code": code, "said": said.getvalue(), "seconds": seconds, "left": out.exists()})
        )
        out.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
