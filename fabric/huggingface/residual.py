"""Initialisations of PEFT that take the first pair out of the base: what they took, as a pair that can be subtracted.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948) takes the largest singular directions of a matrix, OLoRA
(Büyükakyüz 2024, https://arxiv.org/abs/2406.01775) the first columns of its QR decomposition. Both are W projected on
a few directions, which the matrix alone gives.
"""

from __future__ import annotations

import numpy as np

from fabric.errors import DataError
from fabric.weights.adapter import LoraPair
from fabric.weights.formats import is_block_format
from fabric.weights.gguf import GGUF, decode_tensor, product_scale

KINDS = ("pissa", "olora")


def taken_pair(kind: str, base: GGUF, name: str, rank: int, scale: float) -> LoraPair:
    """The pair whose `scale` B A was taken out of the base's matrix when training began.

    Raises DataError where the base does not hold the matrix as it was.
    """
    info = base.tensor(name)
    if is_block_format(info.type) or product_scale(base, name) != 1.0:
        told = f"{name} is {info.type_name}; give the same model in F32, F16 or BF16"
        raise DataError(f"{base.name}: an adapter initialised by {kind} needs the weights it was made from, but {told}")
    if len(info.shape) != 2 or rank > min(info.shape):
        raise DataError(f"{base.name}: {name} has no {rank} directions that {kind} could have taken")
    weight = decode_tensor(base, name).astype(np.float64)
    directions = _singular(weight, rank) if kind == "pissa" else np.linalg.qr(weight[:, :rank])[0]
    a = directions.T @ weight
    b = directions / scale if kind == "pissa" else directions
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(f"{base.name}: {name} holds values that {kind} cannot have begun from")
    return LoraPair(a.astype(np.float32), b.astype(np.float32))


def _singular(
    weight: np.ndarray[tuple[int, int], np.dtype[np.float64]], rank: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """(N, rank), the left singular vectors of the largest singular values, by way of the smaller Gram matrix."""
    rows, cols = weight.shape
    if rows <= cols:
        return np.asarray(np.linalg.eigh(weight @ weight.T)[1][:, ::-1][:, :rank])
    right = np.linalg.eigh(weight.T @ weight)[1][:, ::-1][:, :rank]
    return np.asarray(np.linalg.qr(weight @ right)[0])
