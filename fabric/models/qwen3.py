"""Qwen 3, dense: llama with a norm of each query and key head, and RoPE over halves of a head.

Qwen Team 2025, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from fabric.core import HALVES, Tensor
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain as read_config
from fabric.models.llama import mlp
from fabric.models.recorder import Recorder

__all__ = ["Config", "build", "read_config"]


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + attention(norm(x)); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.rms_norm(q, f"{block}.attn_q_norm", c.rms_eps)
    k = r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps)
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
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
