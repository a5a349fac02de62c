"""Qwen 3.5, dense: most layers are delta nets, whose heads read and write a state that fades; every few layers attend,
with queries beside which a gate of their result is computed, and turn a part of each head.

Qwen Team 2026, https://huggingface.co/Qwen; Yang et al. 2024, https://arxiv.org/abs/2412.06464. In files the heads of
values go around the heads of keys: value head h reads key head h % key_heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fabric.core import HALVES, SIGMOID, SILU, Tensor
from fabric.models.config import DecoderConfig, Shapes, check_attention_scale, check_shapes, read_decoder
from fabric.models.keys import Keys
from fabric.models.llama import mlp
from fabric.models.recorder import Recorder
from fabric.weights.gguf import GGUF

MODULES = {
    "attn": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "delta": ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha", "ssm_out"),
    "ffn": ("ffn_gate", "ffn_up", "ffn_down"),
}
L2_EPS = 1e-6  # of the length of queries and keys


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Every `period`-th layer attends. The others have `heads` of `value_dim` values over `key_heads` of `key_dim`."""

    period: int
    heads: int
    key_heads: int
    key_dim: int
    value_dim: int

    def attends(self, layer: int) -> bool:
        """Whether it is no delta net."""
        return (layer + 1) % self.period == 0


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Qwen 3.5 does not have."""
    with Keys(gguf) as keys:
        keys.layered = True
        c = read_decoder(gguf, keys)
        check_attention_scale(keys, c.head_dim**-0.5)
        sections = keys.get("rope.dimension_sections")  # of text all are turned by the same position
        if sections is not None and (not isinstance(sections, list) or sum(sections) != c.inv_freq.size):
            raise keys.wrong("rope.dimension_sections", f"{c.inv_freq.size} in sum")
        heads, key_heads = keys.size("ssm.time_step_rank"), keys.size("ssm.group_count")
        inner, key_dim = keys.size("ssm.inner_size"), keys.size("ssm.state_size", most=256)
        if heads % key_heads or inner % heads:
            raise keys.error(
                "ssm.time_step_rank", f"is {heads}, which does not fit {key_heads} key heads and {inner} values"
            )
        keys.uniform("feed_forward_length", c.n_layers)
        keys.uniform("attention.head_count_kv", c.n_layers, c.n_head)
        config = Config(
            **vars(c), period=keys.size("full_attention_interval", 4), heads=heads, key_heads=key_heads,
            key_dim=key_dim, value_dim=inner // heads,
        )  # fmt: skip
        check_shapes(gguf, config, own=lambda _: _shapes(config, keys.size("ssm.conv_kernel", most=8)))
        return config


def _shapes(c: Config, taps: int) -> Shapes:
    inner, columns = c.heads * c.value_dim, 2 * c.key_heads * c.key_dim + c.heads * c.value_dim
    by_heads, by_inner = "qwen35.ssm.time_step_rank", "qwen35.ssm.inner_size"
    return {
        "attn_q.weight": ((2 * c.n_head * c.head_dim, c.width), "qwen35.attention.head_count"),
        "attn_qkv.weight": ((columns, c.width), by_inner),
        "attn_gate.weight": ((inner, c.width), by_inner),
        "ssm_conv1d.weight": ((columns, taps), "qwen35.ssm.conv_kernel"),
        "ssm_beta.weight": ((c.heads, c.width), by_heads),
        "ssm_alpha.weight": ((c.heads, c.width), by_heads),
        "ssm_a": ((c.heads,), by_heads),
        "ssm_dt.bias": ((c.heads,), by_heads),
        "ssm_norm.weight": ((c.value_dim,), by_inner),
        "ssm_out.weight": ((c.width, inner), by_inner),
    }


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + out(attention * sigmoid(gate)) of norm(x); x (T, width). One matrix has the query and the gate of a head."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    gate = r.graph.part(q, 2 * c.head_dim, c.head_dim, c.head_dim)
    q = r.rms_norm(r.graph.part(q, 2 * c.head_dim, 0, c.head_dim), f"{block}.attn_q_norm", c.rms_eps)
    k = r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    return r.linear(r.graph.glu(gate, o, SIGMOID), f"{block}.attn_output", residual=x)


def delta_net(r: Recorder, c: Config, block: str, x: Tensor, lengths: tuple[Tensor, Tensor]) -> Tensor:
    """x + out(norm(delta rule) * silu(gate)) of norm(x). Queries, keys and values are rows of one matrix, convolved;
    `lengths`: the weights of norms that make queries 1 / sqrt(key_dim) long and keys 1."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    key, value = c.key_heads * c.key_dim, c.heads * c.value_dim
    parts = range(key), range(key, 2 * key), range(2 * key, 2 * key + value)
    mixed = [r.conv(r.linear(h, f"{block}.attn_qkv", rows=rows), f"{block}.ssm_conv1d", rows) for rows in parts]
    q, k, v = (r.graph.glu(one, one, SIGMOID) for one in mixed)
    q, k = (r.graph.rms_norm(one, length, L2_EPS / c.key_dim) for one, length in zip((q, k), lengths, strict=True))
    b = r.linear(h, f"{block}.ssm_beta")
    a = r.linear(h, f"{block}.ssm_alpha", bias=f"{block}.ssm_dt.bias")
    gates = r.graph.delta_gates(b, a, r.fixed(f"{block}.ssm_a"), r.seen)
    o = r.delta(q, k, v, gates, c.key_heads, value * c.key_dim)
    o = r.rms_norm(o, f"{block}.ssm_norm", c.rms_eps)
    o = r.graph.glu(r.linear(h, f"{block}.attn_gate"), o, SILU)
    return r.linear(o, f"{block}.ssm_out", residual=x)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude)
    lengths = r.constant(np.full(c.key_dim, 1 / c.key_dim)), r.constant(np.full(c.key_dim, c.key_dim**-0.5))
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope) if c.attends(i) else delta_net(r, c, f"blk.{i}", x, lengths)
        x = mlp(r, c, f"blk.{i}", x, norm="post_attention_norm")
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
