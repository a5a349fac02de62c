"""Random numbers of a step: the keys that dropout hashes, and the noise that NEFTune adds to embeddings.

Both hang on seed, step, row and position alone, so packing, accumulation, checkpointing and resuming change nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

U32 = np.uint32


def dropout_keys(seed: int, step: int, rows: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """A key a token, (sum of lengths,), of the rows by number and their lengths."""
    keys = [_mixed(U32(_key("dropout", seed, step, row) & 0xFFFFFFFF) + np.arange(n, dtype=U32))
            for row, n in zip(rows, lengths, strict=True)]  # fmt: skip
    return np.concatenate(keys).view(np.int32)


def embedding_noise(
    seed: int, step: int, rows: Sequence[int], lengths: Sequence[int], width: int, alpha: float
) -> npt.NDArray[np.float32]:
    """(sum of lengths, width), uniform in +-alpha / sqrt(length * width) of each row.

    Jain et al. 2023, https://arxiv.org/abs/2310.05914.
    """
    noise = []
    for row, n in zip(rows, lengths, strict=True):
        raw = np.random.Philox(key=_key("neftune", seed, step, row)).random_raw((n * width + 1) // 2)
        unit = (raw.view(U32)[: n * width] >> U32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
        noise.append(unit.reshape(n, width) * np.float32(alpha / math.sqrt(n * width)))
    return np.concatenate(noise)


def _key(what: str, *numbers: int) -> int:
    told = f"{what}:{':'.join(map(str, numbers))}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little")


def _mixed(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A bijection that leaves no order among neighbours."""
    x = (x ^ (x >> U32(16))) * U32(0x7FEB352D)
    x = (x ^ (x >> U32(15))) * U32(0x846CA68B)
    return x ^ (x >> U32(16))
