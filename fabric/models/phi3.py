"""Phi 3 mini to Phi 4 mini: llama whose queries, keys and values are rows of one matrix, gate and up of another. RoPE
turns a part of each head, with LongRoPE's frequencies in models of long contexts.

Microsoft 2024, https://arxiv.org/abs/2404.14219; Phi-4-mini: https://arxiv.org/abs/2503.01743.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import HALVES, SILU, Tensor
from fabric.errors import DataError
from fabric.models.config import LONG, SHORT, DecoderConfig, check_attention_scale, read_decoder
from fabric.models.keys import Keys
from fabric.models.recorder import NOTHING, Recorder
from fabric.weights.gguf import GGUF

MODULES = {"attn": ("attn_qkv", "attn_output"), "ffn": ("ffn_up", "ffn_down")}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Every layer sees `window` tokens, 0: all. Contexts longer than `original` have the long factors of LongRoPE."""

    ffn: int
    window: int
    original: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Phi 3 does not have."""
    with Keys(gguf) as keys:
        keys.windows = keys.longrope = True
        window = keys.size("attention.sliding_window", 0, least=0)
        decoder = read_decoder(gguf, keys, fused=True)
        check_attention_scale(keys, decoder.head_dim**-0.5)
        if (LONG in gguf.tensors) != (SHORT in gguf.tensors):
            raise DataError(f"{gguf.name}: {LONG} and {SHORT} belong together, and the file has one of them")
        return Config(
            **vars(decoder),
            ffn=keys.uniform("feed_forward_length", decoder.n_layers),
            window=window,
            original=keys.size("rope.scaling.original_context_length", decoder.context_length),
        )


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + attention(norm(x)); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    n_q, n_kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    parts = range(n_q), range(n_q, n_q + n_kv), range(n_q + n_kv, n_q + 2 * n_kv)
    q, k, v = (r.linear(h, f"{block}.attn_qkv", rows=rows) for rows in parts)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(
        q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5, window=c.window
    )  # fmt: skip
    return r.linear(o, f"{block}.attn_output", residual=x)


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + down(silu(gate) * up) of norm(x); llama.cpp applies no scales of these matrices."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gate = r.linear(h, f"{block}.ffn_up", scaled=NOTHING, rows=range(c.ffn))
    up = r.linear(h, f"{block}.ffn_up", scaled=NOTHING, rows=range(c.ffn, 2 * c.ffn))
    return r.linear(r.graph.glu(gate, up, SILU), f"{block}.ffn_down", residual=x, scaled=NOTHING)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.longrope_table(c.inv_freq, c.magnitude, c.original)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
