"""Gemma 2: every other layer sees a window of recent tokens, both halves of a block are normed before and after, and
scores of attention and logits have soft caps.

Gemma Team 2024, https://arxiv.org/abs/2408.00118. GGUF files hold norms with their +1 already in.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import HALVES, Tensor
from fabric.models.config import DecoderConfig, check_attention_scale, read_decoder
from fabric.models.gemma3 import GELU, mlp, read_period
from fabric.models.keys import Keys
from fabric.models.recorder import Recorder
from fabric.weights.gguf import GGUF

LAYERS_OF_27B = 46  # the one size whose queries are scaled by the width a head would have, not the one it has


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Every `period`-th layer sees all, the others `window` tokens; caps of scores and of logits."""

    window: int
    period: int
    attention_cap: float
    logit_cap: float


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Gemma 2 does not have."""
    with Keys(gguf) as keys:
        keys.windows = True
        decoder = read_decoder(gguf, keys, GELU)
        check_attention_scale(keys, attention_scale(decoder))
        for key in ("attention.key_length_swa", "attention.value_length_swa"):
            keys.only(key, decoder.head_dim)
        keys.only("rope.dimension_count_swa", 2 * decoder.inv_freq.size)
        keys.only("rope.freq_base_swa", keys.number("rope.freq_base", 10000.0))
        return Config(
            **vars(decoder),
            window=keys.size("attention.sliding_window", 4096),
            period=read_period(keys, decoder.n_layers, 2),
            attention_cap=keys.number("attn_logit_softcapping", 50.0),
            logit_cap=keys.number("final_logit_softcapping", 30.0),
        )


def attention_scale(c: DecoderConfig) -> float:
    """What scores of attention are multiplied by."""
    return float((c.width // c.n_head if c.n_layers == LAYERS_OF_27B else c.head_dim) ** -0.5)


def attention(r: Recorder, c: Config, block: str, x: Tensor, rope: Tensor, window: int) -> Tensor:
    """x + norm(attention(norm(x))); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q, k, v = r.qkv(h, block)
    q = r.graph.rope(q, rope, c.head_dim, HALVES)
    k = r.graph.rope(k, rope, c.head_dim, HALVES)
    o = r.attention(
        q, k, v, n_head=c.n_head, n_kv_head=c.n_kv_head, head_dim=c.head_dim, scale=attention_scale(c), window=window,
        softcap=c.attention_cap,
    )  # fmt: skip
    h = r.rms_norm(r.linear(o, f"{block}.attn_output"), f"{block}.post_attention_norm", c.rms_eps)
    return r.graph.add(x, h)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    r.softcap = c.logit_cap
    x = r.embed(scale=c.width**0.5)
    rope = r.rope_table(c.inv_freq, c.magnitude)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope, c.window if (i + 1) % c.period else 0)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
