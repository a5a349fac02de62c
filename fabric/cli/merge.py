"""`fabric merge`: a base model and adapters in, one stock GGUF model out; or adapters in, their mean out."""

from __future__ import annotations

import dataclasses
from collections import Counter

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Errors
from fabric.weights.settings import MergeSettings, WriteResult


def command(settings: MergeSettings, errors: Errors = False) -> None:
    """Folds LoRA adapters into their base model and streams the result.

    `merge | quantize` quantizes once, because merge writes BF16 unless another type is given. With --average it writes
    one adapter, the weighted mean of several that were trained on from a common one, as in federated averaging.
    """
    from fabric.weights.merge import merge

    if settings.average and errors:
        raise UsageError("--errors reports what encoding loses, and --average encodes nothing: leave one out")
    with console.bar("merge", "B") as progress:
        result = merge(settings, progress)
    tell("averaged" if settings.average else "merged", result, errors)


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
