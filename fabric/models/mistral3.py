"""Ministral 3: llama with YaRN whose bounds the file says, and queries that are multiplied by a temperature, which
grows where positions pass a multiple of the original context.

Mistral AI 2025, https://mistral.ai/news/mistral-3; the temperature is that of Llama 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fabric.core import PAIRS, Tensor
from fabric.models.config import DecoderConfig, check_attention_scale, read_decoder
from fabric.models.keys import Keys
from fabric.models.llama import mlp
from fabric.models.recorder import NOTHING, Recorder
from fabric.weights.gguf import GGUF


@dataclass(frozen=True)
class Config(DecoderConfig):
    """The query at position p is multiplied by 1 + temperature * log(1 + floor(p / original))."""

    temperature: float
    original: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Ministral 3 does not have."""
    with Keys(gguf) as keys:
        keys.own_yarn = True
        decoder = read_decoder(gguf, keys)
        check_attention_scale(keys, decoder.head_dim**-0.5)
        if 2 * decoder.inv_freq.size != decoder.head_dim:
            raise keys.error("rope.dimension_count", f"is not the {decoder.head_dim} dimensions of a head")
        return Config(
            **vars(decoder),
            temperature=keys.number("attention.temperature_scale", 0.0, above=-1.0),
            original=keys.size("rope.scaling.original_context_length", decoder.context_length),
        )


def query_table(r: Recorder, c: Config, rope: Tensor) -> Tensor:
    """RoPE's table for queries, times their temperature: `rope` where no position of a row has another than 1."""
    if r.context <= c.original or not c.temperature:
        return rope
    positions = np.arange(r.context, dtype=np.float64)
    angles = positions[:, None] * c.inv_freq
    turned = np.stack((np.cos(angles), np.sin(angles)), axis=-1).reshape(r.context, c.head_dim)
    heat = 1 + c.temperature * np.log(1 + positions // c.original)
    return r.graph.embed(r.constant(turned * (c.magnitude * heat[:, None])), r.positions, 1.0)


def attention(r: Recorder, c: Config, block: str, x: Tensor, q_rope: Tensor, k_rope: Tensor) -> Tensor:
    """x + attention(norm(x)); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.graph.rope(q, q_rope, c.head_dim, PAIRS)
    k = r.graph.rope(k, k_rope, c.head_dim, PAIRS)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    return r.linear(o, f"{block}.attn_output", residual=x)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude)
    q_rope = query_table(r, c, rope)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, q_rope, rope)
        x = mlp(r, c, f"blk.{i}", x, scaled=NOTHING)  # llama.cpp applies no scales of these matrices
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
