"""Copies of GGUF files with other metadata and other tensors, and models split over several files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.weights.formats import F32
from fabric.weights.gguf import GGUF, TensorSpec, ValueType, write_gguf

Array = npt.NDArray[np.float32]


def edited(
    source: Path, target: Path, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Array | None] | None = None
) -> Path:
    """A copy with some keys and F32 tensors added, replaced, or left out where they are None."""
    with GGUF.open(source) as gguf:
        metadata: dict[str, Any] = {**gguf.raw_metadata, **(keys or {})}
        metadata = {key: value for key, value in metadata.items() if value is not None}
        data: dict[str, tuple[TensorSpec, Any]] = {
            name: (TensorSpec(name, info.type, info.shape), gguf.data(name)) for name, info in gguf.tensors.items()
        }
        for name, array in (tensors or {}).items():
            data.pop(name, None)
            if array is not None:
                data[name] = (TensorSpec(name, F32, array.shape), np.ascontiguousarray(array, "<f4").data)
        with target.open("wb") as out:
            write_gguf(out, metadata, [spec for spec, _ in data.values()], [piece for _, piece in data.values()])
    return target


def split(source: Path, folder: Path, count: int = 3, name: str = "m") -> list[Path]:
    """The parts of a model, as llama-gguf-split writes them: metadata in the first, tensors in all."""
    u16, i32 = ValueType(2), ValueType(5)
    paths = [folder / f"{name}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    with GGUF.open(source) as gguf:
        infos = list(gguf.tensors.values())
        for i, path in enumerate(paths):
            own = infos[i * len(infos) // count : (i + 1) * len(infos) // count]
            told = {"split.no": i, "split.count": count, "split.tensors.count": len(infos)}
            metadata = {**(gguf.raw_metadata if i == 0 else {}), **told}
            types = {"split.no": u16, "split.count": u16, "split.tensors.count": i32}
            specs = [TensorSpec(info.name, info.type, info.shape) for info in own]
            with path.open("wb") as out:
                write_gguf(out, metadata, specs, [gguf.data(info.name) for info in own], types)
    return paths
