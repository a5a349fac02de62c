"""Settings of checkpoints whose layers differ in more than a window, and the shapes of their layers' tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fabric.core.blocks import Floats
from fabric.fields import Fields
from fabric.huggingface.names import NORM, Family
from fabric.huggingface.rope import read_rope

Tensors = dict[str, Floats]
Arch = Mapping[str, Any]  # metadata, by keys without the architecture's name
Shapes = dict[str, tuple[int, ...]]
FULL, SLIDING, CONV = "full_attention", "sliding_attention", "conv"
_MOST_TAPS = 8  # of a convolution


def layer_types(c: Fields, n_layers: int, default: Callable[[int], bool], other: str = SLIDING) -> list[bool]:
    """For each layer whether it is of the `other` kind, not one of full attention: `layer_types`, or `default` of its
    number."""
    types = c.get("layer_types")
    if types is None:
        return [default(i) for i in range(n_layers)]
    if not isinstance(types, list) or len(types) != n_layers or not all(one in (FULL, other) for one in types):
        raise c.wrong("layer_types", f"{FULL} or {other} for each of {n_layers} layers")
    return [one == other for one in types]


def read_lfm2(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Which layers attend, and how many tokens the others convolve; the size of feed-forward layers is worked out."""
    n_layers, attends = arch["block_count"], c.get("full_attn_idxs")
    if attends is not None and not (isinstance(attends, list) and all(type(i) is int for i in attends)):
        raise c.wrong("full_attn_idxs", "a list of numbers of layers")
    convolves = layer_types(c, n_layers, lambda i: attends is not None and i not in attends, CONV)
    c.only("conv_bias", False, why="an lfm2 model in GGUF cannot have")
    ffn = arch["feed_forward_length"]
    multiplier, multiple = c.get("block_ffn_dim_multiplier"), c.size("block_multiple_of")
    if c.flag("block_auto_adjust_ff_dim", True):
        ffn = int(2 * ffn / 3)
        if multiplier is not None:
            ffn = int(c.number("block_ffn_dim_multiplier") * ffn)
            ffn = multiple * ((ffn + multiple - 1) // multiple)
    arch |= {
        "feed_forward_length": ffn,
        "attention.head_count_kv": [0 if one else arch["attention.head_count_kv"] for one in convolves],
        "shortconv.l_cache": c.size("conv_L_cache", most=_MOST_TAPS),
        "vocab_size": c.size("vocab_size"),
    }
    rope = c.child("rope_scaling" if c.get("rope_scaling") else "rope_parameters")
    return read_rope(c, rope, family, arch, 1e6)


def alike(arch: Arch, layer: int, shapes: Shapes) -> Shapes:
    """Of layers that do not differ."""
    return shapes


def _lfm2_shapes(arch: Arch, layer: int, shapes: Shapes) -> Shapes:
    """Of layers that attend, and of those that convolve."""
    if layer < 0:
        return {"token_embd_norm.weight": shapes[NORM]}
    d = arch["embedding_length"]
    convolution: Shapes = {
        "shortconv.in_proj.weight": (3 * d, d), "shortconv.out_proj.weight": (d, d),
        "shortconv.conv.weight": (d, arch["shortconv.l_cache"]),
    }  # fmt: skip
    if arch["attention.head_count_kv"][layer]:
        return {name: shape for name, shape in shapes.items() if name not in convolution}
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(("shortconv.", "attn_"))}
    return {"attn_norm.weight": (d,), **convolution, **kept}


SHAPES: dict[str, Callable[[Arch, int, Shapes], Shapes]] = {"lfm2": _lfm2_shapes}
"""The shapes of a layer's tensors (of -1: of those outside layers), from what they would be if all were alike."""
