"""GGUF read: a file is mapped, everything its header claims is checked against the bytes really there, and nothing is
decoded before it is asked for. Time and memory are bounded by the size of the file. The format: ggml's GGUF
specification, versions 2 and 3; a model split over several files is one to its readers. Writing is in gguf_write.py and
offered here too.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from fabric.core.blocks import Floats, decode
from fabric.errors import DataError
from fabric.files import seekable_input, shown
from fabric.kinds import instead_of_gguf
from fabric.mapping import mapped
from fabric.weights.formats import FORMATS, can_decode, tensor_bytes, type_name
from fabric.weights.gguf_parts import Part, check_parts, part_number, part_paths
from fabric.weights.gguf_write import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    MAGIC,
    SCALARS,
    STRING,
    TYPE_NAMES,
    TensorSpec,
    Value,
    ValueType,
    write_gguf,
)

__all__ = ["GGUF", "TensorInfo", "TensorSpec", "Value", "ValueType", "decode_tensor", "write_gguf"]

T = TypeVar("T", str, int, float, bool, list)  # type: ignore[type-arg]

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_NAME_BYTES = (1 << 16) - 1
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is; `shape` in numpy order, (rows, cols) for matrices."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int
    n_elements: int
    part: int = 0  # which file of a split model

    @property
    def type_name(self) -> str:
        """Name of the type: "Q8_0"."""
        return type_name(self.type)


class GGUF:
    """An open GGUF file, or all files of a split one. A context manager; views of its tensors may outlive it and keep
    the mapping alive."""

    def __init__(self, parts: list[_Parser], path: str) -> None:
        """From parsed files; use `GGUF.open`."""
        self.path = path
        self._maps = [part.map for part in parts]
        self._buffers = [part.buffer for part in parts]
        self.version = parts[0].version
        self.raw_metadata: Mapping[str, Value] = parts[0].values
        if len(parts) > 1:  # what is made of it is one file again
            self.raw_metadata = {key: value for key, value in parts[0].values.items() if not key.startswith("split.")}
        self.metadata: Mapping[str, Any] = _Metadata(self.raw_metadata)
        self.metadata_types: Mapping[str, ValueType] = {key: value.type for key, value in self.raw_metadata.items()}
        self.tensors = {
            name: replace(info, part=i) if i else info
            for i, part in enumerate(parts)
            for name, info in part.tensors.items()
        }

    @classmethod
    def open(cls, source: str | Path) -> GGUF:
        """Map a file, and all files of a split model by any of its parts; `-` and pipes are spooled first.

        Raises MissingInputError, DataError, UsageError.
        """
        named = _Parser.of(source)
        number, count = part_number(named.part)
        if count == 1:
            return cls([named], str(source))
        paths = part_paths(str(source), number, count)
        parts = [named if i == number else _Parser.of(path) for i, path in enumerate(paths)]
        check_parts([part.part for part in parts])
        return cls(parts, str(source))

    def close(self) -> None:
        """Let go of the mappings; each goes away with the last view of it."""
        for buffer, map in zip(self._buffers, self._maps, strict=True):
            with contextlib.suppress(BufferError):
                buffer.release()
                map.close()

    def __enter__(self) -> GGUF:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def n_parts(self) -> int:
        """How many files the model lies in."""
        return len(self._buffers)

    @property
    def file_bytes(self) -> int:
        """The size of the file, or of all files."""
        return sum(map(len, self._buffers))

    @property
    def name(self) -> str:
        """What to call the file in a sentence: its path, or "stdin"."""
        return shown(self.path)

    @cached_property
    def architecture(self) -> str:
        """general.architecture; DataError when it is not there."""
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a metadata value that must be `kind` (int, float, str, bool or list); an int serves as a float.

        Raises DataError when the key is missing and no default is given, or when it holds something else.
        """
        if key not in self.metadata:
            if default is None:
                raise DataError(f"{self.name}: the metadata key {key} is missing")
            return default
        value = self.metadata[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            is_type = TYPE_NAMES[self.metadata_types[key].type]
            raise DataError(f"{self.name}: the metadata key {key} is {is_type}, where {kind.__name__} is expected")
        return value

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's place and type; DataError when the file has none of that name."""
        if name not in self.tensors:
            raise DataError(f"{self.name}: the tensor {name} is missing")
        return self.tensors[name]

    def data(self, name: str) -> memoryview:
        """Return a tensor's bytes as they lie in the file, without copying."""
        info = self.tensor(name)
        return self._buffers[info.part][info.offset : info.offset + info.nbytes]

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, or of all parts one after the other, in hex; computed once."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for buffer in self._buffers:
            for start in range(0, len(buffer), 1 << 22):
                digest.update(buffer[start : start + (1 << 22)])
        return digest.hexdigest()


def decode_tensor(gguf: GGUF, name: str) -> Floats:
    """Decode a whole tensor to float32 in its shape. Raises DataError when its type cannot be decoded."""
    info = gguf.tensor(name)
    check_decodable(gguf, info)
    return decode(info.type, gguf.data(name), info.n_elements).reshape(info.shape)


def product_scale(gguf: GGUF, name: str) -> float:
    """What the product with the matrix NAME.weight is multiplied by: the one number of NAME.scale, 1 without it."""
    scale = f"{name.removesuffix('.weight')}.scale"
    if not name.endswith(".weight") or scale not in gguf.tensors:
        return 1.0
    values = decode_tensor(gguf, scale)
    if values.size != 1 or not np.isfinite(values).all() or not values.all():
        raise DataError(f"{gguf.name}: the tensor {scale} is not one finite number other than 0")
    return float(values.reshape(()))


def pair_divisor(gguf: GGUF, name: str) -> float:
    """What a LoRA pair is divided by before it is added to the matrix NAME: in attention, and after a norm inside a
    feed-forward layer, the scale multiplies the product with the matrix alone; elsewhere in feed-forward layers its sum
    with pair and bias. So llama.cpp computes.
    """
    after_norm = name.replace("ffn_down", "ffn_sub_norm") in gguf.tensors and "ffn_down" in name
    return product_scale(gguf, name) if ".attn_" in name or after_norm else 1.0


def check_decodable(gguf: GGUF, info: TensorInfo) -> None:
    """Raise DataError when the core cannot decode a tensor's type."""
    if not can_decode(info.type):
        reason = "a type that holds no weights" if info.type in FORMATS else "which cannot be decoded here"
        raise DataError(f"{gguf.name}: the tensor {info.name} is {info.type_name}, {reason}")


class _Metadata(Mapping[str, Any]):
    """Metadata as plain Python values, each decoded at first use. Text that is not UTF-8 comes with surrogate escapes,
    so that encoding it the same way gives the bytes of the file."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            self._decoded[key] = _decode_value(self._values[key])
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _decode_value(value: Value) -> Any:
    type = value.type.type
    if type == STRING:
        return str(value.data[8:], "utf-8", "surrogateescape")
    if type != ARRAY:
        return _numbers(type, value.data)[0]
    if value.type.element == STRING:
        return _strings(value.data, value.length)
    return _numbers(value.type.element or 0, value.data)


def _numbers(type: int, data: bytes | memoryview) -> list[Any]:
    numbers = np.frombuffer(data, np.dtype("<" + SCALARS[type].replace("?", "u1")))
    return (numbers != 0).tolist() if type == BOOL else numbers.tolist()  # type: ignore[no-any-return]


def _strings(data: bytes | memoryview, count: int) -> list[str]:
    raw = bytes(data)
    length_at = struct.Struct("<Q").unpack_from
    out = []
    at = 0
    for _ in range(count):
        start = at + 8
        at = start + length_at(raw, at)[0]
        out.append(raw[start:at].decode("utf-8", "surrogateescape"))
    return out


class _Parser:
    """Walks the header once, front to back; every read is checked against the end of the file."""

    def __init__(self, map: mmap.mmap, name: str) -> None:
        self.map, self.buffer = map, memoryview(map)
        self.size = len(self.buffer)
        self.name = name
        self.at = 0
        self.version = 0
        self.alignment = DEFAULT_ALIGNMENT
        self.values: dict[str, Value] = {}
        self.tensors: dict[str, TensorInfo] = {}

    @classmethod
    def of(cls, source: str | Path) -> _Parser:
        """A file, mapped and parsed."""
        if wrong := instead_of_gguf(source):
            raise DataError(wrong)
        with seekable_input(source, MAGIC) as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise DataError(f"{shown(source)}: empty, where a GGUF file is expected")
            return cls(mapped(handle, shown(source)), shown(source)).parse()

    @property
    def part(self) -> Part:
        """What tells which part of a split model this is."""
        return Part(self.name, _Metadata(self.values), self.values, self.tensors)

    def parse(self) -> _Parser:
        n_tensors, n_keys = self.header()
        for _ in range(n_keys):
            self.key()
        self.read_alignment()
        claims = [self.claim() for _ in range(n_tensors)]
        start = -(-self.at // self.alignment) * self.alignment
        self.place(claims, start)
        return self

    def fail(self, what: str) -> DataError:
        return DataError(f"{self.name}: {what}")

    def take(self, n: int, what: str) -> int:
        """Move past n bytes; return where they start."""
        start = self.at
        if n > self.size - start:
            raise self.fail(f"cut short: {what} at byte {start} passes the end, byte {self.size}")
        self.at = start + n
        return start

    def number(self, code: str, what: str) -> int:
        layout = struct.Struct("<" + code)
        return int(layout.unpack_from(self.buffer, self.take(layout.size, what))[0])

    def text(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > _MAX_NAME_BYTES:
            raise self.fail(f"{what} at byte {self.at} claims {length} bytes, more than any has")
        start = self.take(length, what)
        try:
            return str(self.buffer[start : self.at], "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} at byte {start} is not UTF-8") from None

    def header(self) -> tuple[int, int]:
        if bytes(self.buffer[:4]) != MAGIC:
            raise self.fail("not a GGUF file: it does not start with the letters GGUF")
        self.take(4, "the magic")
        self.version = self.number("I", "the version")
        if self.version not in (2, 3):
            if self.version.to_bytes(4, "little")[::-1] in (b"\2\0\0\0", b"\3\0\0\0"):
                raise self.fail("a big-endian GGUF file; only little-endian ones are read")
            raise self.fail(f"GGUF version {self.version} is not known; versions 2 and 3 are")
        n_tensors = self.number("Q", "the number of tensors")
        n_keys = self.number("Q", "the number of metadata keys")
        for n, most, what in ((n_tensors, _MAX_TENSORS, "tensors"), (n_keys, _MAX_KEYS, "metadata keys")):
            if n > most or n > self.size:
                raise self.fail(f"claims {n} {what}, more than can be there")
        return n_tensors, n_keys

    def key(self) -> None:
        key = self.text("a metadata key")
        if key in self.values:
            raise self.fail(f"the metadata key {key!r} comes twice")
        what = f"the value of {key!r}"
        type = self.number("I", f"the type of {key!r}")
        if type == ARRAY:
            element = self.number("I", f"the element type of {key!r}")
            count = self.number("Q", f"the length of {key!r}")
            start = self.array(element, count, key)
            self.values[key] = Value(ValueType(ARRAY, element), count, self.buffer[start : self.at])
            return
        if type == STRING:
            length = self.number("Q", f"the length of {key!r}")
            start = self.take(length, what) - 8
        elif type in SCALARS:
            start = self.take(struct.calcsize("<" + SCALARS[type]), what)
        else:
            raise self.fail(f"the metadata key {key!r} has the unknown type {type}")
        self.values[key] = Value(ValueType(type), 1, self.buffer[start : self.at])

    def array(self, element: int, count: int, key: str) -> int:
        what = f"the array {key!r} of {count} elements"
        if element in SCALARS:
            return self.take(count * struct.calcsize("<" + SCALARS[element]), what)
        if element == ARRAY:
            raise self.fail(f"the metadata key {key!r} is an array of arrays, which is not read")
        if element != STRING:
            raise self.fail(f"the metadata key {key!r} is an array of the unknown type {element}")
        start = self.at
        if count * 8 > self.size - start:
            raise self.fail(f"cut short: {what} at byte {start} passes the end, byte {self.size}")
        length_at = struct.Struct("<Q").unpack_from
        buffer, at, last = self.buffer, start, self.size - 8
        for _ in range(count):
            if at > last:
                break
            at += 8 + length_at(buffer, at)[0]
        else:
            self.take(at - start, what)
            return start
        raise self.fail(f"cut short: {what} at byte {start} passes the end, byte {self.size}")

    def read_alignment(self) -> None:
        value = self.values.get("general.alignment")
        if value is None:
            return
        alignment = _decode_value(value) if value.type.type in SCALARS else None
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 30:
            raise self.fail("general.alignment is not a power of two")
        self.alignment = alignment

    def claim(self) -> TensorInfo:
        """Read what the header says of a tensor; offset is still relative to the start of the data."""
        name = self.text("a tensor's name")
        if name in self.tensors:
            raise self.fail(f"the tensor {name!r} comes twice")
        what = f"the description of tensor {name!r}"
        n_dims = self.number("I", what)
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.fail(f"the tensor {name!r} claims {n_dims} dimensions; 1 to {_MAX_DIMS} are known")
        extents = tuple(self.number("Q", what) for _ in range(n_dims))
        type = self.number("I", what)
        offset = self.number("Q", what)
        if type not in FORMATS:
            raise self.fail(f"the tensor {name!r} has the unknown type {type}")
        row = FORMATS[type]
        if min(extents) < 1 or max(extents) >= 1 << 31:
            raise self.fail(f"the tensor {name!r} claims the impossible shape {list(extents)}")
        if extents[0] % row.block:
            raise self.fail(f"the tensor {name!r} has rows of {extents[0]}, not whole {row.name} blocks of {row.block}")
        shape = extents[::-1]
        nbytes = tensor_bytes(type, shape)
        info = TensorInfo(name, type, shape, offset, nbytes, nbytes // row.block_bytes * row.block)
        self.tensors[name] = info
        return info

    def place(self, claims: list[TensorInfo], start: int) -> None:
        """Turn offsets absolute; none may be misaligned, out of range, or inside another tensor."""
        end_before, before = start, ""
        for claim in sorted(claims, key=lambda claim: claim.offset):
            if claim.offset % self.alignment:
                raise self.fail(f"the tensor {claim.name!r} is at {claim.offset}, not a multiple of {self.alignment}")
            offset = start + claim.offset
            end = offset + claim.nbytes
            if end > self.size:
                raise self.fail(f"cut short: tensor {claim.name!r} ends at byte {end} of {self.size}")
            if offset < end_before:
                raise self.fail(f"the tensors {before!r} and {claim.name!r} overlap")
            end_before, before = end, claim.name
            self.tensors[claim.name] = TensorInfo(
                claim.name, claim.type, claim.shape, offset, claim.nbytes, claim.n_elements
            )
