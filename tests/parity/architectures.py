"""How transformers calls what a GGUF holds: one row an architecture, all that `reference.py` needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import transformers

Get = Callable[..., Any]
"""Metadata by its key without the architecture's name, with an optional default."""

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HALVES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Architecture:
    """The classes of transformers and what they are told beyond what every decoder is; norms by their GGUF names."""

    config: Any
    causal: Any
    norms: Mapping[str, str]
    settings: Callable[[Get], dict[str, Any]]
    """The configuration's own part, the kinds of RoPE included."""
    ropes: Mapping[str, str]
    """Buffers of inverse frequencies, and the metadata key of the base of each. Only rope.freq_base is ever scaled."""
    interleaved: bool = False
    """Rows of queries and keys lie in pairs in the GGUF and in halves in transformers."""
    logits: Callable[[Any, Any], Any] = lambda config, logits: logits
    """What transformers makes of the head's output."""
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)
    """Matrices of a block."""
    top: Mapping[str, str] = field(default_factory=dict)
    """Weights outside blocks beyond the usual ones."""
    scalars: Mapping[str, str] = field(default_factory=dict)
    """Buffers of one number in each block, which do not train."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Weights of a block that are no module's: of experts (experts, out, in). [0] and [1] are halves of the rows."""
    vectors: Mapping[str, str] = field(default_factory=dict)
    """Norms, biases and convolutions of a block that are the same in both, by their whole names."""
    minus_exp: Mapping[str, str] = field(default_factory=dict)
    """Vectors that are minus the exponentials of those of transformers. They do not train."""
    orders: Callable[[Get], Mapping[str, tuple[int, Any]]] = lambda get: {}
    """Of matrices and vectors of a block: the axis along which the GGUF has another order, and which of transformers'
    rows or columns stand there."""
    norm_offset: float = 0.0
    """What transformers adds to a norm's weight when it runs; in a GGUF it is in the weight."""


def _plain(get: Get) -> dict[str, Any]:
    theta = get("rope.freq_base", 10000.0)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "attention_bias": False}


def _experts(get: Get) -> dict[str, Any]:
    return {
        "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
    }


def _gemma3(get: Get) -> dict[str, Any]:
    kinds = {"sliding_attention": get("rope.freq_base_swa", 10000.0), "full_attention": get("rope.freq_base")}
    return {
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in kinds.items()},
        "query_pre_attn_scalar": get("attention.key_length"),
        "sliding_window": get("attention.sliding_window"),
        "sliding_window_pattern": get("attention.sliding_window_pattern", 6),
    }


def _gemma2(get: Get) -> dict[str, Any]:
    return {
        **_plain(get),
        "query_pre_attn_scalar": get("attention.key_length"),
        "sliding_window": get("attention.sliding_window"),
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
    }


def _granite(get: Get) -> dict[str, Any]:
    return {
        **_plain(get),
        "embedding_multiplier": get("embedding_scale"),
        "residual_multiplier": get("residual_scale"),
        "attention_multiplier": get("attention.scale"),
        "logits_scaling": get("logit_scale"),
    }


def _gemma4(get: Get) -> dict[str, Any]:
    window, full = "sliding_attention", "full_attention"
    ffn = get("feed_forward_length")
    return {
        "rope_parameters": {
            window: {"rope_type": "default", "rope_theta": get("rope.freq_base_swa")},
            full: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": get("rope.freq_base")},
        },
        "intermediate_size": min(ffn) if isinstance(ffn, list) else ffn,
        "use_double_wide_mlp": isinstance(ffn, list),
        "head_dim": get("attention.key_length_swa"),
        "global_head_dim": get("attention.key_length"),
        "layer_types": [window if one else full for one in get("attention.sliding_window_pattern")],
        "sliding_window": get("attention.sliding_window"),
        "num_kv_shared_layers": get("attention.shared_kv_layers"),
        "vocab_size_per_layer_input": get("vocab_size"),
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input"),
        "final_logit_softcapping": get("final_logit_softcapping"),
    }


def _qwen35(get: Get) -> dict[str, Any]:
    period, heads = get("full_attention_interval"), get("ssm.time_step_rank")
    kinds = ("full_attention" if (i + 1) % period == 0 else "linear_attention" for i in range(get("block_count")))
    rotated = get("rope.dimension_count")
    return {
        "attention_bias": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": get("rope.freq_base"),
            "partial_rotary_factor": rotated / get("attention.key_length"),
            "mrope_section": get("rope.dimension_sections")[:3],
        },
        "layer_types": list(kinds),
        "linear_conv_kernel_dim": get("ssm.conv_kernel"),
        "linear_key_head_dim": get("ssm.state_size"),
        "linear_value_head_dim": get("ssm.inner_size") // heads,
        "linear_num_key_heads": get("ssm.group_count"),
        "linear_num_value_heads": heads,
    }


def _around_keys(get: Get) -> dict[str, tuple[int, Any]]:
    """Heads of values stand in transformers beside the key head that they read, in a GGUF one for each in turn."""
    heads, keys = get("ssm.time_step_rank"), get("ssm.group_count")
    size, key_columns = get("ssm.inner_size") // heads, keys * get("ssm.state_size")
    order = np.arange(heads).reshape(keys, -1).T.ravel()
    inner = (order[:, None] * size + np.arange(size)).ravel()
    mixed = np.concatenate((np.arange(2 * key_columns), 2 * key_columns + inner))
    rows = {"attn_qkv": mixed, "ssm_conv1d": mixed, "attn_gate": inner}
    rows |= dict.fromkeys(("ssm_beta", "ssm_alpha", "ssm_a", "ssm_dt"), order)
    return {**{name: (0, order) for name, order in rows.items()}, "ssm_out": (1, inner)}


def _lfm2(get: Get) -> dict[str, Any]:
    return {
        **_plain(get),
        "norm_eps": get("attention.layer_norm_rms_epsilon"),
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": get("shortconv.l_cache"),
        "layer_types": ["full_attention" if heads else "conv" for heads in get("attention.head_count_kv")],
    }


def _mistral3(get: Get) -> dict[str, Any]:
    def scaling(key: str) -> Any:
        return get(f"rope.scaling.{key}")

    return {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": get("rope.freq_base"),
            "factor": scaling("factor"),
            "original_max_position_embeddings": scaling("original_context_length"),
            "beta_fast": scaling("yarn_beta_fast"),
            "beta_slow": scaling("yarn_beta_slow"),
            "mscale": 1.0,
            "mscale_all_dim": scaling("yarn_log_multiplier"),
            "llama_4_scaling_beta": get("attention.temperature_scale"),
        },
    }


def _phi3(get: Get) -> dict[str, Any]:
    """The factors of LongRoPE are tensors: `reference.py` sets what they come to."""
    rotated, original = get("rope.dimension_count"), get("rope.scaling.original_context_length")
    window = {"sliding_window": get("attention.sliding_window")}
    if original is None:
        return {**_plain(get), **window}
    return {
        **window,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": get("rope.freq_base"),
            "partial_rotary_factor": rotated / get("attention.key_length"),
            "original_max_position_embeddings": original,
            "attention_factor": get("rope.scaling.attn_factor"),
            **dict.fromkeys(("short_factor", "long_factor"), [1.0] * (rotated // 2)),
        },
        "original_max_position_embeddings": original,
    }


ARCHITECTURES = {
    "llama": Architecture(
        config=transformers.LlamaConfig,
        causal=transformers.LlamaForCausalLM,
        norms=_HALVES,
        settings=_plain,
        ropes={"inv_freq": "rope.freq_base"},
        interleaved=True,
    ),
    "qwen2": Architecture(
        config=transformers.Qwen2Config,
        causal=transformers.Qwen2ForCausalLM,
        norms=_HALVES,
        settings=_plain,
        ropes={"inv_freq": "rope.freq_base"},
    ),
    "qwen3": Architecture(
        config=transformers.Qwen3Config,
        causal=transformers.Qwen3ForCausalLM,
        norms={**_HALVES, **_HEADS},
        settings=_plain,
        ropes={"inv_freq": "rope.freq_base"},
    ),
    "gemma3": Architecture(
        config=transformers.Gemma3TextConfig,
        causal=transformers.Gemma3ForCausalLM,
        norms={
            "attn_norm": "input_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            **_AFTER,
            **_HEADS,
        },
        settings=_gemma3,
        ropes={"full_attention_inv_freq": "rope.freq_base", "sliding_attention_inv_freq": "rope.freq_base_swa"},
        norm_offset=1.0,
    ),
    "smollm3": Architecture(
        config=transformers.SmolLM3Config,
        causal=transformers.SmolLM3ForCausalLM,
        norms=_HALVES,
        settings=_plain,
        ropes={"inv_freq": "rope.freq_base"},
        interleaved=True,
    ),
    "olmo2": Architecture(
        config=transformers.Olmo2Config,
        causal=transformers.Olmo2ForCausalLM,
        norms={**_AFTER, **_HEADS},
        settings=_plain,
        ropes={"inv_freq": "rope.freq_base"},
    ),
    "exaone4": Architecture(
        config=transformers.Exaone4Config,
        causal=transformers.Exaone4ForCausalLM,
        norms={**_AFTER, **_HEADS},
        settings=lambda get: {
            **_plain(get),
            "sliding_window": None,
            "layer_types": ["full_attention"] * get("block_count"),
        },
        ropes={"inv_freq": "rope.freq_base"},
    ),
    "gemma2": Architecture(
        config=transformers.Gemma2Config,
        causal=transformers.Gemma2ForCausalLM,
        norms={"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm", **_AFTER},
        settings=_gemma2,
        ropes={"inv_freq": "rope.freq_base"},
        logits=lambda config, logits: config.final_logit_softcapping * (logits / config.final_logit_softcapping).tanh(),
        norm_offset=1.0,
    ),
    "mistral3": Architecture(
        config=transformers.Ministral3Config,
        causal=transformers.Ministral3ForCausalLM,
        norms=_HALVES,
        settings=_mistral3,
        ropes={"inv_freq": "rope.freq_base"},
        interleaved=True,
    ),
    "bitnet": Architecture(
        config=transformers.BitNetConfig,
        causal=transformers.BitNetForCausalLM,
        norms={**_HALVES, "attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
        settings=lambda get: {**_plain(get), "hidden_act": get("hidden_activation")},
        ropes={"inv_freq": "rope.freq_base"},
    ),
    "gemma4": Architecture(
        config=transformers.Gemma4TextConfig,
        causal=transformers.Gemma4ForCausalLM,
        norms={
            "attn_norm": "input_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            **_AFTER,
            **_HEADS,
            "post_norm": "post_per_layer_input_norm",
        },
        settings=_gemma4,
        ropes={"full_attention_inv_freq": "rope.freq_base", "sliding_attention_inv_freq": "rope.freq_base_swa"},
        scalars={"layer_output_scale": "layer_scalar"},
        logits=lambda config, logits: config.final_logit_softcapping * (logits / config.final_logit_softcapping).tanh(),
        modules={**MODULES, "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection"},
        top={
            "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
            "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
            "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
        },
    ),
    "qwen35": Architecture(
        config=transformers.Qwen3_5TextConfig,
        causal=transformers.Qwen3_5ForCausalLM,
        norms={"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", **_HEADS},
        settings=_qwen35,
        ropes={"inv_freq": "rope.freq_base"},
        modules={
            **MODULES,
            "attn_qkv": "linear_attn.in_proj_qkv",
            "attn_gate": "linear_attn.in_proj_z",
            "ssm_beta": "linear_attn.in_proj_b",
            "ssm_alpha": "linear_attn.in_proj_a",
            "ssm_out": "linear_attn.out_proj",
        },
        vectors={
            "ssm_norm.weight": "linear_attn.norm.weight",
            "ssm_conv1d.weight": "linear_attn.conv1d.weight",
            "ssm_dt.bias": "linear_attn.dt_bias",
        },
        minus_exp={"ssm_a": "linear_attn.A_log"},
        orders=_around_keys,
        norm_offset=1.0,
    ),
    "lfm2": Architecture(
        config=transformers.Lfm2Config,
        causal=transformers.Lfm2ForCausalLM,
        norms={
            "attn_norm": "operator_norm",
            "ffn_norm": "ffn_norm",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "shortconv.conv": "conv.conv",
        },
        settings=_lfm2,
        ropes={"inv_freq": "rope.freq_base"},
        modules={
            **{name: theirs for name, theirs in MODULES.items() if name.startswith("attn")},
            "attn_output": "self_attn.out_proj",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
        },
        top={"token_embd_norm.weight": "model.embedding_norm.weight"},
    ),
    "phi3": Architecture(
        config=transformers.Phi3Config,
        causal=transformers.Phi3ForCausalLM,
        norms=_HALVES,
        settings=_phi3,
        ropes=dict.fromkeys(("inv_freq", "original_inv_freq", "long_inv_freq"), "rope.freq_base"),
        modules={
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "qwen3moe": Architecture(
        config=transformers.Qwen3MoeConfig,
        causal=transformers.Qwen3MoeForCausalLM,
        norms={**_HALVES, **_HEADS},
        settings=lambda get: {**_plain(get), "norm_topk_prob": True, **_experts(get)},
        ropes={"inv_freq": "rope.freq_base"},
        modules={ours: theirs for ours, theirs in MODULES.items() if ours.startswith("attn")},
        parameters={
            "ffn_gate_inp": "mlp.gate.weight",
            "ffn_gate_exps": "mlp.experts.gate_up_proj[0]",
            "ffn_up_exps": "mlp.experts.gate_up_proj[1]",
            "ffn_down_exps": "mlp.experts.down_proj",
        },
    ),
    "granite": Architecture(
        config=transformers.GraniteConfig,
        causal=transformers.GraniteForCausalLM,
        norms=_HALVES,
        settings=_granite,
        ropes={"inv_freq": "rope.freq_base"},
        logits=lambda config, logits: logits / config.logits_scaling,
        interleaved=True,
    ),
}
