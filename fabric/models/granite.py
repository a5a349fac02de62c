"""Granite 3: llama with four constants, for the embedding, what each half of a block adds, the scores of attention and
the logits.

IBM 2024, https://github.com/ibm-granite/granite-3.0-language-models; the constants are those of muP, Yang et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import PAIRS, SILU, Tensor
from fabric.models.config import DecoderConfig, read_decoder
from fabric.models.keys import Keys
from fabric.models.recorder import NOTHING, Recorder
from fabric.weights.gguf import GGUF


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Factors of the embedding, of what is added to the residual stream and of scores; logits are divided by theirs."""

    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Granite does not have."""
    with Keys(gguf) as keys:
        decoder = read_decoder(gguf, keys)
        keys.only("rope.scaling.finetuned", True, why="asks for layers without RoPE, which is not supported")
        return Config(
            **vars(decoder),
            embedding_scale=_factor(keys, "embedding_scale", 1.0),
            residual_scale=_factor(keys, "residual_scale", 1.0),
            attention_scale=_factor(keys, "attention.scale", decoder.head_dim**-0.5),
            logit_scale=keys.number("logit_scale"),
        )


def _factor(keys: Keys, key: str, default: float) -> float:
    """0 stands for no factor."""
    return default if keys.get(key) == 0 else keys.number(key, default)


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor) -> Tensor:
    """x + scale * attention(norm(x)); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.graph.rope(q, rope, c.head_dim, PAIRS)
    k = r.graph.rope(k, rope, c.head_dim, PAIRS)
    o = r.attention(q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=c.attention_scale)
    return r.graph.add(x, r.graph.scale(r.linear(o, f"{block}.attn_output"), c.residual_scale))


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + scale * down(silu(gate) * up) of norm(x); llama.cpp applies no scales of these matrices."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gate, up = r.linear(h, f"{block}.ffn_gate", scaled=NOTHING), r.linear(h, f"{block}.ffn_up", scaled=NOTHING)
    h = r.linear(r.graph.glu(gate, up, SILU), f"{block}.ffn_down", scaled=NOTHING)
    return r.graph.add(x, r.graph.scale(h, c.residual_scale))


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width), divided by what the logits are to be divided by."""
    x = r.embed(c.embedding_scale)
    rope = r.rope_table(c.inv_freq, c.magnitude, "rope_freqs.weight")
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.graph.scale(r.rms_norm(x, "output_norm", c.rms_eps), 1 / c.logit_scale)
