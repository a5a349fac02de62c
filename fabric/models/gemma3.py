"""Gemma 3, the text side: most layers see a window of recent tokens, every sixth sees all, and each kind has a RoPE
base of its own. Queries and keys are normed head by head, and both halves of a block before and after.

Gemma Team 2025, https://arxiv.org/abs/2503.19786. GGUF files hold norms with their +1 already in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core import GELU_TANH, HALVES, Tensor
from fabric.models.config import DecoderConfig, check_attention_scale, inverse_frequencies, read_decoder
from fabric.models.keys import Keys
from fabric.models.recorder import NOTHING, Recorder
from fabric.weights.gguf import GGUF

GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
LAYERS_OF_27B = 62  # the one size whose queries are scaled by the width a head would have, not the one it has


@dataclass(frozen=True)
class Config(DecoderConfig):
    """`inv_freq` is that of the layers that see all: every `period`-th. The others see `window` tokens."""

    local_inv_freq: npt.NDArray[np.float32]
    window: int
    period: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Gemma 3 does not have."""
    with Keys(gguf) as keys:
        keys.windows = True
        decoder = read_decoder(gguf, keys, GELU)
        check_attention_scale(keys, attention_scale(decoder))
        for key in ("attention.key_length_swa", "attention.value_length_swa"):
            keys.only(key, decoder.head_dim)
        keys.only("rope.dimension_count_swa", 2 * decoder.inv_freq.size)
        return Config(
            **vars(decoder),
            local_inv_freq=inverse_frequencies(keys, "rope.freq_base_swa", 2 * decoder.inv_freq.size),
            window=keys.size("attention.sliding_window"),
            period=read_period(keys, decoder.n_layers, 6),
        )


def read_period(keys: Keys, n_layers: int, default: int) -> int:
    """Every n-th layer sees all: n, or for each layer whether it has a window, where that is a period."""
    key = "attention.sliding_window_pattern"
    told = keys.get(key)
    if not isinstance(told, list):
        return keys.size(key, default)
    full = [i + 1 for i, windowed in enumerate(told) if not windowed]
    period = full[0] if full else n_layers + 1
    if len(told) != n_layers or full != list(range(period, n_layers + 1, period)):
        raise keys.wrong(key, f"every n-th of {n_layers} layers to see all")
    return period


def attention_scale(c: DecoderConfig) -> float:
    """What scores of attention are multiplied by."""
    return float((c.width // c.n_head if c.n_layers == LAYERS_OF_27B else c.head_dim) ** -0.5)


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor, window: int) -> Tensor:
    """x + norm(attention(norm(x))); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.rms_norm(q, f"{block}.attn_q_norm", c.rms_eps)
    k = r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(
        q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=attention_scale(c), window=window
    )  # fmt: skip
    h = r.rms_norm(r.linear(o, f"{block}.attn_output"), f"{block}.post_attention_norm", c.rms_eps)
    return r.graph.add(x, h)


def mlp(r: Recorder, c: DecoderConfig, block: str, x: Tensor) -> Tensor:
    """x + norm(down(gelu(gate) * up)) of norm(x); llama.cpp applies no scales of these matrices."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gate, up = r.linear(h, f"{block}.ffn_gate", scaled=NOTHING), r.linear(h, f"{block}.ffn_up", scaled=NOTHING)
    h = r.linear(r.graph.glu(gate, up, GELU_TANH), f"{block}.ffn_down", scaled=NOTHING)
    h = r.rms_norm(h, f"{block}.post_ffw_norm", c.rms_eps)
    return r.graph.add(x, h)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed(scale=c.width**0.5)
    local, full = r.rope_table(c.local_inv_freq, c.magnitude), r.rope_table(c.inv_freq, c.magnitude)
    for i in range(c.n_layers):
        r.graph.mark()
        sees_all = (i + 1) % c.period == 0
        x = attention(r, c, f"blk.{i}", x, full if sees_all else local, 0 if sees_all else c.window)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
