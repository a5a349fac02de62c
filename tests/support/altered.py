"""Copies of GGUF files in which some metadata and some tensors are others, for tests of what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.weights.formats import F32
from fabric.weights.gguf import GGUF, TensorSpec, write_gguf


def altered(
    source: Path,
    target: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Writes `target`, with those values and F32 tensors in place of, or beside, the ones of `source`."""
    arrays = dict(tensors or {})
    with GGUF.open(source) as gguf, target.open("wb") as out:
        kept = {name: info for name, info in gguf.tensors.items() if name not in arrays}
        specs = [TensorSpec(name, info.type, info.shape) for name, info in kept.items()]
        specs += [TensorSpec(name, F32, array.shape) for name, array in arrays.items()]
        data = [gguf.data(name) for name in kept]
        data += [np.ascontiguousarray(array, np.float32).data.cast("B") for array in arrays.values()]
        write_gguf(out, {**gguf.raw_metadata, **(metadata or {})}, specs, data)
    return target
