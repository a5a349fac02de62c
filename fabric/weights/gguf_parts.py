"""Split models: several GGUF files that are one model, as llama.cpp's llama-gguf-split writes them. The first part
holds the metadata, every part says in `split.*` which one it is, and all are called PREFIX-00001-of-00003.gguf.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fabric.errors import DataError, MissingInputError
from fabric.fields import Fields, named
from fabric.files import STDIO, shown

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 99999  # five digits


class Part(NamedTuple):
    """What is compared of one file: its name, its metadata decoded and as it lies there, the names of its tensors."""

    name: str
    metadata: Mapping[str, Any]
    raw: Mapping[str, Any]
    tensors: Collection[str]


def part_number(part: Part) -> tuple[int, int]:
    """(which part a file is, counted from 0; of how many). (0, 1) for a model in one file. Raises DataError."""
    fields = Fields(part.metadata, part.name)
    count = fields.size(COUNT, 1, least=0, most=_MOST_PARTS)
    if count <= 1:
        return 0, 1
    return fields.size(NO, least=0, most=count - 1), count


def part_paths(path: str, number: int, count: int) -> list[str]:
    """The files of a split model, of which `path` is number `number`.

    Raises DataError when the name of `path` does not tell the others', MissingInputError when one is not there.
    """
    told = f"{shown(path)}: part {number + 1} of a model in {count} files"
    if path == STDIO:
        raise DataError(f"{told}, and a pipe brings one alone; name the first part as a file")
    found = _NAME.fullmatch(path)
    if not found or (int(found[2]), int(found[3])) != (number + 1, count):
        raise DataError(
            f"{told}, but its name does not end in -{number + 1:05d}-of-{count:05d}.gguf, which the others are found by"
        )
    paths = [f"{found[1]}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, other in enumerate(paths):
        if not Path(other).exists():
            raise MissingInputError(f"{told}; part {i + 1}, {other}, is missing")
    return paths


def check_parts(parts: list[Part]) -> None:
    """Raises DataError unless the files are the parts of one model, in order."""
    first, seen = parts[0], set[str]()
    for i, part in enumerate(parts):
        number, count = part_number(part)
        if (number, count) != (i, len(parts)):
            told = f"its metadata say part {number + 1} of {count}, its name part {i + 1} of {len(parts)}"
            raise DataError(f"{part.name}: {told}; it is of another model, or was renamed")
        other = [
            key for key in part.raw if key not in (NO, COUNT) and key in first.raw and part.raw[key] != first.raw[key]
        ]
        if other:
            raise DataError(f"{part.name}: a part of another model than {first.name}: they differ in {named(other)}")
        twice = [name for name in part.tensors if name in seen]
        if twice:
            raise DataError(f"{part.name}: a part of another model than {first.name}: both hold {named(twice, 3)}")
        seen.update(part.tensors)
    expected = Fields(first.metadata, first.name).size(TENSORS, len(seen))
    if expected != len(seen):
        raise DataError(
            f"{first.name}: the parts hold {len(seen)} tensors, not {expected} ({TENSORS}): one is of another model"
        )
