"""The matrices that train, LoRA pairs or whole weights, in one flat space of F32: which they are, where each lies, and
how it begins. A matrix goes by the name of the tensor that it becomes in the file to come.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from fabric.core import PARAM, Buffer, Range
from fabric.core.blocks import decode
from fabric.errors import DataError, UsageError
from fabric.models import architecture_of, inert_of, modules_of, usual_modules_of
from fabric.models.recorder import Recorder, Source, Weights
from fabric.training.settings import ALL, USUAL
from fabric.weights.adapter import Adapter
from fabric.weights.gguf import GGUF

F32Array = npt.NDArray[np.float32]
HEAD = "output"
_MODULE = re.compile(rf"(?:blk\.\d+\.(.+)|({HEAD}))\.weight")
ALIGN = 16  # elements: every matrix starts on a cache line
_PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Slot:
    """A matrix (rows, cols) that trains, at element `first` of the flat space; of `experts`, theirs one after the
    other."""

    name: str
    rows: int
    cols: int
    first: int
    experts: int = 1

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.cols

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: not to norms and biases, the vectors of a model."""
        return self.rows > 1 or self.name.endswith((".lora_a", ".lora_b"))


@dataclass(frozen=True)
class Layout:
    """All slots, in file order; `size` in elements, padding included."""

    slots: tuple[Slot, ...]
    size: int

    @property
    def trained(self) -> int:
        """Parameters that train, padding left out."""
        return sum(slot.size for slot in self.slots)

    def ranges(self, rate_of_b: float = 1.0) -> list[Range]:
        """Runs of slots that learn and decay alike; the rate of LoRA's B is `rate_of_b` times that of all others."""
        found: list[Range] = []
        for slot, end in zip(self.slots, [*(s.first for s in self.slots[1:]), self.size], strict=True):
            alike = (rate_of_b if slot.name.endswith(".lora_b") else 1.0, float(slot.decays))
            before = found.pop() if found and found[-1][2:] == alike else Range(slot.first, 0, *alike)
            found.append(before._replace(n=end - before.first))
        return found

    def seams(self, most: int) -> npt.NDArray[np.uint64]:
        """Bytes of the flat space at which it may be parted into allocations of `most`: where slots begin, and the rows
        of those that are larger, or the experts."""

        def starts(slot: Slot) -> npt.NDArray[np.uint64]:
            whole = slot.cols if slot.experts == 1 else slot.size // slot.experts
            step = whole if slot.size * 4 > most else slot.size
            return np.arange(slot.first, slot.first + slot.size, step, dtype=np.uint64) * np.uint64(4)

        return np.concatenate([starts(slot) for slot in self.slots])

    def sources(self, params: Buffer) -> dict[str, Source]:
        """The slots as trained leaves of a graph."""
        return {s.name: Source(PARAM, params, s.first * 4, s.rows, s.cols) for s in self.slots}


def lora_layout(gguf: GGUF, modules: tuple[str, ...], rank: int) -> Layout:
    """Pairs beside `blk.N.MODULE.weight` (and `output.weight`) for every module named, alone or by its group.

    Raises UsageError for a module that the model does not have, and for `output` where the head is tied to the
    embedding.
    """
    used = gguf.tensors.keys() - inert_of(gguf)
    found = {n: match[1] or HEAD for n in gguf.tensors if n in used and (match := _MODULE.fullmatch(n))}
    wanted = _modules(gguf, modules, set(found.values()))
    return _place(_pairs(gguf, ((name, rank) for name, module in found.items() if module in wanted)))


def _modules(gguf: GGUF, names: tuple[str, ...], present: set[str]) -> set[str]:
    """Modules by their names and those of groups; `present`: those that some layer of the file has."""
    groups = modules_of(gguf)
    groups = {ALL: tuple(module for group in groups.values() for module in group), **groups}
    groups[USUAL] = tuple(module for group in usual_modules_of(gguf) for module in groups[group])
    known = [*groups, *groups[ALL], HEAD]
    wanted: set[str] = set()
    for name in names:
        if name == HEAD and HEAD not in present:
            raise UsageError("module 'output' cannot train here: this model's head is tied to its embedding")
        if name not in known or (name not in groups and name not in present):
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close and close[0] != name else f"there are {', '.join(known)}"
            raise UsageError(f"--modules: there is no module {name!r} in this {gguf.architecture} model; {hint}")
        wanted |= set(groups.get(name, (name,)))
    return wanted


def adapter_layout(gguf: GGUF, adapter: Adapter) -> Layout:
    """The pairs of an adapter, each with its own rank."""
    return _place(_pairs(gguf, ((name, adapter.pairs[name].rank) for name in gguf.tensors if name in adapter.pairs)))


def full_layout(weights: Weights) -> Layout:
    """Every tensor that the model computes with as a weight: matrices, norms, biases, embedding, head."""
    arch, gguf = architecture_of(weights.gguf), weights.gguf
    recorder = Recorder(weights, 1, 1, "f32", {})
    recorder.loss(arch.build(recorder, arch.read_config(gguf)))
    recorder.graph.close()
    read = [info for name, info in gguf.tensors.items() if name in recorder.used]
    return _place((info.name, info.n_elements // info.shape[-1], info.shape[-1], _experts(info.shape)) for info in read)


def _experts(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else 1


def _pairs(gguf: GGUF, ranks: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, int, int]]:
    for name, rank in ranks:
        shape = gguf.tensors[name].shape
        if len(shape) not in (2, 3):
            raise DataError(f"{gguf.path}: tensor {name} is no matrix, so no LoRA pair can stand beside it")
        n = _experts(shape)
        yield f"{name}.lora_a", n * rank, shape[-1], n
        yield f"{name}.lora_b", n * shape[-2], rank, n


def _place(matrices: Iterable[tuple[str, int, int, int]]) -> Layout:
    slots, at = [], 0
    for name, rows, cols, experts in matrices:
        slots.append(Slot(name, rows, cols, at, experts))
        at += (rows * cols + ALIGN - 1) // ALIGN * ALIGN
    return Layout(tuple(slots), at)


# ---- how they begin: the elements of a slot, in pieces ----

Start = Callable[[Slot], Iterable[F32Array]]


def fill(layout: Layout, params: Buffer, start: Start) -> None:
    """Writes the first values, a piece at a time."""
    for slot in layout.slots:
        at = slot.first * 4
        for piece in start(slot):
            params.write(piece, at)
            at += piece.nbytes


def drawn(seed: int) -> Start:
    """A uniform in +-1/sqrt(n_in), keyed by seed and name (no two alike); B zero, so training starts at the base."""

    def start(slot: Slot) -> Iterator[F32Array]:
        if slot.name.endswith(".lora_b"):
            yield np.zeros(slot.size, np.float32)
            return
        key = hashlib.sha256(f"{seed}:{slot.name.removesuffix('.lora_a')}".encode()).digest()
        raw = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(slot.size)
        unit = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
        yield ((2 * unit - 1) / np.sqrt(slot.cols)).astype(np.float32)

    return start


def of_adapter(adapter: Adapter) -> Start:
    """The pairs of an adapter."""

    def start(slot: Slot) -> Iterator[F32Array]:
        name, _, part = slot.name.rpartition(".")
        pair = adapter.pairs[name]
        yield np.ascontiguousarray(pair.a if part == "lora_a" else pair.b, np.float32)

    return start


def of_base(gguf: GGUF) -> Start:
    """The weights of the base, decoded some rows at a time."""

    def start(slot: Slot) -> Iterator[F32Array]:
        info, data = gguf.tensors[slot.name], gguf.data(slot.name)
        row_bytes, step = info.nbytes // slot.rows, max(1, _PIECE_ELEMENTS // slot.cols)
        for first in range(0, slot.rows, step):
            rows = min(step, slot.rows - first)
            yield decode(info.type, data[first * row_bytes : (first + rows) * row_bytes], rows * slot.cols)

    return start
