"""safetensors, read from a map and written as a stream: an 8-byte length, a JSON header, the tensors' bytes.

Format: https://github.com/huggingface/safetensors#format. Every claim of a header is checked against the bytes there;
as the format has it, tensors follow each other without gaps, so that all of them together are no larger than the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np

from fabric.core.blocks import Floats, decode
from fabric.errors import DataError, MissingInputError
from fabric.fields import is_text, named, short
from fabric.huggingface.folder import Folder
from fabric.mapping import mapped
from fabric.notices import notice
from fabric.weights.formats import BF16, F16, F32

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = {"F32": F32, "F16": F16, "BF16": BF16}
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
_MAX_HEADER = 100_000_000
_MOST_DIMS = 8


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: where, its name there, type, shape in numpy order, and its bytes."""

    where: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def type(self) -> int:
        """GGUF's type number; DataError for a type that cannot be converted."""
        if self.dtype not in _TYPES:
            raise DataError(
                f"{self.where}: the tensor {self.name} is {self.dtype}; {', '.join(_TYPES)} can be converted"
            )
        return _TYPES[self.dtype]

    def values(self) -> Floats:
        """The tensor as float32."""
        return decode(self.type, self.data, prod(self.shape)).reshape(self.shape)


def read_weights(folder: Folder, explicit: str | None = None) -> dict[str, Stored]:
    """All tensors of a checkpoint, from the files that transformers loads: the one that config.json names
    (`explicit`), else model.safetensors, else those of its index.

    Raises DataError, MissingInputError.
    """
    if explicit is None:
        return read_files(folder, SINGLE, INDEX)
    folder.path_of(explicit, "config.json")
    return read_files(folder, *(("", explicit) if explicit.endswith(".index.json") else (explicit, "")))


def read_files(folder: Folder, single: str, index: str) -> dict[str, Stored]:
    """All tensors of the file `single` or, where it is not there, of those that `index` names. Other files of weights
    are named in a notice."""
    if single and folder.has(single):
        tensors = read_safetensors(folder, single)
    elif index and folder.has(index):
        tensors = _read_index(folder, index)
    else:
        others = named(folder.names("*.safetensors") + folder.names("*.bin"))
        told = f"; {others} cannot be read in its place" if others else ""
        raise MissingInputError(f"{folder}: there is no {single or index}{told}")
    unread = [name for name in folder.names("*.safetensors") if name not in folder.read]
    if unread:
        notice(f"{folder}: weights that are not those of the model are not read: {named(unread)}")
    return tensors


def _read_index(folder: Folder, name: str) -> dict[str, Stored]:
    index = folder.json(name)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise index.wrong("weight_map", "a file name for each tensor")
    tensors: dict[str, Stored] = {}
    for place in sorted(set(places.values())):
        folder.path_of(place, name)
        for tensor, stored in read_safetensors(folder, place).items():
            if tensor in tensors:
                raise DataError(f"{stored.where}: the tensor {tensor} is in {tensors[tensor].where} too")
            tensors[tensor] = stored
    for tensor, place in places.items():
        if tensor not in tensors or tensors[tensor].where != str(folder.path / place):
            raise DataError(f"{folder.path / place}: lacks the tensor {short(tensor)}, which {name} says is there")
    return tensors


def read_safetensors(folder: Folder, name: str) -> dict[str, Stored]:
    """Maps a file; its tensors keep the mapping alive. Raises DataError, MissingInputError."""
    path = str(folder.path / name)
    with folder.open(name) as file:
        try:
            data = memoryview(mapped(file, path))
        except ValueError:
            raise DataError(f"{path}: empty, where a safetensors file is expected") from None
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(len(data) - 8, _MAX_HEADER):
        raise DataError(f"{path}: not a safetensors file, or cut short")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DataError(f"{path}: not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    body, end = data[8 + length :], 0
    tensors = {}
    for tensor, claim in sorted(header.items(), key=lambda item: _start(item[1])):
        stored = _stored(path, tensor, claim, body, end)
        tensors[tensor], end = stored, end + len(stored.data)
    if end != len(body):
        raise DataError(f"{path}: cut short, or the header lies: its tensors end at byte {end} of {len(body)}")
    return {tensor: tensors[tensor] for tensor in header}


def _start(claim: object) -> int:
    """Where a tensor begins; any number where the claim is not one that passes."""
    offsets = claim.get("data_offsets") if isinstance(claim, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else 0


def _stored(path: str, name: str, claim: object, body: memoryview, start: int) -> Stored:
    def whole(values: object) -> bool:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)

    if (
        not is_text(name)
        or not isinstance(claim, dict)
        or not whole(claim.get("shape"))
        or not whole(claim.get("data_offsets"))
    ):
        raise DataError(f"{path}: the header does not say where {short(name)} lies")
    dtype, shape, offsets = claim.get("dtype"), tuple(claim["shape"]), claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise DataError(f"{path}: the tensor {short(name)} is of the unknown type {short(dtype)}")
    if len(shape) > _MOST_DIMS or 0 in shape:
        raise DataError(f"{path}: the tensor {short(name)} has the impossible shape {short(list(shape))}")
    if len(offsets) != 2 or offsets != [start, start + prod(shape) * _BYTES[dtype]] or offsets[1] > len(body):
        told = f"{short(name)} is not bytes {short(offsets)} of {len(body)}"
        raise DataError(f"{path}: cut short, or the header lies: {told}")
    return Stored(path, name, dtype, shape, body[offsets[0] : offsets[1]])


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
