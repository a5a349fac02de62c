"""inspect: what a GGUF file holds, and how two differ, as dictionaries that are plain JSON."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

from fabric.weights.formats import can_decode, type_name
from fabric.weights.gguf import GGUF, decode_tensor
from fabric.weights.gguf_write import ARRAY, TYPE_NAMES
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import read_history
from fabric.weights.rewrite import is_matrix

_SHOWN_ELEMENTS = 8


def summary(gguf: GGUF) -> dict[str, Any]:
    """Describe a file: sizes, types, metadata (long arrays shortened), tensors, history. Raises DataError."""
    infos = list(gguf.tensors.values())
    types: dict[str, dict[str, Any]] = {}
    for info in infos:
        row = types.setdefault(
            info.type_name, {"tensors": 0, "elements": 0, "bytes": 0, "supported": can_decode(info.type)}
        )
        row["tensors"] += 1
        row["elements"] += info.n_elements
        row["bytes"] += info.nbytes
    return {
        "path": gguf.name,
        "kind": _text(gguf.get("general.type", str, "model")),
        "architecture": _text(gguf.get("general.architecture", str, "")) or None,
        "name": _text(gguf.get("general.name", str, "")) or None,
        "gguf_version": gguf.version,
        "file_bytes": gguf.file_bytes,
        "parts": gguf.n_parts,
        "parameters": sum(info.n_elements for info in infos),
        "matrix_bits_per_weight": _bits_per_weight(gguf),
        "types": types,
        "metadata": {_text(key): _value(gguf, key) for key in gguf.metadata if key != HISTORY},
        "tensors": [
            {"name": info.name, "type": type_name(info.type), "shape": list(info.shape), "bytes": info.nbytes}
            for info in infos
        ],
        "history": read_history(gguf),
    }


def difference(this: GGUF, other: GGUF) -> dict[str, Any]:
    """What is in one of two files only, or differs: metadata by value, tensors by type, shape and bytes, history."""
    metadata = _sides(this.metadata.keys() - {HISTORY}, other.metadata.keys() - {HISTORY})
    metadata["changed"] = {
        _text(key): [_value(this, key), _value(other, key)]
        for key in this.metadata
        if key in other.metadata and key != HISTORY and this.raw_metadata[key] != other.raw_metadata[key]
    }
    tensors = _sides(this.tensors.keys(), other.tensors.keys())
    both = [name for name in this.tensors if name in other.tensors]
    unequal = [name for name in both if not _same(this, other, name)]
    tensors["changed"] = {name: _told_apart(this, other, name) for name in unequal}
    mine, theirs = read_history(this), read_history(other)
    return {
        "metadata": metadata,
        "tensors": tensors,
        "equal_tensors": len(both) - len(unequal),
        "history": {
            "this file": [step for step in mine if step not in theirs],
            "the other": [step for step in theirs if step not in mine],
        },
    }


def _sides(mine: Set[str], theirs: Set[str]) -> dict[str, Any]:
    return {"only_this": sorted(map(_text, mine - theirs)), "only_other": sorted(map(_text, theirs - mine))}


def _same(this: GGUF, other: GGUF, name: str) -> bool:
    a, b = this.tensors[name], other.tensors[name]
    return (a.type, a.shape) == (b.type, b.shape) and bool(np.array_equal(this.data(name), other.data(name)))


def _told_apart(this: GGUF, other: GGUF, name: str) -> list[str]:
    """Type and shape of a tensor in both files; where they are equal, how far apart the values are."""
    a, b = this.tensors[name], other.tensors[name]
    sides = [f"{t.type_name} {' x '.join(map(str, t.shape))}" for t in (a, b)]
    if a.shape == b.shape and can_decode(a.type) and can_decode(b.type):
        x, y = decode_tensor(this, name).astype(np.float64), decode_tensor(other, name)
        sides[1] += f", root mean square difference {np.sqrt(np.mean((x - y) ** 2)):.3g}"
    return sides


def _bits_per_weight(gguf: GGUF) -> float | None:
    matrices = [info for info in gguf.tensors.values() if is_matrix(info)]
    elements = sum(info.n_elements for info in matrices)
    return 8 * sum(info.nbytes for info in matrices) / elements if elements else None


def _value(gguf: GGUF, key: str) -> Any:
    value = gguf.metadata[key]
    type = gguf.metadata_types[key]
    if type.type != ARRAY:
        return _text(value)
    shown = [_text(element) for element in value[:_SHOWN_ELEMENTS]]
    if len(shown) == len(value):
        return shown
    return {"array_of": TYPE_NAMES[type.element or 0], "length": len(value), "first": shown}


def _text(value: Any) -> Any:
    """Bytes that were no UTF-8 become question marks: JSON has no other place for them."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
