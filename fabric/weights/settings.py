"""Settings and reports of `merge` and `quantize`: plain objects. Leans on
fabric.settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fabric.settings import Output, Setting, Threads, pair_of

TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_k",
    "q4_1", "q4_0",
)  # fmt: skip
MATRIX_TYPES = tuple(name for name in TYPES if not name.endswith(("_m", "_s")))  # the others mix several
LARGEST_SCALE = 1e6  # what is beyond is a slip, and would leave the range of the weights

# Called with (bytes of tensors done, bytes of tensors in all), from the calling thread.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AdapterInput:
    """An adapter file (`-`: stdin) and the factor its change is multiplied by."""

    path: str
    scale: float = 1.0

    @staticmethod
    def parse(text: str) -> AdapterInput:
        """PATH or PATH=SCALE; a file that is called so is a path."""
        from fabric.files import is_there

        path, _, scale = text.rpartition("=")
        if not path or is_there(text):
            return AdapterInput(text)
        try:
            number = float(scale)
        except ValueError:
            if not is_there(path):
                return AdapterInput(text)
            number = math.nan
        if not abs(number) <= LARGEST_SCALE:
            raise ValueError("after `=` comes a scale such as 0.5")
        return AdapterInput(path, number)


Adapters = Annotated[
    tuple[AdapterInput, ...],
    Setting(
        "LoRA adapter; may be given again", "GGUF[=SCALE]", flag="adapter", short="-a", path="in", many=True,
        parse=AdapterInput.parse,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class MergeSettings:
    """`fabric merge -m MODEL -a ADAPTER [-a ADAPTER ...] -o OUTPUT --type TYPE`."""

    model: Annotated[str | None, Setting("base model; none with --average", "GGUF", short="-m", path="in")] = None
    adapters: Adapters = ()
    output: Output = "-"
    type: Annotated[
        str,
        Setting(
            "bf16, f16, ..., q4_k_m, or keep: each tensor's own",
            "TYPE",
            parse=str.lower,
            written="bf16",
            completes=("keep", *TYPES),
        ),
    ] = "bf16"
    """Of changed and of block-quantized matrices."""
    threads: Threads = 0
    average: Annotated[
        bool, Setting("write the weighted mean of several adapters, with =SCALE as weights, instead of a model")
    ] = False


def _type_of_glob(text: str) -> tuple[str, str]:
    glob, type = pair_of("GLOB=TYPE, such as 'blk.*.ffn_down.weight=q6_k'")(text)
    return glob, type.lower()


@dataclass(frozen=True)
class QuantizeSettings:
    """`fabric quantize MODEL --type TYPE -o OUTPUT`."""

    model: Annotated[str, Setting("the model; `-` or nothing: stdin", "GGUF", path="in", operand=True, stdin=True)] = (
        "-"
    )
    output: Output = "-"
    type: Annotated[
        str,
        Setting(
            "f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_k q5_1 q5_0 q4_k_m q4_k_s q4_k q4_1 q4_0", "TYPE",
            parse=str.lower, written="q8_0", completes=TYPES,
        ),
    ] = "q8_0"  # fmt: skip
    output_type: Annotated[
        str | None,
        Setting(
            "type of the output head; default: by llama.cpp's rule", "TYPE", parse=str.lower, completes=MATRIX_TYPES
        ),
    ] = None
    """Of output.weight, or of token_embd.weight where it serves as the output too."""
    threads: Threads = 0
    tensors: Annotated[
        tuple[tuple[str, str], ...],
        Setting(
            "for matrices matching GLOB; may be given again, the last match wins", "GLOB=TYPE", flag="tensor",
            many=True, parse=_type_of_glob, completes=MATRIX_TYPES,
        ),
    ] = ()  # fmt: skip


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
