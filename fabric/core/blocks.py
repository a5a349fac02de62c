"""Block formats to float32 and back. Calls release the interpreter, so threads help."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fabric.core._native import ffi, lib
from fabric.errors import FabricError

Floats: TypeAlias = npt.NDArray[np.float32]
Bytes: TypeAlias = "bytes | bytearray | memoryview"


def types() -> Iterator[tuple[int, str, int, int, int | None, bool, bool]]:
    """Every tensor type of GGUF: number, name, elements and bytes of a block, file type, whether the core reads and
    writes it."""
    for i in count():
        if (row := lib.fb_format_at(i)) == ffi.NULL:
            return
        file_type = None if row.file_type < 0 else row.file_type
        name = ffi.string(row.name).decode()
        yield row.type, name, row.block, row.block_bytes, file_type, bool(row.decodes), bool(row.encodes)


def decode(type: int, data: Bytes, n: int) -> Floats:
    """Decode n elements, whole blocks, to (n,) float32. FabricError when the core does not know the type."""
    out = np.empty(n, np.float32)
    _check(lib.fb_decode(type, ffi.from_buffer(data), len(data), ffi.from_buffer("float[]", out), n))
    return out


def encode(type: int, values: Floats, importance: Floats | None = None) -> memoryview:
    """Encode (rows, cols) float32, cols whole blocks, to the bytes of that type.

    `importance`, (cols,): how much the squared error of a column counts, where a format can choose.
    """
    values = np.ascontiguousarray(values, np.float32)
    rows, cols = values.shape
    if (row := lib.fb_format_get(type)) == ffi.NULL:
        raise FabricError(f"type {type} cannot be encoded")
    out = np.empty(rows * (cols // row.block) * row.block_bytes, np.uint8)
    source = ffi.from_buffer("float[]", values)
    weights = ffi.NULL if importance is None else ffi.from_buffer("float[]", importance)
    if importance is not None and (importance.shape != (cols,) or importance.dtype != np.float32):
        raise FabricError(f"importance of {cols} columns must be {cols} float32")
    _check(lib.fb_encode(type, source, ffi.from_buffer(out), out.nbytes, rows, cols, weights))
    return out.data


def _check(code: int) -> None:
    if code != lib.FB_OK:
        raise FabricError(ffi.string(lib.fb_error()).decode())
