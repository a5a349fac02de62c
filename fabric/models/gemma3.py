"""Gemma 3, the text side: most layers see a window of recent tokens, every sixth sees all, and each kind has a RoPE
base of its own. Queries and keys are normed head by head, and both halves of a block before and after.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. GGUF files hold norms with their +1 already in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core import GELU_TANH, HALVES, Tensor
from fabric.errors import DataError
from fabric.models.config import DecoderConfig, inverse_frequencies, positive, read_decoder
from fabric.models.recorder import Recorder
from fabric.weights.gguf import GGUF

LAYERS_OF_27B = 62  # the one size whose queries are scaled by the width a head would have, not the one it has


@dataclass(frozen=True)
class Config(DecoderConfig):
    """`inv_freq` is that of the layers that see all: every `period`-th. The others see `window` tokens."""

    local_inv_freq: npt.NDArray[np.float32]
    window: int
    period: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Gemma 3 does not have."""
    decoder = read_decoder(gguf)
    if gguf.metadata.get("gemma3.final_logit_softcapping"):
        raise DataError(f"{gguf.path}: a soft-cap on the logits of a gemma3 model is not supported")
    return Config(
        **vars(decoder),
        local_inv_freq=inverse_frequencies(gguf, "rope.freq_base_swa", 2 * decoder.inv_freq.size),
        window=positive(gguf, "attention.sliding_window"),
        period=positive(gguf, "attention.sliding_window_pattern", 6),
    )


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor, window: int) -> Tensor:
    """x + norm(attention(norm(x))); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.rms_norm(q, f"{block}.attn_q_norm", c.rms_eps)
    k = r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    scale = (c.width // c.n_head if c.n_layers == LAYERS_OF_27B else c.head_dim) ** -0.5
    o = r.attention(
        q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=scale, window=window
    )  # fmt: skip
    h = r.rms_norm(r.linear(o, f"{block}.attn_output"), f"{block}.post_attention_norm", c.rms_eps)
    return r.graph.add(x, h)


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + norm(down(gelu(gate) * up)) of norm(x)."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gated = r.graph.glu(r.linear(h, f"{block}.ffn_gate"), r.linear(h, f"{block}.ffn_up"), GELU_TANH)
    h = r.rms_norm(r.linear(gated, f"{block}.ffn_down"), f"{block}.post_ffw_norm", c.rms_eps)
    return r.graph.add(x, h)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed(scale=c.width**0.5)
    local, full = r.rope_table(c.local_inv_freq), r.rope_table(c.inv_freq)
    for i in range(c.n_layers):
        r.graph.mark()
        sees_all = (i + 1) % c.period == 0
        x = attention(r, c, f"blk.{i}", x, full if sees_all else local, 0 if sees_all else c.window)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
