"""Qwen 2 and 2.5, dense: llama with biases on queries, keys and values, and RoPE over halves of a head.

Qwen Team 2024, https://arxiv.org/abs/2407.10671.
"""

from __future__ import annotations

from fabric.core import HALVES, Tensor
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain as read_config
from fabric.models.llama import mlp
from fabric.models.recorder import NOTHING, Recorder

__all__ = ["Config", "build", "read_config"]


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + attention(norm(x)); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    return r.linear(o, f"{block}.attn_output", residual=x)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope)
        x = mlp(r, c, f"blk.{i}", x, scaled=NOTHING)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
