"""`fabric merge`: a base model and adapters in, one stock GGUF model out."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated

from typer import Option

from fabric.cli import console, options
from fabric.errors import UsageError

if TYPE_CHECKING:
    from fabric.weights.settings import AdapterInput, WriteResult

LARGEST_SCALE = 1e6  # what is beyond is a slip, and would leave the range of the weights


def command(
    model: options.Model,
    adapter: Annotated[
        list[str], Option("-a", "--adapter", metavar="GGUF[=SCALE]", help="LoRA adapter; may be given again")
    ],
    output: options.Output = "-",
    type: Annotated[
        str, Option("--type", metavar="TYPE", help="bf16, f16, ..., q4_k_m, or keep: each tensor's own")
    ] = "bf16",
    errors: options.Errors = False,
    threads: options.Threads = 0,
) -> None:
    """Folds LoRA adapters into their base model and streams the result.

    `merge | quantize` quantizes once, because merge writes BF16 unless told.
    """
    from fabric.files import check_streams
    from fabric.weights.merge import merge
    from fabric.weights.settings import MergeSettings

    adapters = tuple(adapter_input(text) for text in adapter)
    check_streams([model, *(a.path for a in adapters)], [output])
    with console.bar("merge", "B") as progress:
        result = merge(MergeSettings(model, adapters, output, type.lower(), threads), progress)
    tell("merged", result, errors)


def adapter_input(text: str) -> AdapterInput:
    """PATH or PATH=SCALE; a file that is called so is a path."""
    from fabric.files import is_there
    from fabric.weights.settings import AdapterInput

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
        raise UsageError(f"--adapter {text}: after `=` comes a scale such as 0.5")
    return AdapterInput(path, number)


def tell(verb: str, result: WriteResult, each: bool) -> None:
    """Says what was written; which tensors did not get their type, and why; and of each what encoding lost."""
    for text in result.notes:
        console.note(text)
    reasons = Counter((tensor.to_type, tensor.fallback) for tensor in result.tensors if tensor.fallback)
    for (type, reason), count in reasons.items():
        first = next(t.name for t in result.tensors if (t.to_type, t.fallback) == (type, reason))
        which = first if count == 1 else f"{first} and {count - 1} more"
        console.note(f"{which}: {type}, because {reason}")
    if each:
        lost = [(t, t.relative_rmse) for t in result.tensors if t.relative_rmse is not None]
        lines = [[t.name, t.from_type, t.to_type, f"{100 * part:.4f} %"] for t, part in lost]
        console.notes(console.table([["tensor", "from", "to", "lost"], *lines], "<<<"))
    changed = sum(tensor.changed for tensor in result.tensors)
    what = f"{changed} of {len(result.tensors)} tensors" if changed else f"{len(result.tensors)} tensors"
    errors = [t.relative_rmse for t in result.tensors if t.relative_rmse]
    worst = f", largest relative error {max(errors):.2g}" if errors else ""
    size = f"{console.human_bytes(result.from_bytes)} -> {console.human_bytes(result.file_bytes)}"
    console.report(dataclasses.asdict(result), f"{verb} {what} to {result.type}: {size}{worst}", result.output)
