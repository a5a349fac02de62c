"""Small graphs from arrays: every test of the core builds on these few lines."""

from __future__ import annotations

import numpy as np

from fabric.core import F32, FROZEN, I32, PARAM, TOKENS, TRAINED, Buffer, Device, Feed, Graph, Plan

VOCAB = 13
PART = 1024  # elements: the flat space may be parted at multiples


class Lab:
    """A graph of `tokens` rows whose every trained matrix lies in one flat buffer, as in a real run."""

    def __init__(self, device: Device, tokens: int = 7, precision: int = F32, seed: int = 0) -> None:
        self.device, self.tokens = device, tokens
        self.random = np.random.default_rng(seed)
        self.graph = Graph(device, tokens, tokens, precision)
        self.index = self.graph.input(I32, TRAINED)
        self.targets = self.graph.input(I32, TRAINED)
        self.extra: list[np.ndarray] = []
        seams = np.arange(PART * 4, 1 << 17, PART * 4, dtype=np.uint64)
        self.params = Buffer(device, 1 << 17, seams=lambda _: seams)
        self.grads = Buffer(device, 1 << 17, seams=lambda _: seams)
        self.values = np.zeros(1 << 15, np.float32)
        self.used = 0
        self.keep: list[Buffer] = []

    def param(self, rows: int, cols: int, scale: float = 1.0) -> int:
        """A trained matrix of random values."""
        part = PART if rows * cols <= PART else 2 * PART  # no matrix lies across two
        if self.used % part + rows * cols > part:
            self.used += part - self.used % part
        first = self.used
        self.used += (rows * cols + 15) // 16 * 16
        self.values[first : first + rows * cols] = self.random.standard_normal(rows * cols) * scale
        return self.graph.leaf(PARAM, self.params, first * 4, F32, rows, cols)

    def frozen(self, array: np.ndarray, dtype: int = F32, cols: int | None = None) -> int:
        """A frozen matrix; for block formats `array` holds bytes and `cols` the elements of a row."""
        data = np.ascontiguousarray(array, np.float32 if dtype == F32 else array.dtype)
        seams = np.arange(1, len(data), dtype=np.uint64) * np.uint64(data.nbytes // len(data))
        buffer = Buffer(self.device, wrap=data, seams=lambda _: seams)
        self.keep.append(buffer)
        return self.graph.leaf(FROZEN, buffer, 0, dtype, array.shape[0], cols or array.shape[1])

    def ints(self, values: np.ndarray) -> int:
        """An input, a column or a matrix, the same in every run."""
        self.extra.append(np.asarray(values, np.int32))
        return self.graph.input(I32, TOKENS, 1 if values.ndim == 1 else values.shape[1])

    def loss(self, y: int, cols: int, softcap: float = 0.0) -> int:
        """Cross-entropy of y through a random frozen head."""
        head = self.random.standard_normal((VOCAB, cols)).astype(np.float32) / np.sqrt(cols)
        return self.graph.loss(y, self.frozen(head), self.index, self.targets, softcap=softcap)

    def feed(self) -> Feed:
        """Every position trained."""
        positions = np.arange(self.tokens, dtype=np.int32)
        return Feed(self.tokens, self.tokens, (positions, (positions * 5 + 3) % VOCAB, *self.extra))

    def plan(self, **options: int | bool) -> Plan:
        """A training plan."""
        return Plan(self.graph, self.params, self.grads, **options)


def check_gradients(lab: Lab, nll: int, tolerance: float = 4e-3, eps: float = 1e-2) -> None:
    """Backward against central differences of the loss along random directions."""
    plan, feed = lab.plan(logits_bytes=4 * VOCAB * 3), lab.feed()

    def loss_at(values: np.ndarray) -> float:
        lab.params.write(values)
        plan.run(feed)
        return float(plan.read(nll, lab.tokens, 1).sum(dtype=np.float64))

    lab.grads.write(np.zeros_like(lab.values))
    loss_at(lab.values)
    grads = lab.grads.read()[: lab.used].astype(np.float64)
    assert np.abs(grads).max() > 1e-3, "no gradient reached the parameters"
    for _ in range(6):
        direction = np.zeros_like(lab.values)
        direction[: lab.used] = lab.random.standard_normal(lab.used) / np.sqrt(lab.used)
        difference = (loss_at(lab.values + eps * direction) - loss_at(lab.values - eps * direction)) / (2 * eps)
        told = float(grads @ direction[: lab.used])
        assert abs(told - difference) < tolerance * max(1.0, np.abs(grads).max()), (told, difference)
