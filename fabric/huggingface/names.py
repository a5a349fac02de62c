"""What an architecture's tensors are called in transformers and in GGUF, how their rows are ordered in each, and what
its configuration holds where config.json is silent.

A row here is all that a new architecture needs: its class names, and what differs from the common table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.core.blocks import Floats
from fabric.errors import DataError
from fabric.fields import Fields, short

EMBEDDING, HEAD, NORM = "token_embd.weight", "output.weight", "output_norm.weight"
_TOP = {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": NORM, "lm_head.weight": HEAD}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS_AFTER = {
    "input_layernorm": "", "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_FUSED = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"), ""),
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip
_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.([a-z_.0-9]+)\.(weight|bias)")
_VECTOR_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.([A-Za-z_.]+)")
_EXPERT = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.mlp\.experts\.(0|[1-9]\d{0,5})\.([a-z_]+)\.weight")
_OURS_OF_EXPERT = re.compile(r"blk\.(\d+)\.(.+)\.weight\[(\d+)\]")  # one of the matrices that GGUF has in one tensor
_OURS_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
KEPT_F32 = ("shortconv.conv.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight")  # matrices that readers want in F32
QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
# Prefixes of the text model inside a multimodal one, as today's transformers saves it and as older releases did, and
# what stands for them in a model of text alone.
_TEXT_PREFIXES = (
    ("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
)  # fmt: skip
_OTHER_PARTS = (
    "vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
    "model.audio_tower.", "model.embed_audio.", "model.embed_vision.", "model.visual.", "mtp.",
)  # fmt: skip
_COMMON: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
    "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture: GGUF's name for it, transformers' classes and model types, and its own names beside the common
    ones. `bias_flags`: settings by which modules have biases, where stock llama.cpp computes with them; `defaults`: the
    settings of transformers' configuration class.
    """

    architecture: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any]
    layer: Mapping[str, str] = field(default_factory=dict)  # "" for a common one that it lacks
    top: Mapping[str, str] = field(default_factory=dict)  # tensors outside layers, the same
    eps: str = "rms_norm_eps"  # the setting of norms
    older: Mapping[str, str] = field(default_factory=dict)  # names of settings that count before today's
    biases: frozenset[str] = frozenset()  # modules that always have one
    bias_flags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu", "swish")
    pairs_rope: bool = False  # GGUF holds the rows of q and k for rotation in pairs, transformers for halves
    row_norms: bool = False  # norms of queries and keys are over whole rows, not over heads
    rope_factors: bool = False  # whether GGUF's readers divide frequencies by rope_freqs.weight
    own_yarn: bool = False  # YaRN has bounds of its own and a part of its effect on the magnitude
    longrope: bool = False  # a part of each head is turned, with frequencies that depend on the context
    by_merges: bool = False  # readers know its vocabulary by merges, though it has pieces as SentencePiece has
    norm_offset: float = 0.0  # added to norms: transformers adds it when it runs
    experts: Mapping[str, str] = field(default_factory=dict)  # their matrices, which a GGUF has in one tensor
    vectors: Mapping[str, str] = field(default_factory=dict)  # tensors of a layer that are neither weight nor bias
    around_keys: bool = False  # a value head for each key head in turn, transformers: those of a key head together

    @property
    def names(self) -> dict[str, str]:
        """Modules of a layer: transformers' name to GGUF's."""
        return {theirs: ours for theirs, ours in {**_LAYER, **self.layer}.items() if ours}

    @property
    def tops(self) -> dict[str, str]:
        """Tensors outside layers, the same."""
        return {theirs: ours for theirs, ours in {**_TOP, **self.top}.items() if ours}

    def ours(self, name: str) -> str | None:
        """GGUF's name of a transformers tensor, NAME[n] of the n-th expert's in NAME; None for what GGUF does not
        hold."""
        expert = _EXPERT.fullmatch(name)
        if expert and expert[3] in self.experts:
            return f"blk.{expert[1]}.{self.experts[expert[3]]}.weight[{expert[2]}]"
        if found := _IN_LAYER.fullmatch(name):
            module = self.names.get(found[2])
            return f"blk.{found[1]}.{module}.{found[3]}" if module else None
        if found := _VECTOR_IN_LAYER.fullmatch(name):
            return f"blk.{found[1]}.{self.vectors[found[2]]}" if found[2] in self.vectors else None
        return self.tops.get(name)

    def theirs(self, name: str) -> str | None:
        """transformers' name of a GGUF tensor, None when there is none."""
        expert = _OURS_OF_EXPERT.fullmatch(name)
        if expert:
            own = next(theirs for theirs, ours in self.experts.items() if ours == expert[2])
            return f"model.layers.{expert[1]}.mlp.experts.{expert[3]}.{own}.weight"
        _, _, place = name.partition("blk.")
        layer, _, module = place.partition(".")
        if vector := next((theirs for theirs, ours in self.vectors.items() if ours == module), None):
            return f"model.layers.{layer}.{vector}"
        found = _OURS_IN_LAYER.fullmatch(name)
        if not found:
            return next((theirs for theirs, ours in self.tops.items() if ours == name), None)
        names = {ours: theirs for theirs, ours in self.names.items()}
        return f"model.layers.{found[1]}.{names[found[2]]}.{found[3]}" if found[2] in names else None

    def differs(self, name: str) -> bool:
        """Whether the values of a tensor (GGUF's `name`) are not those of transformers."""
        norm = name.endswith("norm.weight") and not name.endswith("ssm_norm.weight")
        return bool(self.norm_offset and norm) or name.endswith(".ssm_a")

    def converted(self, name: str, values: Floats) -> Floats:
        """The values in GGUF of a tensor of transformers."""
        if name.endswith(".ssm_a"):
            return -np.exp(values)
        return values + np.float32(self.norm_offset) if self.differs(name) else values

    def heads(self, metadata: Mapping[str, Any]) -> dict[str, int]:
        """What `reordered` needs of GGUF's metadata beside the heads that RoPE turns."""
        keys = ("ssm.time_step_rank", "ssm.group_count", "ssm.inner_size", "ssm.state_size")
        return {key: metadata[f"{self.architecture}.{key}"] for key in keys} if self.around_keys else {}

    def reordered(
        self, name: str, values: npt.NDArray[Any], heads: Mapping[str, int], back: bool = False,
        axes: tuple[int, ...] = (0, 1),
    ) -> npt.NDArray[Any]:  # fmt: skip
        """A tensor (GGUF's `name`) in GGUF's order, or `back` in transformers' order. `axes`: those of the tensor that
        the first axes of `values` are, -1: none; a pair's A has its columns, B its rows.

        heads: of "attn_q" and "attn_k", and what else `heads` says.
        """
        module = name.split(".")[2] if name.startswith("blk.") else ""
        if self.around_keys:
            axis, order = _around_keys(module, heads)
            if axis < 0 or axis not in axes:
                return values
            return np.take(values, np.argsort(order) if back else order, axis=axes.index(axis))
        n = heads.get(module, 0) if self.pairs_rope and 0 in axes else 0
        if not n:
            return values
        if values.shape[0] % (2 * n):
            raise DataError(f"{name}: {values.shape[0]} rows do not divide into {n} heads of even size")
        rest = values.shape[1:]
        split = values.reshape(n, -1, 2, *rest) if back else values.reshape(n, 2, -1, *rest)
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(values.shape)


def _around_keys(module: str, heads: Mapping[str, int]) -> tuple[int, npt.NDArray[np.intp]]:
    """The axis of a module along which value heads lie, -1: none, and which of transformers' rows GGUF has there."""
    n, keys = heads["ssm.time_step_rank"], heads["ssm.group_count"]
    size, columns = heads["ssm.inner_size"] // n, 2 * keys * heads["ssm.state_size"]
    order = np.arange(n).reshape(keys, -1).T.ravel()
    inner = (order[:, None] * size + np.arange(size)).ravel()
    if module in ("attn_qkv", "ssm_conv1d"):
        return 0, np.concatenate((np.arange(columns), columns + inner))
    if module in ("attn_gate", "ssm_out"):
        return int(module == "ssm_out"), inner
    return (0, order) if module in ("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt") else (-1, order[:0])


_LLAMA = {
    **_COMMON, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_BIASES = {"attention_bias": False, "mlp_bias": False}
_QWEN = {
    **_COMMON, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": None,
}  # fmt: skip
LLAMA = Family(
    "llama", ("LlamaForCausalLM",), ("llama",), {**_LLAMA, **_BIASES}, pairs_rope=True, rope_factors=True,
    bias_flags={"attention_bias": QKV | {"attn_output"}, "mlp_bias": _MLP},
)  # fmt: skip
_GEMMA: dict[str, Any] = {
    **{key: value for key, value in _COMMON.items() if key != "hidden_act"}, "hidden_size": 2304,
    "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256, "attention_bias": False, "layer_types": None, "sliding_window": 4096,
    "use_bidirectional_attention": False, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_NORMS_AROUND = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
FAMILIES = (
    LLAMA,
    Family(
        "llama", ("MistralForCausalLM",), ("mistral",), pairs_rope=True, rope_factors=True,
        defaults={**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
                  "sliding_window": 4096},
    ),
    Family("qwen2", ("Qwen2ForCausalLM",), ("qwen2",), _QWEN, biases=QKV),
    Family(
        "qwen3", ("Qwen3ForCausalLM",), ("qwen3",), {**_QWEN, "head_dim": 128, "attention_bias": False},
        layer=_HEAD_NORMS,
    ),
    Family(
        "qwen3moe", ("Qwen3MoeForCausalLM",), ("qwen3_moe",),
        layer={**_HEAD_NORMS, **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ""),
               "mlp.gate": "ffn_gate_inp"},
        experts={"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"},
        defaults={**{key: value for key, value in _COMMON.items() if key != "head_dim"}, "vocab_size": 151936,
                  "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
                  "max_position_embeddings": 32768, "attention_bias": False, "use_sliding_window": False,
                  "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
                  "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": False, "mlp_only_layers": None},
    ),
    Family(
        "gemma3",
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        ("gemma3_text", "gemma3"),
        defaults={**_GEMMA, "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None,
                  "attn_logit_softcapping": None},
        layer={**_HEAD_NORMS, **_NORMS_AROUND},
        activations=_GELU,
        norm_offset=1.0,
    ),
    Family(
        "gemma2", ("Gemma2ForCausalLM",), ("gemma2",), layer=_NORMS_AROUND, activations=_GELU, norm_offset=1.0,
        defaults={**_GEMMA, "use_bidirectional_attention": None, "vocab_size": 256000,
                  "max_position_embeddings": 8192, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    ),
    Family(
        "gemma4", ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"), ("gemma4_text", "gemma4"),
        activations=_GELU, by_merges=True,
        layer={
            **_HEAD_NORMS, **_NORMS_AROUND, "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj",
            "post_per_layer_input_norm": "post_norm",
        },
        vectors={"layer_scalar": "layer_output_scale.weight"},
        top={
            "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
            "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
            "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
        },
        defaults={**{key: value for key, value in _GEMMA.items() if key != "query_pre_attn_scalar"},
                  "num_hidden_layers": 30, "vocab_size": 262144, "max_position_embeddings": 131072,
                  "sliding_window": 512, "use_bidirectional_attention": None, "final_logit_softcapping": None,
                  "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "attention_k_eq_v": False,
                  "num_kv_shared_layers": 0, "enable_moe_block": False, "use_double_wide_mlp": False,
                  "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None, "global_head_dim": 512,
                  "num_global_key_value_heads": None, "per_layer_config": None},
    ),
    Family(
        "smollm3", ("SmolLM3ForCausalLM",), ("smollm3",), pairs_rope=True,
        defaults={
            **_COMMON, **_BIASES, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008,
            "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
            "max_position_embeddings": 32768, "tie_word_embeddings": True, "no_rope_layers": None,
            "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None, "layer_types": None,
            "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004,
        },
    ),
    Family(
        "granite", ("GraniteForCausalLM",), ("granite",), pairs_rope=True, rope_factors=True,
        defaults={**_LLAMA, **_BIASES, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                  "attention_multiplier": 1.0, "logits_scaling": 1.0},
    ),
    Family(
        "olmo2", ("Olmo2ForCausalLM",), ("olmo2",), layer={**_HEAD_NORMS, **_NORMS_AFTER}, row_norms=True,
        defaults={**_LLAMA, "attention_bias": False, "vocab_size": 50304, "rms_norm_eps": 1e-5, "bos_token_id": None,
                  "eos_token_id": 50279, "pad_token_id": 1},
    ),
    Family(
        "mistral3", ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"), ("ministral3", "mistral3"),
        pairs_rope=True, own_yarn=True,
        defaults={**_COMMON, "vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34,
                  "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
                  "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11},
    ),
    Family(
        "bitnet", ("BitNetForCausalLM",), ("bitnet",), activations=("relu2",),
        layer={"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"},
        defaults={**_COMMON, "vocab_size": 128256, "hidden_size": 2560, "intermediate_size": 6912,
                  "num_hidden_layers": 30, "num_attention_heads": 20, "num_key_value_heads": 5, "hidden_act": "relu2",
                  "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "attention_bias": False,
                  "bos_token_id": 128000, "eos_token_id": 128001},
    ),
    Family(
        "phi3", ("Phi3ForCausalLM",), ("phi3",), layer=_FUSED, longrope=True,
        defaults={**_COMMON, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5,
                  "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": None,
                  "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000},
    ),
    Family(
        "lfm2", ("Lfm2ForCausalLM",), ("lfm2",), eps="norm_eps",
        older={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
        layer={
            **dict.fromkeys(_LAYER, ""), "operator_norm": "attn_norm", "ffn_norm": "ffn_norm",
            "conv.in_proj": "shortconv.in_proj", "conv.conv": "shortconv.conv", "conv.out_proj": "shortconv.out_proj",
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm",
            "self_attn.k_layernorm": "attn_k_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
            "feed_forward.w2": "ffn_down",
        },
        top={"model.norm.weight": "", "model.embedding_norm.weight": "token_embd_norm.weight"},
        defaults={**{key: value for key, value in _COMMON.items() if key != "rms_norm_eps"}, "norm_eps": 1e-5,
                  "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_key_value_heads": 8,
                  "max_position_embeddings": 128000, "tie_word_embeddings": True, "conv_bias": False,
                  "conv_L_cache": 3, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
                  "block_auto_adjust_ff_dim": True, "full_attn_idxs": None, "layer_types": None, "bos_token_id": 1,
                  "eos_token_id": 2, "pad_token_id": 0},
    ),
    Family(
        "qwen35", ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), ("qwen3_5_text", "qwen3_5"),
        norm_offset=1.0, around_keys=True,
        layer={
            **_HEAD_NORMS, "post_attention_layernorm": "post_attention_norm", "linear_attn.in_proj_qkv": "attn_qkv",
            "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta",
            "linear_attn.in_proj_a": "ssm_alpha", "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm",
            "linear_attn.out_proj": "ssm_out",
        },
        vectors={"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"},
        defaults={**_COMMON, "vocab_size": 248320, "intermediate_size": 12288, "num_attention_heads": 16,
                  "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 32768,
                  "attention_bias": False, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
                  "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
                  "layer_types": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    ),
    Family(
        "exaone4", ("Exaone4ForCausalLM",), ("exaone4",), layer={**_HEAD_NORMS, **_NORMS_AFTER}, rope_factors=True,
        defaults={**_LLAMA, "vocab_size": 102400, "intermediate_size": 16384, "num_key_value_heads": 32,
                  "rms_norm_eps": 1e-5, "bos_token_id": 0, "sliding_window": 4096, "sliding_window_pattern": 4,
                  "layer_types": None},
    ),
)  # fmt: skip


def family_of_config(config: Fields) -> Family:
    """By `architectures` and `model_type` of config.json. DataError when it is not supported, or they disagree."""
    names, told = config.get("architectures"), config.get("model_type")
    if names is not None and (not isinstance(names, list) or not names or not isinstance(names[0], str)):
        raise config.wrong("architectures", "a list of class names")
    by_class = next((family for family in FAMILIES if names and names[0] in family.classes), None)
    by_type = next((family for family in FAMILIES if isinstance(told, str) and told in family.model_types), None)
    if (names and not by_class) or (not names and not by_type):
        known = ", ".join(name for family in FAMILIES for name in family.classes)
        key = "architectures" if names else "model_type"
        raise config.error(key, f"is {short(names[0] if names else told)}; these can be converted: {known}")
    if by_class and told is not None and by_type is not by_class:
        raise config.error("model_type", f"is {short(told)}, which is not that of {short(names and names[0])}")
    family = by_class or by_type
    assert family
    return family


def family_of_architecture(name: str, where: str) -> Family:
    """By GGUF's architecture; DataError when it is not supported."""
    for family in FAMILIES:
        if name == family.architecture:
            return family
    raise DataError(f"{where}: architecture '{name}' has no counterpart in PEFT here")


def of_text_model(name: str) -> str | None:
    """A tensor's name in a model of text alone; None where it belongs to another part of a multimodal one."""
    if name.startswith(_OTHER_PARTS):
        return None
    for prefix, plain in _TEXT_PREFIXES:
        if name.startswith(prefix):
            return plain + name[len(prefix) :]
    return name
