"""Llama and what shares its shape: SmolLM2, TinyLlama, Llama 2 and 3, Mistral.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; grouped heads as in Llama 2.
"""

from __future__ import annotations

from fabric.core import PAIRS, SILU, Tensor
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain as read_config
from fabric.models.recorder import SUM, Recorder

__all__ = ["Config", "build", "read_config"]


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor | None) -> Tensor:
    """x + attention(norm(x)); x (T, width). `rope`: None in a layer that knows no positions."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    if rope is not None:
        q = r.graph.rope(q, rope, c.head_dim, PAIRS)
        k = r.graph.rope(k, rope, c.head_dim, PAIRS)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    return r.linear(o, f"{block}.attn_output", residual=x)


def mlp(r: Recorder, c: Config, block: str, x: Tensor, scaled: str = SUM, norm: str = "ffn_norm") -> Tensor:
    """x + down(silu(gate) * up) of norm(x). `scaled`: by the scales of its matrices, as llama.cpp has it."""
    h = r.rms_norm(x, f"{block}.{norm}", c.rms_eps)
    gate, up = r.linear(h, f"{block}.ffn_gate", scaled=scaled), r.linear(h, f"{block}.ffn_up", scaled=scaled)
    return r.linear(r.graph.glu(gate, up, SILU), f"{block}.ffn_down", residual=x, scaled=scaled)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude, "rope_freqs.weight")
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
