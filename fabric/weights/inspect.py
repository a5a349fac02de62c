"""inspect: what a GGUF file holds, as one dictionary that is plain JSON."""

from __future__ import annotations

from typing import Any

from fabric.weights.convert import is_matrix
from fabric.weights.formats import can_decode, type_name
from fabric.weights.gguf import GGUF
from fabric.weights.gguf_write import ARRAY, TYPE_NAMES
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import read_history

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
        "file_bytes": len(gguf.buffer),
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
