"""Small GGUF files of every architecture with random weights and a real byte-level tokenizer, for tests; and, by

    python -m tests.support.random_models qwen3-0.6b --type Q8_0 -o model.gguf

files of a real shape for benchmarks. Written by the gguf package, so that our own writer is not its own judge.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import NVFP4, quantize

from tests.support.decoded import decoded

Array = npt.NDArray[np.float32]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Formats that the gguf package reads but does not write: where the scale lies, and that of the minima with what it is
# in units of the scale for values of mean zero.
_SCALES = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), (0, None, 0.0)),
    "Q1_0": (0, None, 0.0),
    "IQ1_M": (48, None, 0.0),
    "NVFP4": (0, None, 0.0),
}
_CHUNK = 1 << 22  # elements made at a time
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other dog thanks the fox for the lesson in there "
    "is what it was that this and those are in the house on the hill with the old man and his cat"
)


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


@lru_cache(maxsize=1)
def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(b if b in plain else next(shifted)) for b in range(256)]


@lru_cache(maxsize=4)
def tokenizer(vocab: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges: three specials, 256 bytes, words of a small corpus, unused ones up to `vocab`."""
    tokens = [*SPECIALS, *_byte_characters()]
    if vocab < len(tokens):
        raise ValueError(f"a vocabulary of {vocab} has no room for {len(tokens)} bytes and specials")
    words = [[_byte_characters()[b] for b in (" " + word).encode()] for word in _CORPUS.split()]
    merges: list[str] = []
    while len(tokens) < vocab:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        (left, right), _ = max(counts.items(), key=lambda item: (item[1], item[0]))
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        for word in words:
            for i in range(len(word) - 1, 0, -1):
                if (word[i - 1], word[i]) == (left, right):
                    word[i - 1 : i + 1] = [left + right]
    control, normal, unused = (int(gguf.TokenType[n]) for n in ("CONTROL", "NORMAL", "UNUSED"))
    types = [control] * len(SPECIALS) + [normal] * (len(tokens) - len(SPECIALS))
    spare = vocab - len(tokens)
    return [*tokens, *(f"<|unused_{i}|>" for i in range(spare))], types + [unused] * spare, merges


def _tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    tokens, token_types, merges = tokenizer(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _given(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, (list, tuple)):
            writer.add_array(key, list(value))
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _metadata(
    writer: gguf.GGUFWriter, shape: Shape, types: Mapping[str, str], vocabulary: Mapping[str, Any] | None
) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    ffn = [shape.ffn_of(i) for i in range(shape.layers)]
    writer.add_feed_forward_length(ffn if len({*ffn}) > 1 else shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(
        shape.kv_heads
        if "d" in shape.mixers
        else [shape.kv_heads * (one != "c") for one in shape.mixers] or shape.kv_heads
    )
    if shape.architecture == "gemma4":
        writer.add_sliding_window_pattern([one == "w" for one in shape.mixers])
        writer.add_key_length_swa(shape.local_head_dim)
        writer.add_value_length_swa(shape.local_head_dim)
        writer.add_rope_dimension_count_swa(shape.local_head_dim)
        writer.add_rope_freq_base_swa(shape.local_base)
        writer.add_shared_kv_layers(shape.shared)
        writer.add_embedding_length_per_layer_input(shape.per_layer)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.rotated or shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.period != 6:
        writer.add_sliding_window_pattern(shape.period)
    if shape.local_base != 10000.0:
        writer.add_rope_freq_base_swa(shape.local_base)
    if shape.linear_scaling != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.linear_scaling)
    long = shape.rope_scaling.metadata() if isinstance(shape.rope_scaling, LongRope) else {}
    _given(writer, {f"{shape.architecture}.{key}": value for key, value in {**long, **dict(shape.own)}.items()})
    writer.add_vocab_size(shape.vocab)
    kind = types.get("attn_q", types["default"])
    names = ("ALL_F32",) if kind == "F32" else (f"MOSTLY_{kind}{mix}" for mix in ("", "_M", "_MOE"))
    writer.add_file_type(next(int(gguf.LlamaFileType[n]) for n in names if n in gguf.LlamaFileType.__members__))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if vocabulary is None:
        writer.add_name("random")
        _tokenizer(writer, shape.vocab)
    else:
        _given(writer, vocabulary)


def blocks(
    kind: gguf.GGMLQuantizationType, rows: int, cols: int, std: float, rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    """Encoded rows of random values: normal ones, or random blocks of formats that the gguf package does not write."""
    if kind.name not in _SCALES:
        return quantize(rng.standard_normal((rows, cols), np.float32) * np.float32(std), kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    at, at_min, ratio = _SCALES[kind.name]
    raw = rng.integers(0, 256, (rows, cols // block, block_bytes), np.uint8)

    def scaled(d: float) -> npt.NDArray[np.uint8]:
        half = np.float16(d).tobytes()
        if kind.name == "IQ1_M":  # a nibble of it on top of each four scales
            word = int.from_bytes(half, "little")
            raw[:, :, at + 1 : at + 8 : 2] = [16 * (word >> shift & 15) for shift in (0, 4, 8, 12)]
        elif kind.name == "NVFP4":  # the nearest of its 8-bit scales
            known = NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8)) * 2
            raw[:, :, at : at + 4] = abs(known - d).argmin()
        else:
            raw[:, :, at : at + 2] = np.frombuffer(half, np.uint8)
        if at_min is not None:
            raw[:, :, at_min : at_min + 2] = np.frombuffer(np.float16(d * ratio).tobytes(), np.uint8)
        return raw.reshape(rows, -1)

    return scaled(std / float(decoded(scaled(1.0), kind).std()))


Maker = Callable[[], Iterator[npt.NDArray[np.generic]]]


def write_model(
    path: str | Path,
    shape: Shape = PRESETS["tiny"],
    types: str | Mapping[str, str] = "F32",
    seed: int = 0,
    repeat: bool = False,
    vocabulary: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the file and returns its path. `types`: a GGUF type for all matrices, or by module ("attn_q",
    "token_embd", ...; "default" for the rest) or matrix ("blk.0.attn_q").
    `repeat`: rows repeat in large matrices, which is quick to write.
    `vocabulary`: another file's metadata of its tokenizer, of `shape.vocab` tokens.
    """
    chosen = {"default": types} if isinstance(types, str) else {"default": "F32", **types}
    chosen = {"ffn_gate_inp": "F32", **chosen}  # as files have routers
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    _metadata(writer, shape, chosen, vocabulary)
    makers: list[Maker] = []
    unscaled = shape.architecture == "gemma4"

    def vector(name: str, values: Array) -> None:
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        makers.append(lambda: iter([values]))

    def matrix(name: str, module: str, shape: tuple[int, ...], std: float) -> None:
        rows, cols = math.prod(shape[:-1]), shape[-1]
        kind = gguf.GGMLQuantizationType[
            chosen.get(name.removesuffix(".weight"), chosen.get(module, chosen["default"]))
        ]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if cols % block:
            raise ValueError(f"{name}: rows of {cols} do not divide into {kind.name} blocks of {block}")
        writer.add_tensor_info(name, shape, np.dtype(np.float32), rows * cols // block * block_bytes, kind)

        def make() -> Iterator[npt.NDArray[np.generic]]:
            step, chunk = max(1, _CHUNK // cols), None
            for first in range(0, rows, step):
                count = min(step, rows - first)
                if chunk is None or not repeat:
                    chunk = blocks(kind, count, cols, std, rng)
                yield chunk[:count]

        makers.append(make)

    def drawn(name: str, shape: tuple[int, ...]) -> None:
        noise = 0.1 * rng.standard_normal(shape)
        values = 6 * noise if len(shape) > 1 else noise if name.endswith("bias") else 1 + noise
        if name.endswith("ssm_a"):
            values = -np.exp(10 * noise)
        if unscaled and "attn_q_norm" in name:  # so that scores are as small as in others
            values *= len(noise) ** -0.5
        vector(name, values.astype(np.float32))

    matrix("token_embd.weight", "token_embd", (shape.vocab, shape.hidden), 2 / math.sqrt(shape.hidden))
    for i in range(shape.layers):
        for name, size in shape.vectors(i).items():
            drawn(f"blk.{i}.{name}", size)
        for module, sizes in shape.linear(i).items():
            wide = 3.0 if module == "ffn_gate_inp" else 1.0  # so that experts differ in their logits
            matrix(f"blk.{i}.{module}.weight", module, sizes, wide / math.sqrt(sizes[-1]))
    drawn(f"{'token_embd_norm' if shape.architecture == 'lfm2' else 'output_norm'}.weight", (shape.hidden,))
    if not shape.tied:
        matrix("output.weight", "output", (shape.vocab, shape.hidden), 2 / math.sqrt(shape.hidden))
    if isinstance(shape.rope_scaling, LongRope):
        for name, values in shape.rope_scaling.tensors().items():
            vector(name, values)
    elif shape.architecture == "gemma4":  # of the layers that see all, which turn a quarter of a head
        whole = shape.layers * shape.per_layer
        rows = (shape.vocab, whole)
        matrix("per_layer_token_embd.weight", "per_layer_token_embd", rows, 1 / math.sqrt(shape.per_layer))
        rows = (whole, shape.hidden)
        matrix("per_layer_model_proj.weight", "per_layer_model_proj", rows, 1 / math.sqrt(shape.hidden))
        drawn("per_layer_proj_norm.weight", (shape.per_layer,))
        turned = np.arange(shape.head_dim // 2) < shape.head_dim // 8
        vector("rope_freqs.weight", np.where(turned, 1, 1e30).astype(np.float32))
    elif shape.rope_scaling is not None:
        vector("rope_freqs.weight", shape.rope_scaling.factors(shape.rope_base, shape.head_dim))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    for make in makers:
        writer.write_padding(out, out.tell())
        for part in make():
            out.write(np.ascontiguousarray(part).data)
    writer.write_padding(out, out.tell())
    writer.close()
    return Path(path)


def random_pairs(
    shape: Shape, rank: int = 4, seed: int = 1, b_std: float = 0.0, modules: Sequence[str] | None = None
) -> dict[str, tuple[Array, Array]]:
    """LoRA pairs A (rank, in), B (out, rank) by tensor name, one an expert: A as PEFT draws it, B zero or normal."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(shape.layers):
        for module, (*experts, rows, cols) in shape.linear(i).items():
            if modules is None or module in modules:
                a = rng.uniform(-1, 1, (*experts, rank, cols)) / math.sqrt(cols)
                b = rng.standard_normal((*experts, rows, rank)) * b_std
                found[f"blk.{i}.{module}.weight"] = (a.astype(np.float32), b.astype(np.float32))
    return found


def main() -> None:
    """The command of the module's first lines."""
    parser = argparse.ArgumentParser(description="Write a GGUF of a real shape with random weights.")
    parser.add_argument("shape", choices=sorted(PRESETS))
    parser.add_argument("--type", default="Q8_0", help="of all matrices: any that gguf knows, Q4_K ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    write_model(args.output, PRESETS[args.shape], args.type, args.seed, repeat=True)


if __name__ == "__main__":
    main()
