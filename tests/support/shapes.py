"""Shapes of models for tests: an architecture and its sizes, small ones of every kind and those of published models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's: long wavelengths are stretched by `factor`, short ones are left alone."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 64

    def factors(self, base: float, head_dim: int) -> Array:
        """What each frequency is divided by: the tensor rope_freqs.weight."""
        found = []
        for i in range(0, head_dim, 2):
            wavelength = 2 * math.pi * base ** (i / head_dim)
            turns = self.original_context / wavelength
            if turns > self.high_freq_factor:
                found.append(1.0)
            elif turns < self.low_freq_factor:
                found.append(self.factor)
            else:
                mix = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
                found.append(1.0 / ((1 - mix) / self.factor + mix))
        return np.array(found, np.float32)


@dataclass(frozen=True)
class LongRope:
    """Frequencies are divided by `short` factors in contexts of up to `original_context`, by `long` ones beyond."""

    original_context: int = 512
    attn_factor: float = 1.4
    short: tuple[float, ...] = (1.0, 1.1, 1.2, 1.5, 1.9, 2.4)
    long: tuple[float, ...] = (1.0, 1.6, 2.5, 6.0, 14.0, 32.0)

    def metadata(self) -> dict[str, Any]:
        """Keys of an architecture."""
        return {
            "rope.scaling.original_context_length": self.original_context,
            "rope.scaling.attn_factor": self.attn_factor,
        }

    def tensors(self) -> dict[str, Array]:
        """The two tensors of divisors."""
        factors = {"long": self.long, "short": self.short}
        return {f"rope_factors_{name}.weight": np.array(values, np.float32) for name, values in factors.items()}


_HALVES = ("attn_norm", "ffn_norm")
_HEADS = ("attn_q_norm", "attn_k_norm")
_AFTER = (*_HEADS, "post_attention_norm", "post_ffw_norm")
VECTORS = {
    "llama": _HALVES,
    "qwen2": (*_HALVES, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "qwen3": (*_HALVES, *_HEADS),
    "gemma3": (*_HALVES, *_AFTER),
    "smollm3": _HALVES,
    "granite": _HALVES,
    "olmo2": _AFTER,
    "exaone4": _AFTER,
    "gemma2": (*_HALVES, "post_attention_norm", "post_ffw_norm"),
    "phi3": _HALVES,
    "mistral3": _HALVES,
    "bitnet": (*_HALVES, "attn_sub_norm", "ffn_sub_norm"),
    "lfm2": (*_HALVES, *_HEADS, "shortconv.conv.weight"),
    "gemma4": (*_HALVES, *_AFTER, "post_norm", "layer_output_scale"),
    "qwen3moe": (*_HALVES, *_HEADS),
    "qwen35": ("attn_norm", "post_attention_norm", *_HEADS, "ssm_conv1d.weight", "ssm_dt.bias", "ssm_a", "ssm_norm"),
}
"""The norms, biases and convolutions of a block, by architecture."""


@dataclass(frozen=True)
class Shape:
    """An architecture and its sizes. Of gemma3 alone: `window` and `local_base` (of RoPE) of most layers, and
    `linear_scaling` of every `period`-th, which sees all. `rotated`: dimensions of a head that RoPE turns, 0: all.
    `own`: values under keys of this architecture alone. Of lfm2, gemma4 and qwen35 alone: `mixers`, a letter a
    layer, a: attends, c: convolves, d: is a delta net, w: attends within the window. Of gemma4 alone:
    `local_head_dim` of the last kind, the last `shared` layers take keys and values of others and have feed-forward
    layers `wider` by that factor, `per_layer` columns of each layer's own embedding.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    vocab: int = 320
    context: int = 512
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | LongRope | None = None
    rms_eps: float = 1e-5
    tied: bool = True
    architecture: str = "llama"
    window: int = 0
    period: int = 6
    local_base: float = 10000.0
    linear_scaling: float = 1.0
    rotated: int = 0
    own: tuple[tuple[str, float | int | bool | str | tuple[int, ...]], ...] = ()
    mixers: str = ""
    local_head_dim: int = 0
    shared: int = 0
    wider: int = 1
    per_layer: int = 0

    def head_dim_of(self, layer: int) -> int:
        """Dimensions of its heads."""
        return self.local_head_dim or self.head_dim if self.mixers[layer : layer + 1] == "w" else self.head_dim

    def ffn_of(self, layer: int) -> int:
        """Rows of its gate."""
        return self.ffn * (self.wider if layer >= self.layers - self.shared else 1)

    def linear(self, layer: int = 0) -> dict[str, tuple[int, ...]]:
        """(out, in) of a block's matrices, by module; (experts, out, in) of experts."""
        q, kv = self.heads * self.head_dim_of(layer), self.kv_heads * self.head_dim_of(layer)
        size = self.ffn_of(layer)
        ffn = {"ffn_gate": (size, self.hidden), "ffn_up": (size, self.hidden), "ffn_down": (self.hidden, size)}
        if self.mixers[layer : layer + 1] == "c":
            return {
                "shortconv.in_proj": (3 * self.hidden, self.hidden),
                "shortconv.out_proj": (self.hidden, self.hidden),
                **ffn,
            }
        if self.mixers[layer : layer + 1] == "d":
            own: dict[str, Any] = dict(self.own)
            inner, heads = own["ssm.inner_size"], own["ssm.time_step_rank"]
            return {
                "attn_qkv": (2 * own["ssm.group_count"] * own["ssm.state_size"] + inner, self.hidden),
                "attn_gate": (inner, self.hidden),
                "ssm_beta": (heads, self.hidden),
                "ssm_alpha": (heads, self.hidden),
                "ssm_out": (self.hidden, inner),
                **ffn,
            }
        if self.architecture == "phi3":
            return {
                "attn_qkv": (q + 2 * kv, self.hidden),
                "attn_output": (self.hidden, q),
                "ffn_up": (2 * self.ffn, self.hidden),
                "ffn_down": (self.hidden, self.ffn),
            }
        per_layer, sizes = self.per_layer, dict(self.own)
        found: dict[str, tuple[int, ...]] = {
            "attn_q": (q * (2 if self.architecture == "qwen35" else 1), self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
        }
        if "expert_count" in sizes:
            experts, size = int(sizes["expert_count"]), int(sizes["expert_feed_forward_length"])
            return {
                **found,
                "ffn_gate_inp": (experts, self.hidden),
                "ffn_gate_exps": (experts, size, self.hidden),
                "ffn_up_exps": (experts, size, self.hidden),
                "ffn_down_exps": (experts, self.hidden, size),
            }
        found |= {
            **ffn,
        }
        if layer >= self.layers - self.shared:
            del found["attn_k"], found["attn_v"]
        return found | ({"inp_gate": (per_layer, self.hidden), "proj": (self.hidden, per_layer)} if per_layer else {})

    def vectors(self, layer: int = 0) -> dict[str, tuple[int, ...]]:
        """Shapes of a block's norms, biases and convolutions, by name."""
        found: dict[str, tuple[int, ...]] = {}
        linear = self.linear(layer)
        for name in VECTORS[self.architecture]:
            module, _, kind = name.partition(".")
            shape: tuple[int, ...] = (self.hidden,)
            if module.startswith("ssm") and "ssm_out" not in linear:
                continue
            if module.startswith("ssm"):
                own: dict[str, Any] = dict(self.own)
                heads = own["ssm.time_step_rank"]
                columns, inner = linear["attn_qkv"][0], own["ssm.inner_size"]
                shape = {"ssm_conv1d": (columns, own["ssm.conv_kernel"]), "ssm_norm": (inner // heads,)}.get(
                    module, (heads,)
                )
            elif kind == "bias":
                shape = linear[module][:1]
            elif name in _HEADS and name.removesuffix("_norm") not in linear:
                continue
            elif name in _HEADS:
                shape = (
                    linear[name.removesuffix("_norm")][:1]
                    if self.architecture == "olmo2"
                    else (self.head_dim_of(layer),)
                )
            elif name == "ffn_sub_norm":
                shape = (self.ffn,)
            elif name == "layer_output_scale":
                shape = (1,)
            elif module == "shortconv" and "shortconv.in_proj" not in linear:
                continue
            elif module == "shortconv":
                shape = (self.hidden, int(dict(self.own)["shortconv.l_cache"]))
            found[name if kind or name == "ssm_a" else f"{name}.weight"] = shape
        return found


def _delta(key_heads: int, heads: int, size: int) -> tuple[tuple[str, int], ...]:
    return (
        ("ssm.conv_kernel", 4), ("ssm.group_count", key_heads), ("ssm.time_step_rank", heads), ("ssm.state_size", size),
        ("ssm.inner_size", heads * size),
    )  # fmt: skip


SMALL = {
    "llama": Shape(),
    "qwen2": Shape(rope_base=1e6, rms_eps=1e-6, architecture="qwen2"),
    "qwen3": Shape(heads=4, kv_heads=2, head_dim=32, rope_base=1e6, rms_eps=1e-6, architecture="qwen3"),
    "gemma3": Shape(
        layers=7, kv_heads=1, head_dim=32, rope_base=1e6, rms_eps=1e-6, architecture="gemma3", window=8,
        linear_scaling=8.0,
    ),
    "smollm3": Shape(layers=5, rope_base=5e6, rms_eps=1e-6, architecture="smollm3"),
    "olmo2": Shape(rope_base=5e5, rms_eps=1e-6, tied=False, architecture="olmo2"),
    "exaone4": Shape(rope_base=1e6, architecture="exaone4", rope_scaling=RopeScaling()),
    "gemma2": Shape(
        layers=3, kv_heads=1, head_dim=32, rms_eps=1e-6, architecture="gemma2", window=8,
        own=(("attn_logit_softcapping", 5.0), ("final_logit_softcapping", 4.0)),
    ),
    "mistral3": Shape(
        context=1024, head_dim=32, architecture="mistral3",
        own=(
            ("rope.scaling.type", "yarn"), ("rope.scaling.factor", 4.0), ("rope.scaling.original_context_length", 16),
            ("rope.scaling.yarn_beta_fast", 1.0), ("rope.scaling.yarn_beta_slow", 0.05),
            ("rope.scaling.yarn_log_multiplier", 0.5), ("attention.temperature_scale", 0.3),
        ),
    ),
    "bitnet": Shape(rope_base=5e5, architecture="bitnet", own=(("hidden_activation", "relu2"),)),
    "qwen35": Shape(
        layers=3, rope_base=1e6, rms_eps=1e-6, architecture="qwen35", rotated=8, mixers="dad",
        own=(("full_attention_interval", 2), *_delta(2, 4, 16), ("rope.dimension_sections", (2, 1, 1, 0))),
    ),
    "lfm2": Shape(layers=3, rope_base=1e6, architecture="lfm2", own=(("shortconv.l_cache", 3),), mixers="cac"),
    "gemma4": Shape(
        layers=4, kv_heads=1, head_dim=32, rope_base=1e6, rms_eps=1e-6, architecture="gemma4", window=8, mixers="wawa",
        local_head_dim=16, shared=2, wider=2, per_layer=32, own=(("final_logit_softcapping", 4.0),),
    ),
    "qwen3moe": Shape(
        head_dim=32, rope_base=1e6, rms_eps=1e-6, tied=False, architecture="qwen3moe",
        own=(("expert_count", 8), ("expert_used_count", 3), ("expert_feed_forward_length", 32)),
    ),
    "phi3": Shape(context=1024, tied=False, architecture="phi3", rotated=12, rope_scaling=LongRope()),
    "granite": Shape(
        architecture="granite",
        own=(("embedding_scale", 12.0), ("residual_scale", 0.22), ("attention.scale", 0.1), ("logit_scale", 8.0)),
    ),
}  # fmt: skip
"""One of every architecture, for parity tests: with all that is its own (both kinds of layer, rows past the window)."""


def _qwen3(hidden: int, layers: int, heads: int, ffn: int) -> Shape:
    return Shape(hidden, layers, heads, 8, 128, ffn, 151936, 40960, 1e6, None, 1e-6, architecture="qwen3")


def _gemma3(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, window: int = 512, linear_scaling: float = 1.0
) -> Shape:
    return Shape(
        hidden, layers, heads, kv_heads, 256, ffn, 262144, 32768, 1e6, None, 1e-6,
        architecture="gemma3", window=window, linear_scaling=linear_scaling,
    )  # fmt: skip


_LONGROPE_48 = LongRope(4096, 1.19, (1.0,) * 48, tuple(np.geomspace(1, 64, 48).tolist()))


def _phi3(layers: int, heads: int, kv_heads: int, rotated: int, vocab: int, scaling: LongRope, tied: bool) -> Shape:
    return Shape(
        3072, layers, heads, kv_heads, 3072 // heads, 8192, vocab, 131072, 1e4, scaling, 1e-5, tied,
        architecture="phi3", rotated=rotated,
    )  # fmt: skip


def _gemma4(hidden: int, layers: int, kv_heads: int, ffn: int, period: int, shared: int, wider: int) -> Shape:
    return Shape(
        hidden, layers, 8, kv_heads, 512, ffn, 262144, 131072, 1e6, None, 1e-6, architecture="gemma4", window=512,
        mixers=("w" * (period - 1) + "a") * (layers // period), local_head_dim=256, shared=shared, wider=wider,
        per_layer=256, own=(("final_logit_softcapping", 30.0),),
    )  # fmt: skip


def _lfm2(hidden: int, heads: int, ffn: int) -> Shape:
    return Shape(
        hidden, 16, heads, 8, 64, ffn, 65536, 128000, 1e6, None, 1e-5,
        architecture="lfm2", own=(("shortconv.l_cache", 3),), mixers="ccaccaccacacacac",
    )  # fmt: skip


_MINISTRAL = (
    ("rope.scaling.type", "yarn"), ("rope.scaling.factor", 16.0), ("rope.scaling.original_context_length", 16384),
    ("rope.scaling.yarn_beta_fast", 32.0), ("rope.scaling.yarn_beta_slow", 1.0),
    ("rope.scaling.yarn_log_multiplier", 1.0), ("attention.temperature_scale", 0.1),
)  # fmt: skip
_GRANITE = (("embedding_scale", 12.0), ("residual_scale", 0.22), ("attention.scale", 0.015625), ("logit_scale", 8.0))
PRESETS = {
    "tiny": SMALL["llama"],
    "qwen2.5-0.5b": Shape(896, 24, 14, 2, 64, 4864, 151936, 32768, 1e6, None, 1e-6, architecture="qwen2"),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728),
    "gemma3-270m": _gemma3(640, 18, 4, 1, 2048),
    "gemma3-1b": _gemma3(1152, 26, 4, 1, 6912),
    "gemma3-4b": _gemma3(2560, 34, 8, 4, 10240, window=1024, linear_scaling=8.0),
    "smollm3-3b": Shape(2048, 36, 16, 4, 128, 11008, 128256, 65536, 5e6, None, 1e-6, architecture="smollm3"),
    "granite-3.3-2b": Shape(
        2048, 40, 32, 8, 64, 8192, 49159, 131072, 1e7, None, 1e-5, architecture="granite", own=_GRANITE
    ),
    "olmo2-1b": Shape(2048, 16, 16, 16, 128, 8192, 100352, 4096, 5e5, None, 1e-6, False, architecture="olmo2"),
    "exaone4-1.2b": Shape(2048, 30, 32, 8, 64, 4096, 102400, 65536, 1e6, None, 1e-5, architecture="exaone4"),
    "gemma2-2b": Shape(
        2304,
        26,
        8,
        4,
        256,
        9216,
        256000,
        8192,
        1e4,
        None,
        1e-6,
        architecture="gemma2",
        window=4096,
        own=(("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)),
    ),
    "bitnet-2b": Shape(
        2560,
        30,
        20,
        5,
        128,
        6912,
        128256,
        4096,
        5e5,
        None,
        1e-5,
        architecture="bitnet",
        own=(("hidden_activation", "relu2"),),
    ),
    "ministral3-3b": Shape(
        3072, 26, 32, 8, 128, 9216, 131072, 262144, 1e6, None, 1e-5, architecture="mistral3", own=_MINISTRAL
    ),
    "gemma4-e2b": _gemma4(1536, 35, 1, 6144, 5, 20, 2),
    "gemma4-e4b": _gemma4(2560, 42, 2, 10240, 6, 18, 1),
    "qwen3.5-0.8b": Shape(
        1024,
        24,
        8,
        2,
        256,
        3584,
        248320,
        262144,
        1e7,
        None,
        1e-6,
        architecture="qwen35",
        rotated=64,
        mixers="ddda" * 6,
        own=(("full_attention_interval", 4), *_delta(16, 16, 128), ("rope.dimension_sections", (11, 11, 10, 0))),
    ),
    "lfm2-350m": _lfm2(1024, 16, 4608),
    "lfm2-1.2b": _lfm2(2048, 32, 8192),
    "phi-3.5-mini": _phi3(32, 32, 32, 96, 32064, _LONGROPE_48, False),
    "phi-4-mini": _phi3(32, 24, 8, 128, 200064, _LONGROPE_48, True),
    "qwen3-30b-a3b": Shape(
        2048,
        48,
        32,
        4,
        128,
        6144,
        151936,
        40960,
        1e6,
        None,
        1e-6,
        False,
        architecture="qwen3moe",
        own=(("expert_count", 128), ("expert_used_count", 8), ("expert_feed_forward_length", 768)),
    ),
    "smollm2-135m": Shape(576, 30, 9, 3, 64, 1536, 49152, 8192, 1e5, None, 1e-5, True),
}
