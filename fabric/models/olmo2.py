"""OLMo 2: each half of a block is normed after it, not before, and queries and keys as whole rows.

OLMo Team 2024, https://arxiv.org/abs/2501.00656. Files of OLMo 3, some of whose layers have a window, are refused.
"""

from __future__ import annotations

from fabric.core import HALVES, SILU, Tensor
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain
from fabric.models.recorder import NOTHING, Recorder
from fabric.weights.gguf import GGUF


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what OLMo 2 does not have."""
    return read_plain(gguf, row_norms=True)


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + norm(attention(x)); x (T, width)."""
    q, k, v = r.qkv(x, block)
    q = r.rms_norm(q, f"{block}.attn_q_norm", c.rms_eps)
    k = r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    h = r.rms_norm(r.linear(o, f"{block}.attn_output"), f"{block}.post_attention_norm", c.rms_eps)
    return r.graph.add(x, h)


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + norm(down(silu(gate) * up)) of x; llama.cpp applies no scales of these matrices."""
    gate, up = r.linear(x, f"{block}.ffn_gate", scaled=NOTHING), r.linear(x, f"{block}.ffn_up", scaled=NOTHING)
    h = r.linear(r.graph.glu(gate, up, SILU), f"{block}.ffn_down", scaled=NOTHING)
    return r.graph.add(x, r.rms_norm(h, f"{block}.post_ffw_norm", c.rms_eps))


def build(r: Recorder, c: Config, factors: str = "") -> Tensor:
    """Normed hidden states (T, width). `factors`: a tensor that divides RoPE's frequencies, if there is one."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude, factors)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
