"""LoRA pairs in one flat space of F32: where each lies, how they begin, and how they become an adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core import PARAM, Buffer, Range
from fabric.errors import DataError, UsageError
from fabric.models.recorder import LoraSource
from fabric.training.settings import MODULES
from fabric.weights.adapter import Adapter, LoraPair
from fabric.weights.gguf import GGUF

F32Array = npt.NDArray[np.float32]
ALIGN = 16  # elements: every matrix starts on a cache line


@dataclass(frozen=True)
class PairSlot:
    """a (rank, n_in) at element `a`, b (n_out, rank) at element `b` of the flat space."""

    name: str
    rank: int
    n_in: int
    n_out: int
    a: int
    b: int


@dataclass(frozen=True)
class Layout:
    """All pairs, in file order of the weights they stand beside; `size` in elements, padding included."""

    pairs: tuple[PairSlot, ...]
    size: int

    @property
    def trained(self) -> int:
        """Parameters that train, padding left out."""
        return sum(p.rank * (p.n_in + p.n_out) for p in self.pairs)

    def ranges(self) -> list[Range]:
        """One range: every pair has the same rate and decay."""
        return [Range(0, self.size)]


def lora_layout(gguf: GGUF, modules: tuple[str, ...], rank: int) -> Layout:
    """Pairs beside `blk.N.MODULE.weight` (and `output.weight`) for every module named.

    Raises UsageError for a module unknown or in no layer, and for `output` where the head is tied to the embedding.
    """
    if "output" in modules and "output.weight" not in gguf.tensors:
        raise UsageError("module 'output' cannot train here: this model's head is tied to its embedding")
    names = []
    for name in gguf.tensors:
        parts = name.split(".")
        layer = len(parts) == 4 and parts[0] == "blk" and parts[2] in modules
        if parts[-1] == "weight" and (layer or ("output" in modules and name == "output.weight")):
            names.append(name)
    for module in modules:
        if module not in MODULES or not any(module in name.split(".") for name in names):
            raise UsageError(f"no layer of this model has a module '{module}'; choose from {', '.join(MODULES)}")
    ranks = dict.fromkeys(names, rank)
    return _layout(gguf, ranks)


def adapter_layout(gguf: GGUF, adapter: Adapter) -> Layout:
    """The pairs of an adapter, each with its own rank."""
    return _layout(gguf, {name: adapter.pairs[name].a.shape[0] for name in gguf.tensors if name in adapter.pairs})


def _layout(gguf: GGUF, ranks: Mapping[str, int]) -> Layout:
    pairs, at = [], 0

    def take(count: int) -> int:
        nonlocal at
        first, at = at, at + (count + ALIGN - 1) // ALIGN * ALIGN
        return first

    for name, rank in ranks.items():
        shape = gguf.tensors[name].shape
        if len(shape) != 2:
            raise DataError(f"{gguf.path}: tensor {name} is no matrix, so no LoRA pair can stand beside it")
        n_out, n_in = shape
        pairs.append(PairSlot(name, rank, n_in, n_out, take(rank * n_in), take(n_out * rank)))
    return Layout(tuple(pairs), at)


def initial_values(layout: Layout, seed: int) -> F32Array:
    """A uniform in +-1/sqrt(n_in), keyed by seed and name (no two alike); B zero, so training starts at the base."""
    flat = np.zeros(layout.size, np.float32)
    for p in layout.pairs:
        key = hashlib.sha256(f"{seed}:{p.name}".encode()).digest()
        raw = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(p.rank * p.n_in)
        unit = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
        flat[p.a : p.a + p.rank * p.n_in] = ((2 * unit - 1) / np.sqrt(p.n_in)).astype(np.float32)
    return flat


def adapter_values(layout: Layout, adapter: Adapter) -> F32Array:
    """The flat values of an adapter's pairs."""
    flat = np.zeros(layout.size, np.float32)
    for p in layout.pairs:
        pair = adapter.pairs[p.name]
        flat[p.a : p.a + pair.a.size] = pair.a.ravel()
        flat[p.b : p.b + pair.b.size] = pair.b.ravel()
    return flat


def as_pairs(layout: Layout, flat: F32Array) -> dict[str, LoraPair]:
    """The pairs by the names of the weights they stand beside."""
    return {
        p.name: LoraPair(
            flat[p.a : p.a + p.rank * p.n_in].reshape(p.rank, p.n_in),
            flat[p.b : p.b + p.n_out * p.rank].reshape(p.n_out, p.rank),
        )
        for p in layout.pairs
    }


def trained_sources(layout: Layout, params: Buffer, alpha: float) -> dict[str, LoraSource]:
    """The pairs as trainable leaves of a graph; scale = alpha / rank, 1 where alpha is 0."""
    return {
        p.name: LoraSource(PARAM, params, p.a * 4, p.b * 4, p.rank, alpha / p.rank if alpha else 1.0)
        for p in layout.pairs
    }
