"""merge --average: several adapters become one, the weighted mean of their matrices."""

from __future__ import annotations

import contextlib

import numpy as np

from fabric.core.blocks import Floats
from fabric.errors import DataError, UsageError
from fabric.files import check_streams, open_output
from fabric.weights.adapter import Adapter, LoraPair, adapter_of, carried_chat, write_adapter
from fabric.weights.gguf import GGUF
from fabric.weights.history import join_histories, step
from fabric.weights.settings import MergeSettings, TensorReport, WriteResult


def average(settings: MergeSettings) -> WriteResult:
    """Write the mean of adapters, A and B each by itself, weighted by their scales over the sum of these.

    That is what federated averaging does with adapters that were trained on from a common one. It is not the mean of
    the products B A. Raises DataError where adapters differ in base, tensors, ranks or alpha, and UsageError for fewer
    than two of them, a model, or a scale that is not positive.
    """
    if settings.model is not None:
        raise UsageError("--average makes an adapter of adapters, so it takes no --model: leave one out")
    if settings.type != MergeSettings.type:
        raise UsageError(f"--average writes an adapter in f32, so it takes no --type {settings.type}: leave one out")
    if len(settings.adapters) < 2:
        raise UsageError("--average needs at least two adapters: -a A.gguf -a B.gguf, each with =WEIGHT if they differ")
    for given in settings.adapters:
        if not given.scale > 0:
            raise UsageError(f"{given.path}: with --average, what follows `=` is a weight above 0")
    check_streams([given.path for given in settings.adapters], [settings.output])
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open_output(settings.output))
        files = [stack.enter_context(GGUF.open(given.path)) for given in settings.adapters]
        adapters = [adapter_of(file) for file in files]
        notes: list[str] = []
        for adapter, file in zip(adapters[1:], files[1:], strict=True):
            _check_same(adapters[0], files[0].name, adapter, file.name, notes)
        total = sum(given.scale for given in settings.adapters)
        weights = [given.scale / total for given in settings.adapters]
        pairs = {
            name: LoraPair(
                _mean([adapter.pairs[name].a for adapter in adapters], weights),
                _mean([adapter.pairs[name].b for adapter in adapters], weights),
            )
            for name in adapters[0].pairs
        }
        hashes = [file.sha256() for file in files]
        made = step("merge", {"average": [given.scale for given in settings.adapters]}, {"adapters": hashes})
        first = adapters[0]
        mean = Adapter(
            first.architecture, first.alpha, pairs, first.name, first.base_sha256,
            [*join_histories(*(adapter.history for adapter in adapters)), made],
            carried_chat([file.name for file in files], adapters, "the averaged adapter")[1],
        )  # fmt: skip
        file_bytes = write_adapter(out, mean)
    tensors = [
        _report(name + end, matrix) for name, p in pairs.items() for end, matrix in ((".lora_a", p.a), (".lora_b", p.b))
    ]
    read, written = sum(t.from_bytes for t in tensors) * len(adapters), sum(t.to_bytes for t in tensors)
    return WriteResult(settings.output, "f32", tensors, read, written, file_bytes, notes)


def _check_same(first: Adapter, first_name: str, other: Adapter, name: str, notes: list[str]) -> None:
    def differ(what: str) -> DataError:
        return DataError(f"{name} and {first_name} cannot be averaged: they differ in {what}")

    if other.architecture != first.architecture:
        raise differ(f"their models, {other.architecture} and {first.architecture}")
    if set(other.pairs) != set(first.pairs):
        raise differ(f"what they change, such as {sorted(set(other.pairs) ^ set(first.pairs))[0]}")
    for tensor, pair in first.pairs.items():
        theirs = other.pairs[tensor]
        if (pair.a.shape, pair.b.shape) != (theirs.a.shape, theirs.b.shape):
            raise differ(f"the rank or size of {tensor}")
    if other.alpha != first.alpha:
        raise differ(f"alpha, {other.alpha:g} and {first.alpha:g}")
    if None not in (other.base_sha256, first.base_sha256) and other.base_sha256 != first.base_sha256:
        notes.append(
            f"{name} and {first_name} were trained on different files: the mean helps only where both hold one model"
        )


def _mean(matrices: list[Floats], weights: list[float]) -> Floats:
    total = np.zeros(matrices[0].shape)
    for matrix, weight in zip(matrices, weights, strict=True):
        total += weight * matrix
    return total.astype(np.float32)


def _report(name: str, matrix: Floats) -> TensorReport:
    return TensorReport(name, matrix.shape, "f32", "f32", matrix.nbytes, matrix.nbytes, changed=True)
