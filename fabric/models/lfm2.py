"""LFM2: most layers convolve a few recent tokens where others attend, between two gates that are rows of the same
product; the layers that attend norm queries and keys head by head.

Liquid AI 2025, https://arxiv.org/abs/2511.23404. In files the norm before the head is called token_embd_norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.core import BILINEAR, Tensor
from fabric.models.config import DecoderConfig, Shapes, check_attention_scale, check_shapes, read_decoder
from fabric.models.keys import Keys
from fabric.models.llama import mlp
from fabric.models.qwen3 import attention
from fabric.models.recorder import Recorder
from fabric.weights.gguf import GGUF

MODULES = {
    "attn": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "conv": ("shortconv.in_proj", "shortconv.out_proj"),
    "ffn": ("ffn_gate", "ffn_up", "ffn_down"),
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Which layers attend; the others convolve `taps` tokens."""

    attends: tuple[bool, ...]
    taps: int


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what LFM2 does not have."""
    with Keys(gguf) as keys:
        keys.layered = True
        c = read_decoder(gguf, keys)
        check_attention_scale(keys, c.head_dim**-0.5)
        kv_heads = keys.each("attention.head_count_kv", c.n_layers, c.n_head, least=0)
        if set(kv_heads) - {0, c.n_kv_head}:
            raise keys.error("attention.head_count_kv", "differs between layers that attend, which is not supported")
        config = Config(**vars(c), attends=tuple(n > 0 for n in kv_heads), taps=keys.size("shortconv.l_cache", most=8))
        keys.uniform("feed_forward_length", c.n_layers)
        own: Shapes = {
            "shortconv.in_proj.weight": ((3 * c.width, c.width), "lfm2.embedding_length"),
            "shortconv.out_proj.weight": ((c.width, c.width), "lfm2.embedding_length"),
            "shortconv.conv.weight": ((c.width, config.taps), "lfm2.shortconv.l_cache"),
        }
        check_shapes(gguf, config, own=lambda _: own)
        return config


def convolution(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + out(after * conv(before * h)) of norm(x); x (T, width)."""
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    parts = (range(i * c.width, (i + 1) * c.width) for i in range(3))
    before, after, h = (r.linear(h, f"{block}.shortconv.in_proj", rows=rows) for rows in parts)
    h = r.conv(r.graph.glu(before, h, BILINEAR), f"{block}.shortconv.conv")
    return r.linear(r.graph.glu(after, h, BILINEAR), f"{block}.shortconv.out_proj", residual=x)


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude)
    for i, attends in enumerate(c.attends):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope) if attends else convolution(r, c, f"blk.{i}", x)
        x = mlp(r, c, f"blk.{i}", x)
    r.graph.mark()
    return r.rms_norm(x, "token_embd_norm", c.rms_eps)
