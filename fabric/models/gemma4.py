"""Gemma 4 E2B and E4B, the text side: windowed layers have smaller heads than those that see all, the last layers take
keys and values of the last ones that have their own, and each layer adds an embedding of its own.

Google 2026, https://ai.google.dev/gemma/docs/core/model_card_4. Values are normed without a weight, and scores are not
scaled. Files may hold matrices of keys and values that no layer uses; neither does stock llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.core import GELU_TANH, HALVES, Tensor
from fabric.models.config import (
    MOST_HEAD_DIM,
    DecoderConfig,
    Shapes,
    check_attention_scale,
    check_shapes,
    inverse_frequencies,
    read_decoder,
)  # fmt: skip
from fabric.models.gemma3 import GELU
from fabric.models.keys import Keys
from fabric.models.recorder import SUM, Recorder
from fabric.weights.gguf import GGUF

MODULES = {
    "attn": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "ffn": ("ffn_gate", "ffn_up", "ffn_down"),
    "ple": ("inp_gate", "proj"),
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """`head_dim` and `inv_freq` are those of layers that see all; `local_...` those of layers that see `window` tokens.
    `kv_heads` and `ffn` by layer. `per_layer`: columns of a layer's own embedding, 0: there is none."""

    local_head_dim: int
    local_inv_freq: npt.NDArray[np.float32]
    window: int
    windowed: tuple[bool, ...]
    kv_heads: tuple[int, ...]
    ffn: tuple[int, ...]
    shared: int
    per_layer: int
    softcap: float

    def head_dim_of(self, layer: int) -> int:
        """Dimensions of its heads."""
        return self.local_head_dim if self.windowed[layer] else self.head_dim


def read_config(gguf: GGUF) -> Config:
    """DataError where keys are missing, do not fit together, or ask for what Gemma 4 does not have."""
    with Keys(gguf) as keys:
        keys.windows = keys.layered = True
        decoder = read_decoder(gguf, keys, GELU)
        n_layers = decoder.n_layers
        check_attention_scale(keys, 1.0)
        head_dim = keys.size("attention.key_length_swa", most=MOST_HEAD_DIM)
        keys.only("attention.value_length_swa", head_dim)
        n_rot = keys.size("rope.dimension_count_swa", head_dim, most=head_dim)
        if n_rot % 2:
            raise keys.wrong("rope.dimension_count_swa", "an even number")
        config = Config(
            **vars(decoder),
            local_head_dim=head_dim,
            local_inv_freq=inverse_frequencies(keys, "rope.freq_base_swa", n_rot),
            window=keys.size("attention.sliding_window"),
            windowed=_windowed(keys, n_layers),
            kv_heads=tuple(keys.each("attention.head_count_kv", n_layers, decoder.n_head)),
            ffn=tuple(keys.each("feed_forward_length", n_layers)),
            shared=keys.size("attention.shared_kv_layers", 0, least=0, most=n_layers - 1),
            per_layer=keys.size("embedding_length_per_layer_input", 0, least=0),
            softcap=keys.number("final_logit_softcapping", 30.0, above=-1.0),  # 0: none
        )
        if wrong := [n for n in config.kv_heads if decoder.n_head % n]:
            raise keys.error("attention.head_count_kv", f"is {wrong[0]}, which {decoder.n_head} heads cannot share")
        if config.shared and config.windowed[: n_layers - config.shared][-2:] != (True, False):
            told = "leaves no layer with a window and one that sees all, in this order, to share keys and values"
            raise keys.error("attention.shared_kv_layers", told)
        check_shapes(gguf, config, own=lambda layer: _shapes(config, layer))
        return config


def _windowed(keys: Keys, n_layers: int) -> tuple[bool, ...]:
    told = keys.get("attention.sliding_window_pattern")
    if not isinstance(told, list) or len(told) != n_layers or not all(isinstance(one, bool) for one in told):
        raise keys.wrong("attention.sliding_window_pattern", f"true or false for each of {n_layers} layers")
    return tuple(told)


def _shapes(c: Config, layer: int) -> Shapes:
    """Of a layer's own sizes, or of what lies outside layers."""
    key, width = "gemma4.embedding_length_per_layer_input", c.width
    if layer < 0:
        every = c.n_layers * c.per_layer
        return {
            "per_layer_token_embd.weight": ((c.vocab_size, every), key),
            "per_layer_model_proj.weight": ((every, width), key),
            "per_layer_proj_norm.weight": ((c.per_layer,), key),
        }
    if layer >= c.n_layers:
        return {}
    head_dim, ffn = c.head_dim_of(layer), c.ffn[layer]
    q, kv = c.n_head * head_dim, c.kv_heads[layer] * head_dim
    heads = f"{c.n_head} heads and {c.kv_heads[layer]} key heads of {head_dim}"
    return {
        "attn_q.weight": ((q, width), heads),
        "attn_output.weight": ((width, q), heads),
        **dict.fromkeys(("attn_k.weight", "attn_v.weight"), ((kv, width), heads)),
        **dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), ((head_dim,), heads)),
        **dict.fromkeys(("ffn_gate.weight", "ffn_up.weight"), ((ffn, width), "gemma4.feed_forward_length")),
        "ffn_down.weight": ((width, ffn), "gemma4.feed_forward_length"),
        "inp_gate.weight": ((c.per_layer, width), key),
        "proj.weight": ((width, c.per_layer), key),
        "post_norm.weight": ((width,), "gemma4.embedding_length"),
        "layer_output_scale.weight": ((1,), "the architecture"),
    }


def inert(gguf: GGUF) -> set[str]:
    """Keys and values of layers that take those of others."""
    c = read_config(gguf)
    parts, sharing = ("attn_k", "attn_v", "attn_k_norm"), range(c.n_layers - c.shared, c.n_layers)
    return {f"blk.{layer}.{part}.weight" for layer in sharing for part in parts} & gguf.tensors.keys()


def attention(
    r: Recorder, c: Config, layer: int, x: Tensor, rope: Tensor, given: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x + norm(attention(norm(x))), and its keys and values: those `given`, or its own. Values are keys before their
    norm where the file has no matrix of values."""
    block, head_dim, window = f"blk.{layer}", c.head_dim_of(layer), c.window if c.windowed[layer] else 0
    h = r.rms_norm(x, f"{block}.attn_norm", c.rms_eps)
    q = r.linear(h, f"{block}.attn_q")
    if given is None:
        k = r.linear(h, f"{block}.attn_k")
        v = r.linear(h, f"{block}.attn_v") if f"{block}.attn_v.weight" in r.gguf.tensors else k
        k = r.graph.rope(r.rms_norm(k, f"{block}.attn_k_norm", c.rms_eps), rope, head_dim, HALVES)
        given = k, r.graph.rms_norm(v, r.constant(np.ones(head_dim)), c.rms_eps)
    q = r.graph.rope(r.rms_norm(q, f"{block}.attn_q_norm", c.rms_eps), rope, head_dim, HALVES)
    o = r.attention(
        q, *given, n_head=c.n_head, n_kv_head=c.kv_heads[layer], head_dim=head_dim, scale=1.0, window=window
    )
    h = r.rms_norm(r.linear(o, f"{block}.attn_output"), f"{block}.post_attention_norm", c.rms_eps)
    return r.graph.add(x, h), given


def mlp(r: Recorder, c: Config, block: str, x: Tensor) -> Tensor:
    """x + norm(down(gelu(gate) * up)) of norm(x)."""
    h = r.rms_norm(x, f"{block}.ffn_norm", c.rms_eps)
    gate, up = r.linear(h, f"{block}.ffn_gate", scaled=SUM), r.linear(h, f"{block}.ffn_up", scaled=SUM)
    h = r.linear(r.graph.glu(gate, up, GELU_TANH), f"{block}.ffn_down", scaled=SUM)
    return r.graph.add(x, r.rms_norm(h, f"{block}.post_ffw_norm", c.rms_eps))


def own_embedding(r: Recorder, c: Config, layer: int, embedded: Tensor, x: Tensor) -> Tensor:
    """x + norm(proj(gelu(gate) * e)), e a layer's part of an embedding beside what it makes of the usual one. Stock
    llama.cpp applies no pair beside per_layer_model_proj, so there is none. The eps stands for a factor before the
    norm."""
    block, rows = f"blk.{layer}", range(layer * c.per_layer, (layer + 1) * c.per_layer)
    projected = r.graph.linear(embedded, r.weight("per_layer_model_proj.weight", rows))
    projected = r.rms_norm(projected, "per_layer_proj_norm", c.rms_eps * c.width)
    looked_up = r.embed_part("per_layer_token_embd.weight", layer, c.n_layers, c.per_layer**0.5)
    e = r.graph.scale(r.graph.add(projected, looked_up), 2**-0.5)
    h = r.linear(r.graph.glu(r.linear(x, f"{block}.inp_gate"), e, GELU_TANH), f"{block}.proj")
    return r.graph.add(x, r.rms_norm(h, f"{block}.post_norm", c.rms_eps))


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = embedded = r.embed(scale=c.width**0.5)
    ropes = {
        True: r.rope_table(c.local_inv_freq, c.magnitude),
        False: r.rope_table(c.inv_freq, c.magnitude, "rope_freqs.weight"),
    }
    latest: dict[bool, tuple[Tensor, Tensor]] = {}  # keys and values of both kinds of layer
    r.softcap = c.softcap
    r.read |= inert(r.gguf)
    for layer, windowed in enumerate(c.windowed):
        r.graph.mark()
        given = latest[windowed] if layer >= c.n_layers - c.shared else None
        x, latest[windowed] = attention(r, c, layer, x, ropes[windowed], given)
        x = mlp(r, c, f"blk.{layer}", x)
        if c.per_layer:
            x = own_embedding(r, c, layer, embedded, x)
        x = r.graph.scale(x, r.scalar(f"blk.{layer}.layer_output_scale.weight"))
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
