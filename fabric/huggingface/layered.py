"""Settings of checkpoints whose layers differ in more than a window, and the shapes of their layers' tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fabric.core.blocks import Floats
from fabric.fields import Fields
from fabric.huggingface.inert import name_unknown
from fabric.huggingface.names import NORM, Family
from fabric.huggingface.rope import read_rope

Tensors = dict[str, Floats]
Arch = Mapping[str, Any]  # metadata, by keys without the architecture's name
Shapes = dict[str, tuple[int, ...]]
FULL, SLIDING, CONV, NET = "full_attention", "sliding_attention", "conv", "linear_attention"
_MOST_TAPS = 8  # of a convolution
_MOST_HEAD_DIM = 1 << 16
_SHARED = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")  # what layers lack that take those of others


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


def read_gemma4(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Sizes by kind of layer, what the last layers share, and a RoPE for each kind."""
    n_layers, head_dim = arch["block_count"], arch["attention.key_length"]
    for key in ("attention_k_eq_v", "enable_moe_block"):
        c.only(key, False, why="cannot be converted")
    c.only("use_bidirectional_attention", None, "vision", why="such a model in GGUF cannot have")
    for key in ("num_experts", "top_k_experts", "moe_intermediate_size", "num_global_key_value_heads"):
        c.get(key)  # without effect where those flags are off
    windowed = layer_types(c, n_layers, lambda i: bool((i + 1) % 6))
    windowed[-1] = False  # as transformers has it, whatever its configuration says
    shared = c.size("num_kv_shared_layers", least=0, most=n_layers - 1)
    per_layer = c.size("hidden_size_per_layer_input", 0, least=0)
    if per_layer:
        c.only("vocab_size_per_layer_input", c.size("vocab_size"), why="is not vocab_size")
    arch["final_logit_softcapping"] = c.number("final_logit_softcapping", 0.0, above=-1.0)  # readers take 30 for none
    whole = _whole_head_dim(c, windowed, head_dim)
    if c.flag("use_double_wide_mlp", False) and shared:
        ffn = arch["feed_forward_length"]
        arch["feed_forward_length"] = [ffn if i < n_layers - shared else 2 * ffn for i in range(n_layers)]
    ropes = c.child("rope_parameters")
    full, local = ropes.child(FULL), ropes.child(SLIDING)
    full.only("rope_type", "proportional", "default", why="cannot be converted for a gemma4 model")
    local.only("rope_type", "default", why="GGUF cannot express for layers with a window")
    for rope in (full, local):
        rope.only("factor", 1.0, why="cannot be expressed in GGUF")
    local.only("partial_rotary_factor", 1.0, why="cannot be expressed in GGUF")
    share = full.number("partial_rotary_factor", 1.0 if full.values else 0.25, most=1.0)
    share = 1.0 if full.get("rope_type") == "default" else share
    turned = np.arange(whole // 2) < int(share * whole // 2)
    arch |= {
        "attention.key_length": whole, "attention.value_length": whole, "rope.dimension_count": whole,
        "attention.key_length_swa": head_dim, "attention.value_length_swa": head_dim,
        "rope.dimension_count_swa": head_dim, "rope.freq_base": full.number("rope_theta", 1e6),
        "rope.freq_base_swa": local.number("rope_theta", 1e4), "attention.sliding_window": c.size("sliding_window"),
        "attention.sliding_window_pattern": windowed, "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": per_layer,
    }  # fmt: skip
    for fields in (full, local):
        name_unknown(fields, frozenset())
    name_unknown(ropes, frozenset())
    return {"rope_freqs.weight": np.where(turned, 1.0, 1e30).astype(np.float32)}  # 1e30: as good as not turned


def _whole_head_dim(c: Fields, windowed: list[bool], head_dim: int) -> int:
    """Of layers that see all: by one setting, or as transformers saves it, layer by layer."""
    sizes = c.child("per_layer_config")
    if not sizes.values:
        return c.size("global_head_dim", most=_MOST_HEAD_DIM)
    c.get("global_head_dim")  # which is the same, or not there
    every = [sizes.child(str(i)) for i in range(len(windowed))]
    dims = [one.size("head_dim", head_dim, most=_MOST_HEAD_DIM) for one in every]
    whole = {dim for dim, has_window in zip(dims, windowed, strict=True) if not has_window}
    local = {dim for dim, has_window in zip(dims, windowed, strict=True) if has_window}
    if len(whole) > 1 or local - {head_dim} or any(one.rest() for one in every):
        raise c.error("per_layer_config", "gives layers sizes that a gemma4 model in GGUF cannot have")
    return whole.pop()


def _gemma4_shapes(arch: Arch, layer: int, shapes: Shapes) -> Shapes:
    """By kind of layer; those that share keys and values have none."""
    d, per_layer, n_layers = arch["embedding_length"], arch["embedding_length_per_layer_input"], arch["block_count"]
    if layer < 0:
        tables: Shapes = {
            "per_layer_token_embd.weight": (arch["vocab_size"], n_layers * per_layer),
            "per_layer_model_proj.weight": (n_layers * per_layer, d), "per_layer_proj_norm.weight": (per_layer,),
        }  # fmt: skip
        return {**shapes, **(tables if per_layer else {})}
    head_dim = arch[
        "attention.key_length_swa" if arch["attention.sliding_window_pattern"][layer] else "attention.key_length"
    ]
    q, kv, ffn = (
        arch["attention.head_count"] * head_dim,
        arch["attention.head_count_kv"] * head_dim,
        arch["feed_forward_length"],
    )
    ffn = ffn[layer] if isinstance(ffn, list) else ffn
    own: Shapes = {
        "attn_q.weight": (q, d), "attn_k.weight": (kv, d), "attn_v.weight": (kv, d), "attn_output.weight": (d, q),
        "attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,), "ffn_gate.weight": (ffn, d),
        "ffn_up.weight": (ffn, d), "ffn_down.weight": (d, ffn), "inp_gate.weight": (per_layer, d),
        "proj.weight": (d, per_layer),
    }  # fmt: skip
    lacking: tuple[str, ...] = _SHARED if layer >= n_layers - arch["attention.shared_kv_layers"] else ()
    lacking += () if per_layer else ("inp_gate.weight", "proj.weight", "post_norm.weight")
    kept = {name: own.get(name, shape) for name, shape in shapes.items() if name not in lacking}
    return {**kept, "layer_output_scale.weight": (1,)}


def unused(arch: Arch, name: str) -> bool:
    """Whether a checkpoint may hold a tensor (GGUF's name) that transformers passes over too."""
    parts = name.split(".", 2)
    first = arch["block_count"] - arch.get("attention.shared_kv_layers", 0)
    return parts[0] == "blk" and int(parts[1]) >= first and parts[2] in _SHARED


def read_qwen3moe(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Experts in every layer; GGUF's readers take as given that the weights of a token's experts sum to 1."""
    c.only("norm_topk_prob", True, why="GGUF cannot express: readers take true in such a model")
    c.only("decoder_sparse_step", 1, why="a qwen3moe model in GGUF cannot have")
    if c.get("mlp_only_layers"):
        raise c.error("mlp_only_layers", "names layers without experts, which a qwen3moe model in GGUF cannot have")
    c.only("use_sliding_window", False, why="a qwen3moe model in GGUF cannot have")
    c.get("sliding_window")  # without effect then
    arch |= {
        "expert_count": c.size("num_local_experts", c.size("num_experts")),
        "expert_used_count": c.size("num_experts_per_tok"),
        "expert_feed_forward_length": c.size("moe_intermediate_size"),
    }
    told = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
    return read_rope(c, c.child(told), family, arch, 10000.0)


def share_turned(c: Fields, rope: Fields, arch: Arch, default: float) -> int:
    """The dimensions of a head that RoPE turns."""
    share = rope.number("partial_rotary_factor", c.number("partial_rotary_factor", default), most=1.0)
    rotated = int(arch["attention.key_length"] * share)
    if rotated < 2 or rotated % 2:
        raise rope.error("partial_rotary_factor", f"is {share:g}: {rotated} dimensions of a head cannot be turned")
    return rotated


def read_qwen35(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Which layers attend, and the sizes of the delta nets that the others are. Sections of positions, of which there
    are three beside images, are turned by the same position in text."""
    n_layers, period = arch["block_count"], c.size("full_attention_interval", 4)
    nets = layer_types(c, n_layers, lambda i: bool((i + 1) % period), NET)
    attends = [i + 1 for i, one in enumerate(nets) if not one]
    period = attends[0] if attends else n_layers + 1
    if attends != list(range(period, n_layers + 1, period)):
        raise c.wrong("layer_types", f"{FULL} in every n-th layer")
    size, key_heads = c.size("linear_key_head_dim", most=256), c.size("linear_num_key_heads")
    heads = c.size("linear_num_value_heads")
    c.only("linear_value_head_dim", size, why="GGUF cannot express where keys have another size")
    if heads % key_heads:
        raise c.error("linear_num_value_heads", f"is {heads}, which {key_heads} key heads cannot share")
    rope = c.child("rope_scaling" if c.get("rope_scaling") else "rope_parameters")
    rotated = share_turned(c, rope, arch, 0.25)
    rope.get("mrope_section"), rope.get("mrope_interleaved")  # without effect on text
    first = (rotated // 2 + 2) // 3
    arch |= {
        "rope.dimension_count": rotated,
        "rope.dimension_sections": [first, first, rotated // 2 - 2 * first, 0],
        "full_attention_interval": period,
        "ssm.conv_kernel": c.size("linear_conv_kernel_dim", most=_MOST_TAPS),
        "ssm.state_size": size, "ssm.group_count": key_heads, "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * size,
    }  # fmt: skip
    return read_rope(c, rope, family, arch, 10000.0)


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


def _qwen3moe_shapes(arch: Arch, layer: int, shapes: Shapes) -> Shapes:
    """With a router, and the matrices of each expert, which become one tensor."""
    if layer < 0:
        return shapes
    experts, d, f = arch["expert_count"], arch["embedding_length"], arch["expert_feed_forward_length"]
    own = {"ffn_gate_exps": (f, d), "ffn_up_exps": (f, d), "ffn_down_exps": (d, f)}
    found = {**shapes, "ffn_gate_inp.weight": (experts, d)}
    for module, shape in own.items():
        found |= {f"{module}.weight[{n}]": shape for n in range(experts)}
    return found


def _qwen35_shapes(arch: Arch, layer: int, shapes: Shapes) -> Shapes:
    """Of layers that attend, and of delta nets."""
    d, inner, heads = arch["embedding_length"], arch["ssm.inner_size"], arch["ssm.time_step_rank"]
    columns = 2 * arch["ssm.group_count"] * arch["ssm.state_size"] + inner
    net: Shapes = {
        "attn_qkv.weight": (columns, d), "attn_gate.weight": (inner, d), "ssm_beta.weight": (heads, d),
        "ssm_alpha.weight": (heads, d), "ssm_conv1d.weight": (columns, arch["ssm.conv_kernel"]),
        "ssm_norm.weight": (inner // heads,), "ssm_out.weight": (d, inner),
    }  # fmt: skip
    if layer < 0:
        return shapes
    if (layer + 1) % arch["full_attention_interval"]:
        kept = {name: shape for name, shape in shapes.items() if name.startswith(("attn_norm", "post_", "ffn_"))}
        return {**kept, **net, "ssm_a": (heads,), "ssm_dt.bias": (heads,)}
    kept = {name: shape for name, shape in shapes.items() if name not in net}
    return {**kept, "attn_q.weight": (2 * shapes["attn_q.weight"][0], d)}


SHAPES: dict[str, Callable[[Arch, int, Shapes], Shapes]] = {
    "gemma4": _gemma4_shapes, "lfm2": _lfm2_shapes, "qwen35": _qwen35_shapes, "qwen3moe": _qwen3moe_shapes,
}  # fmt: skip
"""The shapes of a layer's tensors (of -1: of those outside layers), from what they would be if all were alike."""
