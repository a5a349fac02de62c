"""What `merge` and `quantize` are told and what they report: plain objects, no logic. Leans on nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# Called with (bytes of tensors done, bytes of tensors in all), from the calling thread.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AdapterInput:
    """An adapter file (`-`: stdin) and the factor its change is multiplied by."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class MergeSettings:
    """`fabric merge -m MODEL -a ADAPTER [-a ADAPTER ...] -o OUTPUT --type TYPE`."""

    model: str  # GGUF; "-": stdin
    adapters: tuple[AdapterInput, ...]
    output: str  # "-": stdout
    type: str = "bf16"  # or a mix; of changed and of block-quantized matrices; "keep": each its own
    threads: int = 0  # 0: one a core


@dataclass(frozen=True)
class QuantizeSettings:
    """`fabric quantize MODEL --type TYPE -o OUTPUT`."""

    model: str = "-"  # GGUF; "-": stdin
    output: str = "-"
    type: str = "q8_0"  # any of fabric.weights.mix.type_names()
    output_type: str | None = None  # of output.weight, or of token_embd.weight where it serves as the output too
    threads: int = 0
    tensors: tuple[tuple[str, str], ...] = ()  # (glob of names, type) of some matrices; of several that match, the last


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor."""

    name: str
    shape: tuple[int, ...]
    from_type: str
    to_type: str
    from_bytes: int
    to_bytes: int
    rmse: float | None = None  # against the source (for merge: against base plus change); None where bytes were copied
    relative_rmse: float | None = None  # the same over the tensor's own root mean square
    changed: bool = False  # merge: an adapter changed it
    fallback: str | None = None  # why the tensor did not get the type asked for


@dataclass(frozen=True)
class WriteResult:
    """What `merge` or `quantize` wrote: a row a tensor, and the totals."""

    output: str
    type: str
    tensors: list[TensorReport] = field(repr=False)
    from_bytes: int  # of tensors
    to_bytes: int
    file_bytes: int  # of the whole output
    notes: list[str] = field(default_factory=list)  # sentences about inputs that may not belong together
