"""A vocabulary in the core: words to token ids by merging, the part of a tokenizer that Python is too slow for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.core._native import ffi, lib
from fabric.errors import DeviceError, FabricError

_ROOM = 256  # bytes of a word that need no memory of their own


class Words:
    """Byte strings that are tokens, or may merge, or both; see `fb_words_new`."""

    def __init__(
        self,
        keys: Sequence[str],
        ranks: npt.NDArray[np.integer[Any]],
        ids: npt.NDArray[np.integer[Any]],
        joint: str = "",
        byte_ids: Sequence[int] | None = None,
    ) -> None:
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        numbers = [ffi.from_buffer("int32_t[]", np.ascontiguousarray(a, np.int32)) for a in (lengths, ranks, ids)]
        fallback = ffi.NULL if byte_ids is None else ffi.new("int32_t[256]", list(byte_ids))
        if len(numbers[1]) != len(encoded) or len(numbers[2]) != len(encoded):
            raise FabricError(f"{len(encoded)} keys have {len(numbers[1])} ranks and {len(numbers[2])} ids")
        text = b"".join(encoded)
        made = lib.fb_words_new(text, len(text), *numbers, len(encoded), ord(joint) if joint else -1, fallback)
        if made == ffi.NULL:
            raise DeviceError(f"there is no memory for a vocabulary of {len(encoded)} entries")
        self._words = ffi.gc(made, lib.fb_words_free)
        self._room = ffi.new("int32_t[]", _ROOM)

    def __call__(self, word: str) -> list[int]:
        """Ids of a word; DeviceError where memory runs out."""
        data = word.encode()
        room = self._room if len(data) <= _ROOM else ffi.new("int32_t[]", len(data))
        count = lib.fb_words_encode(self._words, data, len(data), room, len(room))
        if count < 0:
            raise DeviceError(f"there is no memory for a word of {len(data)} bytes")
        ids: list[int] = ffi.unpack(room, count) if count else []
        return ids
