"""The tensor types of GGUF: how many bytes a block takes, and what a file of such tensors is called.

Every type that exists is listed, so that any file can be inspected. The list is the core's, native/quant/formats.h.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core.blocks import types


@dataclass(frozen=True)
class Format:
    """One tensor type: `block` elements take `block_bytes` bytes; `file_type` is general.file_type's number."""

    type: int
    name: str
    block: int
    block_bytes: int
    file_type: int | None
    decodes: bool
    encodes: bool


_ROWS = sorted((Format(*row) for row in types()), key=lambda row: row.type)
FORMATS = {row.type: row for row in _ROWS}
BY_NAME = {row.name: row for row in _ROWS}

F32, F16, BF16, Q8_0 = (BY_NAME[name].type for name in ("F32", "F16", "BF16", "Q8_0"))


def type_name(type: int) -> str:
    """Name a GGUF tensor type."""
    return FORMATS[type].name if type in FORMATS else f"type {type}"


def is_block_format(type: int) -> bool:
    """Tell whether several elements share a block: what is commonly called a quantized type."""
    return FORMATS[type].block > 1


def tensor_bytes(type: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor (numpy order, rows of whole blocks)."""
    n = 1
    for extent in shape:
        n *= extent
    return n // FORMATS[type].block * FORMATS[type].block_bytes


def can_decode(type: int) -> bool:
    """Tell whether the core reads this type."""
    return type in FORMATS and FORMATS[type].decodes


def encodable() -> list[Format]:
    """Return the types that the core writes, in the order of their numbers."""
    return [row for row in _ROWS if row.encodes]
