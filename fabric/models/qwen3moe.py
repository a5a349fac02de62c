"""Qwen 3, mixtures of experts: qwen3's attention, and in every layer experts of which each token has a few.

Qwen Team 2025, https://arxiv.org/abs/2505.09388; the weights of a token's experts sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import SILU, Tensor
from fabric.models.config import DecoderConfig, check_attention_scale, read_decoder, read_experts
from fabric.models.keys import Keys
from fabric.models.qwen3 import attention
from fabric.models.recorder import Recorder
from fabric.weights.gguf import GGUF

MODULES = {
    "attn": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "ffn": ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    "router": ("ffn_gate_inp",),
}
USUAL = ("attn",)


@dataclass(frozen=True)
class Config(DecoderConfig):
    """`used`: experts of a token."""

    used: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Qwen 3 does not have."""
    with Keys(gguf) as keys:
        decoder = read_decoder(gguf, keys, experts=True)
        check_attention_scale(keys, decoder.head_dim**-0.5)
        return Config(**vars(decoder), used=read_experts(gguf, keys, decoder))


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + the weighted sum of down(silu(gate) * up) of norm(x), of the experts that the router chose."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    routing = r.route(h, f"{block}.ffn_gate_inp", c.used)
    gate, up = r.experts(h, f"{block}.ffn_gate_exps", routing), r.experts(h, f"{block}.ffn_up_exps", routing)
    return r.graph.combine(r.experts(r.graph.glu(gate, up, SILU), f"{block}.ffn_down_exps", routing), routing, x)


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
