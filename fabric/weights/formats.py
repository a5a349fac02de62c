"""The tensor types of GGUF: how many bytes a block takes, and what a file of such tensors is called.

Every type that exists is listed, so that any file can be inspected; which of them can be decoded, the core says.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core.blocks import block_of, can_encode


@dataclass(frozen=True)
class Format:
    """One tensor type: `block` elements take `block_bytes` bytes; `file_type` is general.file_type's number."""

    type: int
    name: str
    block: int
    block_bytes: int
    file_type: int | None = None


_ROWS = (
    Format(0, "F32", 1, 4, 0),
    Format(1, "F16", 1, 2, 1),
    Format(2, "Q4_0", 32, 18, 2),
    Format(3, "Q4_1", 32, 20, 3),
    Format(6, "Q5_0", 32, 22, 8),
    Format(7, "Q5_1", 32, 24, 9),
    Format(8, "Q8_0", 32, 34, 7),
    Format(9, "Q8_1", 32, 40),
    Format(10, "Q2_K", 256, 84),
    Format(11, "Q3_K", 256, 110),
    Format(12, "Q4_K", 256, 144),
    Format(13, "Q5_K", 256, 176),
    Format(14, "Q6_K", 256, 210, 18),
    Format(15, "Q8_K", 256, 292),
    Format(16, "IQ2_XXS", 256, 66, 19),
    Format(17, "IQ2_XS", 256, 74, 20),
    Format(18, "IQ3_XXS", 256, 98, 23),
    Format(19, "IQ1_S", 256, 50, 24),
    Format(20, "IQ4_NL", 32, 18, 25),
    Format(21, "IQ3_S", 256, 110, 26),
    Format(22, "IQ2_S", 256, 82, 28),
    Format(23, "IQ4_XS", 256, 136, 30),
    Format(24, "I8", 1, 1),
    Format(25, "I16", 1, 2),
    Format(26, "I32", 1, 4),
    Format(27, "I64", 1, 8),
    Format(28, "F64", 1, 8),
    Format(29, "IQ1_M", 256, 56, 31),
    Format(30, "BF16", 1, 2, 32),
    Format(34, "TQ1_0", 256, 54, 36),
    Format(35, "TQ2_0", 256, 66, 37),
    Format(39, "MXFP4", 32, 17, 38),
    Format(40, "NVFP4", 64, 36, 39),
    Format(41, "Q1_0", 128, 18, 40),
)
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
    return block_of(type) is not None


def encodable() -> list[Format]:
    """Return the types that the core writes, in the order of their numbers."""
    return [row for row in _ROWS if can_encode(row.type)]
