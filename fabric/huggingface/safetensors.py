"""safetensors, read from a map and written as a stream: an 8-byte length, a JSON header, the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format. Every claim of a header is checked against the bytes there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fabric.errors import DataError, MissingInputError
from fabric.mapping import mapped
from fabric.weights.codec import Floats, decode
from fabric.weights.formats import BF16, F16, F32, FORMATS

_TYPES = {"F32": F32, "F16": F16, "BF16": BF16}
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: its name there, GGUF's type number, shape in numpy order, its bytes."""

    name: str
    type: int
    shape: tuple[int, ...]
    data: memoryview

    def values(self) -> Floats:
        """The tensor as float32."""
        return decode(self.type, self.data, prod(self.shape)).reshape(self.shape)


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of the *.safetensors files of a folder. Raises DataError, MissingInputError."""
    paths = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        told = read_json(index).get("weight_map")
        if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
            raise DataError(f"{index}: no weight_map of file names")
        paths = [folder / name for name in sorted(set(told.values()))]
    if not paths:
        raise MissingInputError(f"{folder}: no *.safetensors files; only that format is read")
    tensors: dict[str, Stored] = {}
    for path in paths:
        for name, stored in read_safetensors(path).items():
            if name in tensors:
                raise DataError(f"{path}: the tensor {name} is in another file of the folder too")
            tensors[name] = stored
    return tensors


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Maps a file; its tensors keep the mapping alive. Raises DataError, MissingInputError."""
    try:
        with path.open("rb") as file:
            data = memoryview(mapped(file, str(path)))
    except ValueError:
        raise DataError(f"{path}: empty, where a safetensors file is expected") from None
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(len(data) - 8, _MAX_HEADER):
        raise DataError(f"{path}: not a safetensors file, or cut short")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DataError(f"{path}: not a safetensors file: its header is no JSON object")
    body = data[8 + length :]
    return {name: _stored(path, name, claim, body) for name, claim in header.items() if name != "__metadata__"}


def _stored(path: Path, name: str, claim: object, body: memoryview) -> Stored:
    def whole(values: object) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)

    if not isinstance(claim, dict) or not whole(claim.get("shape")) or not whole(claim.get("data_offsets")):
        raise DataError(f"{path}: the header does not say where {name} lies")
    if claim.get("dtype") not in _TYPES:
        raise DataError(f"{path}: the tensor {name} is {claim.get('dtype')}; F32, F16 and BF16 can be converted")
    kind, shape, offsets = _TYPES[claim["dtype"]], tuple(claim["shape"]), claim["data_offsets"]
    nbytes = prod(shape) * FORMATS[kind].block_bytes
    if len(offsets) != 2 or offsets[1] > len(body) or offsets[1] - offsets[0] != nbytes:
        raise DataError(f"{path}: cut short, or the header lies: {name} is not {offsets} of {len(body)} bytes")
    return Stored(name, kind, shape, body[offsets[0] : offsets[1]])


def write_safetensors(out: BinaryIO, tensors: Mapping[str, Floats]) -> int:
    """Writes float32 tensors; returns the size in bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in tensors.items()}
    at = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    out.write(struct.pack("<Q", len(raw)) + raw)
    for array in arrays.values():
        out.write(array.data)
    return 8 + len(raw) + at


def read_json(path: Path) -> dict[str, object]:
    """A file that must hold one JSON object. Raises DataError, MissingInputError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON") from None
    if not isinstance(told, dict):
        raise DataError(f"{path}: no JSON object")
    return told
