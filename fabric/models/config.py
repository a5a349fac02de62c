"""What every decoder's metadata says, read from a GGUF with its defaults and checked against the tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError
from fabric.models.shapes import check_shapes
from fabric.weights.gguf import GGUF, decode_tensor


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes in elements; `inv_freq` (n_rot / 2,) in radians a position."""

    n_layers: int
    width: int
    n_head: int
    n_kv_head: int
    head_dim: int
    rms_eps: float
    inv_freq: npt.NDArray[np.float32]
    vocab_size: int
    context_length: int


def positive(gguf: GGUF, key: str, default: int | None = None) -> int:
    """A whole number of at least 1 under `ARCHITECTURE.key`; DataError where it is missing or something else."""
    key = f"{gguf.architecture}.{key}"
    value = gguf.metadata.get(key, default)
    if not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise DataError(f"{gguf.path}: metadata {key} is {'missing' if value is None else 'no size that a model has'}")
    return value


def inverse_frequencies(gguf: GGUF, key: str, n_rot: int) -> npt.NDArray[np.float32]:
    """(n_rot / 2,) of the RoPE base under `ARCHITECTURE.key`, 10,000 where there is none."""
    key = f"{gguf.architecture}.{key}"
    base = gguf.metadata.get(key, 10000.0)
    if not isinstance(base, float) or not 1 <= base < np.inf:
        raise DataError(f"{gguf.path}: metadata {key} is no number that RoPE can stand on")
    return (1.0 / base ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)).astype(np.float32)


def rope_frequencies(gguf: GGUF, n_rot: int) -> npt.NDArray[np.float32]:
    """Inverse frequencies, divided by `rope_freqs.weight` (Llama-3) or the factor of linear scaling where there is one.

    Raises DataError for a scaling that is neither.
    """
    arch, inv_freq = gguf.architecture, inverse_frequencies(gguf, "rope.freq_base", n_rot)
    if "rope_freqs.weight" in gguf.tensors:
        factors = decode_tensor(gguf, "rope_freqs.weight").reshape(-1)
        if factors.size != inv_freq.size:
            raise DataError(f"{gguf.path}: rope_freqs.weight has {factors.size} factors where {inv_freq.size} belong")
        return np.asarray(inv_freq / factors, np.float32)
    kind = str(gguf.metadata.get(f"{arch}.rope.scaling.type", "none"))
    if kind == "linear":
        factor = gguf.metadata.get(f"{arch}.rope.scaling.factor")
        if not isinstance(factor, float) or not 0 < factor < np.inf:
            raise DataError(f"{gguf.path}: metadata {arch}.rope.scaling.factor is missing or no positive number")
        return np.asarray(inv_freq / np.float32(factor), np.float32)
    if kind != "none":
        raise DataError(f"{gguf.path}: RoPE scaling '{kind}' is not supported")
    return inv_freq


MOST_HEAD_DIM = 1 << 16  # far beyond any; tables are made of it before a tensor is looked at


def read_decoder(gguf: GGUF) -> DecoderConfig:
    """The configuration of a llama-like decoder; DataError where keys are missing or do not fit together."""
    arch = gguf.architecture

    def number(key: str, default: int | None = None) -> int:
        return positive(gguf, key, default)

    width, n_head = number("embedding_length"), number("attention.head_count")
    n_kv_head = number("attention.head_count_kv", n_head)
    head_dim = number("attention.key_length", width // n_head if width % n_head == 0 else None)
    eps = gguf.metadata.get(f"{arch}.attention.layer_norm_rms_epsilon")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise DataError(f"{gguf.path}: metadata {arch}.attention.layer_norm_rms_epsilon is missing or no small number")
    if n_head % n_kv_head:
        raise DataError(f"{gguf.path}: {n_head} heads cannot share {n_kv_head} key heads")
    if number("attention.value_length", head_dim) != head_dim:
        raise DataError(f"{gguf.path}: keys and values of different head sizes are not supported")
    n_rot = number("rope.dimension_count", head_dim)
    if head_dim > MOST_HEAD_DIM:
        raise DataError(f"{gguf.path}: heads of {head_dim} dimensions make no sense")
    if n_rot % 2 or n_rot > head_dim:
        raise DataError(f"{gguf.path}: RoPE over {n_rot} of {head_dim} dimensions makes no sense")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DataError(f"{gguf.path}: tensor token_embd.weight is missing")
    n_tokens = len(gguf.get("tokenizer.ggml.tokens", list, []))
    if n_tokens > embedding.shape[0]:
        raise DataError(f"{gguf.path}: {n_tokens} tokens but only {embedding.shape[0]} rows of token_embd.weight")
    config = DecoderConfig(
        n_layers=number("block_count"), width=width, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim,
        rms_eps=eps, inv_freq=rope_frequencies(gguf, n_rot), vocab_size=embedding.shape[0],
        context_length=number("context_length", 2048),
    )  # fmt: skip
    check_shapes(gguf, config)
    return config
