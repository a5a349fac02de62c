"""BitNet b1.58: llama with norms inside both halves of a block, squared ReLU, and matrices of -1, 0 and 1, whose scales
are in their blocks or beside them. Activations are not rounded to 8 bits.

Ma et al. 2025, https://arxiv.org/abs/2504.12285.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import HALVES, RELU2, SILU, Tensor
from fabric.models.config import DecoderConfig, check_attention_scale, read_decoder
from fabric.models.keys import Keys
from fabric.models.recorder import SUM, Recorder
from fabric.weights.gguf import GGUF

ACTIVATIONS = {"relu2": RELU2, "silu": SILU, "swish": SILU}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """`activation` of the gate."""

    activation: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what BitNet does not have."""
    with Keys(gguf) as keys:
        decoder = read_decoder(gguf, keys, tuple(ACTIVATIONS))
        check_attention_scale(keys, decoder.head_dim**-0.5)
        return Config(**vars(decoder), activation=ACTIVATIONS[keys.text("hidden_activation", "silu")])


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + output(norm(attention(norm(x)))); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.head_dim**-0.5)
    return r.linear(r.rms_norm(o, f"{block}.attn_sub_norm", c.rms_eps), f"{block}.attn_output", residual=x)


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + down(norm(act(gate) * up)) of norm(x)."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gate, up = r.linear(h, f"{block}.ffn_gate", scaled=SUM), r.linear(h, f"{block}.ffn_up", scaled=SUM)
    h = r.rms_norm(r.graph.glu(gate, up, c.activation), f"{block}.ffn_sub_norm", c.rms_eps)
    return r.linear(h, f"{block}.ffn_down", residual=x)


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
