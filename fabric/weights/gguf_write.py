"""GGUF write: a stream that never looks back. The header is computed from shapes, then the tensors follow in order, so
a pipe serves as well as a file and no more than one piece of a tensor is in memory. Version 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fabric.errors import DataError, FabricError
from fabric.weights.formats import FORMATS, tensor_bytes

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_TENSOR_NAME_BYTES = 63  # llama.cpp refuses longer ones

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64 = 4, 5, 6, 7, 8, 9, 10, 11
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}  # as struct calls them
SCALARS |= {UINT64: "Q", INT64: "q", 12: "d"}
TYPE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64")


class ValueType(NamedTuple):
    """GGUF's number of a metadata type, and of its elements where it is an array."""

    type: int
    element: int | None = None


class Value(NamedTuple):
    """A metadata value as it lies in a file; `data` leaves out an array's element type and length."""

    type: ValueType
    length: int
    data: bytes | memoryview


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: GGUF type number, shape in numpy order (rows, cols)."""

    name: str
    type: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return tensor_bytes(self.type, self.shape)


def write_gguf(
    out: BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorSpec],
    payloads: Iterable[bytes | bytearray | memoryview],
    types: Mapping[str, ValueType] | None = None,
) -> int:
    """Write a GGUF file to a stream and return its size in bytes.

    metadata: plain Python values, or `Value`s of another file (written as they are). Without an entry in `types` a
    value is BOOL, STRING, FLOAT32, UINT32 (INT32 when negative, 64 bits when it needs them), or an array of those
    (integers: INT32). payloads: the tensors' bytes in order; a tensor may come in several pieces, and a piece belongs
    to one tensor. Raises DataError on a value or name that GGUF cannot hold.
    """
    alignment = _alignment(metadata)
    size = 0
    for piece in _header(metadata, types or {}, tensors, alignment):
        out.write(piece)
        size += len(piece)
    size += _pad(out, size, alignment)
    pieces = iter(payloads)
    for spec in tensors:
        size += _write_tensor(out, spec, pieces)
        size += _pad(out, size, alignment)
    if next(pieces, None) is not None:
        raise FabricError("more tensor data than the header announced")
    return size


def encode_value(value: Any, type: ValueType | None = None) -> Value:
    """Turn a plain Python value into GGUF's form; DataError when it does not fit the type."""
    if isinstance(value, Value):
        return value
    type = type or _infer(value)
    try:
        if type.type == ARRAY:
            return Value(type, len(value), _encode_array(value, type.element))
        return Value(type, 1, _encode_text(value) if type.type == STRING else _encode_scalar(value, type.type))
    except (struct.error, TypeError, AttributeError, KeyError, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"the metadata value {str(value)[:60]!r} cannot be written: {error}") from error


def _encode_scalar(value: Any, type: int) -> bytes:
    return struct.pack("<" + SCALARS[type], value)


def _encode_text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _encode_array(values: Sequence[Any], element: int | None) -> bytes:
    if element == STRING:
        return b"".join(map(_encode_text, values))
    if element is None:
        raise TypeError("an array without a type of its elements")
    return struct.pack(f"<{len(values)}{SCALARS[element]}", *values)


def _infer(value: Any) -> ValueType:
    if isinstance(value, (list, tuple)):
        return ValueType(ARRAY, _infer_element(value))
    if isinstance(value, bool):
        return ValueType(BOOL)
    if isinstance(value, int):
        if value >= 0:
            return ValueType(UINT32 if value < 1 << 32 else UINT64)
        return ValueType(INT32 if value >= -1 << 31 else INT64)
    if isinstance(value, float):
        return ValueType(FLOAT32)
    if isinstance(value, str):
        return ValueType(STRING)
    raise DataError(f"the metadata value {str(value)[:60]!r} is of a kind that GGUF does not know")


def _infer_element(values: Sequence[Any]) -> int:
    if all(isinstance(value, str) for value in values):
        return STRING
    if all(isinstance(value, bool) for value in values):
        return BOOL
    if not all(isinstance(value, (int, float)) for value in values):
        raise DataError(f"the metadata array {str(values)[:60]} mixes kinds")
    if any(isinstance(value, float) for value in values):
        return FLOAT32
    return INT32 if all(-1 << 31 <= value < 1 << 31 for value in values) else INT64


def _alignment(metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    alignment = int.from_bytes(value.data, "little") if isinstance(value, Value) else value
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 30:
        raise DataError(f"general.alignment is {str(alignment)[:60]!r}, not a power of two up to 2^30")
    return alignment


def _header(
    metadata: Mapping[str, Any], types: Mapping[str, ValueType], tensors: Sequence[TensorSpec], alignment: int
) -> Iterator[bytes | memoryview]:
    _check_names(tensors)
    yield MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    for key, value in metadata.items():
        encoded = encode_value(value, types.get(key))
        yield _encode_text(key) + struct.pack("<I", encoded.type.type)
        if encoded.type.element is not None:
            yield struct.pack("<IQ", encoded.type.element, encoded.length)
        yield encoded.data
    offset = 0
    for spec in tensors:
        extents = spec.shape[::-1]
        yield _encode_text(spec.name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, spec.type, offset)
        offset += -(-spec.nbytes // alignment) * alignment


def _check_names(tensors: Sequence[TensorSpec]) -> None:
    if len({spec.name for spec in tensors}) != len(tensors):
        raise DataError("two tensors of one file have the same name")
    for spec in tensors:
        if len(spec.name.encode()) > MAX_TENSOR_NAME_BYTES:
            raise DataError(f"the tensor name {spec.name!r} is longer than {MAX_TENSOR_NAME_BYTES} bytes")
        if spec.shape[-1] % FORMATS[spec.type].block:
            raise DataError(f"the tensor {spec.name!r} has rows that are not whole {FORMATS[spec.type].name} blocks")


def _pad(out: BinaryIO, size: int, alignment: int) -> int:
    padding = -size % alignment
    out.write(bytes(padding))
    return padding


def _write_tensor(out: BinaryIO, spec: TensorSpec, pieces: Iterator[bytes | bytearray | memoryview]) -> int:
    written = 0
    while written < spec.nbytes:
        piece = memoryview(next(pieces, b"")).cast("B")
        written += len(piece)
        if not len(piece) or written > spec.nbytes:
            raise FabricError(f"the data of tensor {spec.name} is not the {spec.nbytes} bytes that were announced")
        out.write(piece)
    return written
