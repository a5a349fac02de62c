"""RoPE in config.json as GGUF metadata, and as tensors of divisors of its frequencies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fabric.core.blocks import Floats
from fabric.fields import Fields, short
from fabric.huggingface.inert import name_unknown
from fabric.huggingface.names import Family
from fabric.models.config import LONG, SHORT, YARN_FAST, YARN_SLOW, yarn_magnitude


def read_rope(c: Fields, rope: Fields, family: Family, arch: dict[str, Any], default_base: float) -> dict[str, Floats]:
    """Writes base and scaling to `arch`; returns the divisors of frequencies, where it has any, by tensor name."""
    base = rope.number("rope_theta", c.number("rope_theta", default_base))
    if base < 1:
        raise c.error("rope_theta", f"is {base:g}, not a valid RoPE base")
    arch["rope.freq_base"] = base
    if not family.longrope and not family.around_keys:
        for where in (c, rope):
            where.only("partial_rotary_factor", 1.0, why="cannot be expressed in GGUF")
    old = rope.get("type")
    kind = rope.text("rope_type", old if isinstance(old, str) else "default")
    if old is not None and not isinstance(old, str):
        raise rope.wrong("type", "a text")
    tensors: dict[str, Floats] = {}
    if kind == "linear":
        arch |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.number("factor")}
    elif kind == "yarn" and not family.longrope and "attention.sliding_window" not in arch:
        _yarn(c, rope, arch, family.own_yarn)
    elif kind == "llama3" and family.rope_factors:
        head_dim, context = arch["attention.key_length"], arch["context_length"]
        tensors["rope_freqs.weight"] = _llama3_factors(c, rope, base, head_dim, context)
    elif kind in ("longrope", "su", "yarn") and family.longrope:
        tensors = _longrope(c, rope, arch)
    elif kind != "default":
        raise rope.error("rope_type", f"is {short(kind)}, which cannot be converted for a model of this architecture")
    name_unknown(rope, frozenset())
    return tensors


def _yarn(c: Fields, rope: Fields, arch: dict[str, Any], own_yarn: bool) -> None:
    """Scaling by YaRN: GGUF holds what the magnitude is multiplied by beyond the one that follows from the factor.
    `own_yarn`: and, for such a model, the bounds and a share of the latter that is taken back."""
    factor, key = rope.number("factor"), "original_max_position_embeddings"
    rope.only("truncate", True, why="cannot be expressed in GGUF")
    for name, usual in (("beta_fast", YARN_FAST), ("beta_slow", YARN_SLOW)):
        if own_yarn:
            arch[f"rope.scaling.yarn_{name}"] = rope.number(name, usual)
        else:
            rope.only(name, usual, why="cannot be expressed in GGUF")
    some, every = (rope.number(name, 0.0, above=-1.0) for name in ("mscale", "mscale_all_dim"))
    own = magnitude = yarn_magnitude(factor)
    if some and every:
        magnitude = yarn_magnitude(factor, some) / yarn_magnitude(factor, every)
        if own_yarn:
            arch["rope.scaling.yarn_log_multiplier"] = every
            own /= yarn_magnitude(factor, every)
    arch |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": c.size(key, rope.size(key, arch["context_length"])),
        "rope.scaling.attn_factor": float(rope.number("attention_factor", magnitude) / own),
    }


def _longrope(c: Fields, rope: Fields, arch: dict[str, Any]) -> dict[str, Floats]:
    """Scaling by LongRoPE: divisors for contexts of up to the original one and for longer ones, and what queries and
    keys are multiplied by in both. Ding et al. 2024, https://arxiv.org/abs/2402.13753
    """
    original = arch["rope.scaling.original_context_length"]
    factor = rope.number("factor", arch["context_length"] / original)
    own = math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    arch["rope.scaling.attn_factor"] = rope.number("attention_factor", own)
    rope.get("original_max_position_embeddings")  # the one outside comes first
    return {LONG: _divisors(rope, "long_factor", arch), SHORT: _divisors(rope, "short_factor", arch)}


def _divisors(rope: Fields, key: str, arch: dict[str, Any]) -> Floats:
    count, told = arch["rope.dimension_count"] // 2, rope.get(key)
    if not isinstance(told, list) or len(told) != count or not all(isinstance(one, int | float) for one in told):
        raise rope.wrong(key, f"{count} numbers")
    factors = np.array(told, np.float32)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise rope.wrong(key, f"{count} numbers above 0")
    return factors


def _llama3_factors(c: Fields, rope: Fields, base: float, head_dim: int, context: int) -> Floats:
    """What each frequency is divided by: long wavelengths by `factor`, short ones by 1, a blend between.

    The Llama 3 Herd of Models, https://arxiv.org/abs/2407.21783
    """
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise rope.error("high_freq_factor", f"is {high:g}, not above low_freq_factor, {low:g}")
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    key = "original_max_position_embeddings"
    turns = c.size(key, rope.size(key, context)) / wavelengths
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors = np.asarray(1.0 / ((1.0 - share) / factor + share), np.float32)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise rope.error("factor", f"is {factor:g}, beyond what F32 holds")
    return factors
