"""Folders of strangers for the fuzzer: checkpoints of transformers and Mistral, and PEFT adapters, in which one file is
the input. The first byte of an input says which.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fabric.huggingface.model import convert_model
from fabric.huggingface.peft import adapter_from_peft
from tests.huggingface.malformed import FOLDERS, VALUES, changed, places
from tests.support import foreign

CHECKPOINTS = ("checkpoint", "pieces", "tekken")
WORDS = (
    b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 30, b'"', b"{", b"[", b"]", b"}", b",", b":", b"\n", b"\0",
    b"\\ud800", b"\xff", b'"rope_type"', b'"llama3"', b'"factor"', b'"vocab"', b'"merges"', b'"id"', b'"content"',
    b'"text_config"', b'"gemma3"', b'"qwen2"', b'"layer_types"', b'"F16"', b'"shape"', b'"data_offsets"', b'"pissa"',
    b'"olora"', b".*", b"(a|b)*", b"\x08\0\0\0\0\0\0\0",
)  # fmt: skip


@cache
def choices(adapters: bool) -> list[tuple[str, str]]:
    """Kind of folder and name of file, by the first byte of an input."""
    kinds = ("adapter",) if adapters else CHECKPOINTS
    found = []
    for kind in kinds:
        files = FOLDERS[kind]()
        names = (
            [*files.json]
            if kind in ("checkpoint", "adapter")
            else ["tekken.json" if kind == "tekken" else "tokenizer.json"]
        )
        found += [(kind, name) for name in names]
    files = FOLDERS[kinds[0]]()
    return [*found, (kinds[0], files.weights)]


def whole(kind: str, name: str) -> bytes:
    """A file of a folder as it should be."""
    files = FOLDERS[kind]()
    return foreign.safetensors(files.tensors) if name == files.weights else json.dumps(files.json[name]).encode()


def seeds(adapters: bool) -> list[bytes]:
    """Every file as it should be."""
    return [bytes([i]) + whole(*choice) for i, choice in enumerate(choices(adapters))]


def odd(rng: random.Random, adapters: bool) -> bytes:
    """A file in which some values are others."""
    i = rng.randrange(len(choices(adapters)) - 1)
    kind, name = choices(adapters)[i]
    told: Any = FOLDERS[kind]().json[name]
    for _ in range(rng.choice([1, 1, 2, 3])):
        told = changed(told, rng.choice([*places(told)]), rng.choice(VALUES))
    return bytes([i]) + json.dumps(told).encode()


def convert(folder: Path, data: bytes, adapters: bool) -> None:
    """Converts a folder with one file of an input."""
    chosen = choices(adapters)
    kind, name = chosen[data[0] % len(chosen)] if data else chosen[0]
    place = folder / "folder"
    shutil.rmtree(place, ignore_errors=True)
    FOLDERS[kind]().write(place)
    (place / name).write_bytes(data[1:])
    if adapters:
        adapter_from_peft(place, base(), str(folder / "out"))
    else:
        convert_model(place, str(folder / "out"))


@cache
def base() -> str:
    """What the adapters are for."""
    folder = Path(tempfile.mkdtemp())
    convert_model(foreign.checkpoint().write(folder / "base"), str(folder / "base.gguf"))
    return str(folder / "base.gguf")
