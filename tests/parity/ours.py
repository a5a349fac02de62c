"""Our side of parity tests, through the objects that the commands use: logits, NLL and gradients of packed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.core import PARAM, Buffer, Device, Feed, Plan
from fabric.models import architecture_of
from fabric.models.inference import Decoder, frozen_loras
from fabric.models.recorder import Recorder, Source, Weights
from fabric.weights.adapter import read_adapter
from fabric.weights.gguf import GGUF
from tests.parity.rows import Row

Array = npt.NDArray[np.float32]
Pairs = Mapping[str, tuple[Array, Array]]


@contextmanager
def _weights(path: str | Path, device_options: Mapping[str, Any]) -> Iterator[Weights]:
    device = Device(**{"name": "cpu", "threads": 2, **device_options})
    with GGUF.open(path) as gguf:
        weights = Weights(gguf, device)
        try:
            yield weights
        finally:
            weights.close()
            device.close()


def logits(
    path: str | Path, tokens: Sequence[int], precision: str = "f32", last: int | None = None,
    adapter: Path | None = None, **device_options: Any,
) -> Array:  # fmt: skip
    """(len(tokens), vocabulary), or after the `last` tokens only, through the cache that `generate` uses."""
    n = len(tokens)
    with _weights(path, device_options) as weights:
        loras = frozen_loras(weights, [(read_adapter(adapter), 1.0)] if adapter else [])
        decoder = Decoder(
            weights, cache_rows=n, tokens=n, outputs=last or n, precision=precision, loras=loras, context=n
        )
        try:
            at = np.arange(n, dtype=np.int32)
            index = at[n - last :] if last else at
            return decoder.logits(np.array(tokens, np.int32), at, np.zeros_like(at), at + 1, at, index)
        finally:
            decoder.close()


def greedy(path: str | Path, tokens: Sequence[int], n: int, precision: str = "f32") -> list[int]:
    """The `n` likeliest next tokens, one after the other, from one cache."""
    with _weights(path, {}) as weights:
        size = len(tokens)
        decoder = Decoder(weights, cache_rows=size + n, tokens=size, outputs=1, precision=precision, context=size + n)
        try:
            found, feed, first = [], np.array(tokens, np.int32), 0
            for _ in range(n):
                at = np.arange(first, first + len(feed), dtype=np.int32)
                last = np.array([len(feed) - 1], np.int32)
                found.append(int(decoder.logits(feed, at, np.zeros_like(at), at + 1, at, last).argmax()))
                first, feed = first + len(feed), np.array(found[-1:], np.int32)
            return found
        finally:
            decoder.close()


def packed(rows: Sequence[Row]) -> Feed:
    """Rows one after the other in one feed, each seeing only itself."""
    tokens, positions, lo, index, targets = [], [], [], [], []
    for row in rows:
        start = len(tokens)
        tokens += row.tokens
        positions += range(len(row.tokens))
        lo += [start] * len(row.tokens)
        wanted = [i for i in range(1, len(row.tokens)) if row.train[i]]
        index += [start + i - 1 for i in wanted]
        targets += [row.tokens[i] for i in wanted]
    seen = list(zip(lo, range(1, len(tokens) + 1), strict=True))
    arrays = [np.array(values, np.int32) for values in (tokens, positions, seen, index, targets)]
    return Feed(len(tokens), len(index), arrays)


def gradients(
    path: str | Path,
    pairs: Pairs,
    alpha: float,
    rows: Sequence[Row],
    precision: str = "f32",
    **device_options: Any,
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """NLL of each trained token, and gradients of their sum, of all rows packed into one feed."""
    matrices = {f"{name}.lora_{part}": m for name, (a, b) in pairs.items() for part, m in (("a", a), ("b", b))}
    nll, grads = gradients_of(path, matrices, rows, precision, alpha, **device_options)
    return nll, {name: (grads[f"{name}.lora_a"], grads[f"{name}.lora_b"]) for name in pairs}


def gradients_of(
    path: str | Path,
    matrices: Mapping[str, Array],
    rows: Sequence[Row],
    precision: str = "f32",
    alpha: float = 0.0,
    **device_options: Any,
) -> tuple[Array, dict[str, Array]]:
    """The same of any trained matrices, by the names that they have in a file."""
    feed, longest = packed(rows), max(len(row.tokens) for row in rows)
    n_bytes = sum(m.nbytes for m in matrices.values())
    with _weights(path, device_options) as weights:
        params, grads = Buffer(weights.device, n_bytes), Buffer(weights.device, n_bytes)
        sources, offset = {}, 0
        for name, m in matrices.items():
            sources[name] = Source(PARAM, params, offset, m.size // m.shape[-1], m.shape[-1])
            params.write(np.ascontiguousarray(m), offset)
            offset += m.nbytes
        recorder = Recorder(weights, feed.tokens, feed.trained, precision, sources, alpha=alpha, context=longest)
        arch = architecture_of(weights.gguf)
        nll = recorder.loss(arch.build(recorder, arch.read_config(weights.gguf)))
        recorder.check()
        plan = Plan(recorder.graph, params, grads)
        recorder.graph.close()
        try:
            plan.run(feed)
            found = {
                name: grads.read(sources[name].offset, m.nbytes).reshape(m.shape) for name, m in matrices.items()
            }  # fmt: skip
            return plan.read(nll, feed.trained, 1)[:, 0], found
        finally:
            plan.close()
            grads.close()
            params.close()


def write_rows(path: Path, batches: Sequence[Sequence[Row]]) -> Path:
    """Token records, in order, as `train` reads them."""
    lines = [json.dumps({"tokens": list(row.tokens), "train": list(row.train)}) for rows in batches for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
