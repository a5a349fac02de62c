"""config.json of a checkpoint as GGUF metadata. A setting that changes the result is written, or refused by name where
GGUF or its readers cannot express it; unknown ones are named in one line. The truth is what transformers computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabric.core.blocks import Floats
from fabric.fields import Fields, named, short
from fabric.huggingface.names import EMBEDDING, HEAD, NORM, Family, family_of_config
from fabric.notices import notice

MOST_HEAD_DIM = MOST_LAYERS = 1 << 16
_LAYERS_OF_27B, _LAYERS_OF_GEMMA2_27B = 62, 46  # sizes whose scores are scaled by hidden_size / heads
_SLIDING_PATTERN = 6
_FULL, _SLIDING = "full_attention", "sliding_attention"
_WITHOUT_ROPE = 4  # every so many layers of smollm3


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Settings of every class that change nothing that is computed here: housekeeping, training, generation, other tasks.
_INERT = _names(
    """
    _attn_implementation_autoset _name_or_path _sliding_window_pattern add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length max_window_layers min_length
    model_max_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    transformers_weights use_cache
    """
)
_OF_IMAGES = _names(
    """
    boi_token_index eoi_token_index image_token_index mm_tokens_per_image text_config vision_config
    boi_token_id eoi_token_id image_token_id
    """
)


@dataclass(frozen=True)
class Settings:
    """What config.json says of the text model: sizes, which modules have biases, the metadata of its architecture, and
    the factors of Llama-3's RoPE scaling where it has them."""

    family: Family
    fields: Fields
    n_layers: int
    width: int
    n_head: int
    n_kv_head: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    biases: frozenset[str]
    metadata: dict[str, Any]
    rope_factors: Floats | None
    weights: str | None  # the file of weights that it names

    @property
    def heads(self) -> dict[str, int]:
        """Of the modules whose rows RoPE turns."""
        return {"attn_q": self.n_head, "attn_k": self.n_kv_head}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """GGUF's name and the shape of every tensor that the model has; an untied head included."""
        d, q, kv, f = self.width, self.n_head * self.head_dim, self.n_kv_head * self.head_dim, self.ffn
        linear = {
            "attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q), "ffn_gate": (f, d),
            "ffn_up": (f, d), "ffn_down": (d, f),
        }  # fmt: skip
        whole = self.family.row_norms
        norms = {"attn_q_norm": (q if whole else self.head_dim,), "attn_k_norm": (kv if whole else self.head_dim,)}
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, d)}
        for i in range(self.n_layers):
            for module in self.family.names.values():
                vector = norms.get(module, (d,))
                found[f"blk.{i}.{module}.weight"] = linear.get(module, vector)
                if module in self.biases:
                    found[f"blk.{i}.{module}.bias"] = linear[module][:1]
        return {**found, NORM: (d,), **({} if self.tied else {HEAD: (self.vocab_size, d)})}


def read_settings(config: Fields) -> Settings:
    """From config.json. Raises DataError for what is malformed, missing or not expressible."""
    family = family_of_config(config)
    names = config.get("architectures") or [""]
    told, prefix = config.values, ""
    if config.get("model_type") == "gemma3" or names[0] == "Gemma3ForConditionalGeneration":
        text = config.child("text_config")
        told, prefix = {**text.values, "tie_word_embeddings": config.flag("tie_word_embeddings", True)}, text.prefix
        _refuse_foreign(config)
        _name_unknown(config, _OF_IMAGES)
    return _settings(family, Fields({**family.defaults, **told}, config.where, prefix), config)


def _refuse_foreign(c: Fields) -> None:
    c.only("quantization_config", why="cannot be converted; convert the checkpoint that was quantized")
    c.only("is_encoder_decoder", False)
    c.only("is_causal", True)
    c.only("per_layer_config")


def _settings(family: Family, c: Fields, top: Fields) -> Settings:
    _refuse_foreign(c)
    n_layers, width = c.size("num_hidden_layers", most=MOST_LAYERS), c.size("hidden_size")
    n_head = c.size("num_attention_heads")
    n_kv_head = c.size("num_key_value_heads", n_head)
    if "head_dim" not in c and width % n_head:
        raise c.error("hidden_size", f"is {width}, which does not divide into {n_head} heads")
    head_dim = c.size("head_dim", width // n_head, most=MOST_HEAD_DIM)
    if head_dim % 2 or n_head % n_kv_head:
        what = f"{n_head} heads of {head_dim} cannot share {n_kv_head} key heads, or have no even size"
        raise c.error("num_attention_heads", f"does not fit: {what}")
    activation = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    c.only(activation, *family.activations, why=f"a {family.architecture} model in GGUF cannot have")
    if activation not in c:
        raise c.wrong(activation, family.activations[0])
    arch: dict[str, Any] = {
        "block_count": n_layers,
        "context_length": c.size("max_position_embeddings"),
        "embedding_length": width,
        "feed_forward_length": c.size("intermediate_size"),
        "attention.head_count": n_head,
        "attention.head_count_kv": n_kv_head,
        "attention.layer_norm_rms_epsilon": c.number("rms_norm_eps", most=1.0),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if family.architecture == "llama":
        arch |= {"rope.dimension_count": head_dim, "vocab_size": c.size("vocab_size")}
    factors = _OWN.get(family.architecture, _plain)(c, family, arch)
    settings = Settings(
        family=family, fields=c, n_layers=n_layers, width=width, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim,
        ffn=c.size("intermediate_size"), vocab_size=c.size("vocab_size"), tied=c.flag("tie_word_embeddings", False),
        biases=_biases(c, family), rope_factors=factors,
        metadata={f"{family.architecture}.{key}": value for key, value in arch.items()},
        weights=top.text("transformers_weights") if "transformers_weights" in top else None,
    )  # fmt: skip
    _name_unknown(c, frozenset())
    return settings


def _name_unknown(c: Fields, known: frozenset[str]) -> None:
    """Settings that transformers' class does not have either; those that ask for nothing are passed over."""
    unknown = [key for key in c.rest() if key not in _INERT | known and c.values[key] not in (False, "", [], {})]
    if unknown:
        count = "1 setting is" if len(unknown) == 1 else f"{len(unknown)} settings are"
        notice(f"{c.where}: {count} unknown and not used: {c.prefix}{named(unknown)}")


def _biases(c: Fields, family: Family) -> frozenset[str]:
    found = family.biases
    for flag in ("attention_bias", "mlp_bias"):
        if flag in family.bias_flags:
            found |= family.bias_flags[flag] if c.flag(flag, False) else frozenset()
        elif flag in family.defaults:
            c.only(flag, False, why=f"a {family.architecture} model in GGUF cannot have")
    return found


# ---- what is an architecture's own ----


def _plain(c: Fields, family: Family, arch: dict[str, Any], default_base: float = 10000.0) -> Floats | None:
    """Windows that GGUF does not have, and one RoPE for all layers; the divisors of its frequencies."""
    _window(c, family, arch)
    told = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
    dims = arch["attention.key_length"] if family.rope_factors else 0
    return _rope(c, c.child(told), arch, dims, default_base)


def _smollm3(c: Fields, family: Family, arch: dict[str, Any]) -> Floats | None:
    """GGUF's readers take as given which layers know no positions."""
    n_layers = arch["block_count"]
    told = c.get("no_rope_layers")
    turned = [(i + 1) % c.size("no_rope_layer_interval") for i in range(n_layers)] if told is None else told
    if not isinstance(turned, list) or [bool(one) for one in turned[:n_layers]] != [
        bool((i + 1) % _WITHOUT_ROPE) for i in range(n_layers)
    ]:
        raise c.wrong("no_rope_layers", f"0 in every {_WITHOUT_ROPE}th of {n_layers} layers, as GGUF's readers have it")
    c.only("use_sliding_window", False, why="a smollm3 model in GGUF cannot have")
    if any(_layer_types(c, n_layers, lambda _: False)):
        raise c.error("layer_types", f"has {_SLIDING}, but a smollm3 model in GGUF has no windows")
    c.get("sliding_window")  # without effect where no layer has one
    return _plain(c, family, arch, 2e6)


def _granite(c: Fields, family: Family, arch: dict[str, Any]) -> Floats | None:
    """Four constants."""
    for theirs, key in (
        ("embedding_multiplier", "embedding_scale"), ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"), ("logits_scaling", "logit_scale"),
    ):  # fmt: skip
        arch[key] = c.number(theirs)
    return _plain(c, family, arch)


def _exaone4(c: Fields, family: Family, arch: dict[str, Any]) -> Floats | None:
    """GGUF's readers know windows in the largest of these models only."""
    c.only("sliding_window", None, why="is not supported in an exaone4 model")
    if any(_layer_types(c, arch["block_count"], lambda _: False)):
        raise c.error("layer_types", f"has {_SLIDING}, but there is no sliding window")
    c.get("sliding_window_pattern")  # without effect where there is no window
    return _plain(c, family, arch)


# ---- attention ----


def _layer_types(c: Fields, n_layers: int, default: Callable[[int], bool]) -> list[bool]:
    """For each layer whether it has a window: `layer_types`, or `default` of its number."""
    types = c.get("layer_types")
    if types is None:
        return [default(i) for i in range(n_layers)]
    if not isinstance(types, list) or len(types) != n_layers or not all(one in (_FULL, _SLIDING) for one in types):
        raise c.wrong("layer_types", f"{_FULL} or {_SLIDING} for each of {n_layers} layers")
    return [one == _SLIDING for one in types]


def _window(c: Fields, family: Family, arch: dict[str, Any]) -> None:
    """GGUF has no windows for these models: rows that are no longer than the window compute the same without it."""
    if "sliding_window" not in family.defaults or family.architecture in _OWN:
        return
    window, n_layers = c.size("sliding_window", 0), arch["block_count"]
    if "max_window_layers" in family.defaults:
        first = c.size("max_window_layers", least=0)
        windowed = c.flag("use_sliding_window", False) and window > 0
        sliding = any(_layer_types(c, n_layers, lambda i: windowed and i >= first))
        if sliding and not windowed:
            raise c.error("layer_types", f"has {_SLIDING}, but there is no sliding window")
        window = window if sliding else 0
    if 0 < window < arch["context_length"]:
        told = f"GGUF has no window for {family.architecture} models, so the context is cut to it"
        notice(f"{c.where}: {c.prefix}sliding_window is {window}; {told}")
        arch["context_length"] = window


def _check_gemma(c: Fields, arch: dict[str, Any], layers_of_27b: int) -> None:
    """What GGUF's readers take as given."""
    scalar = arch["attention.key_length"]
    if arch["block_count"] == layers_of_27b:
        scalar = arch["embedding_length"] // arch["attention.head_count"]
    c.only("query_pre_attn_scalar", scalar, why=f"GGUF cannot express: readers take {scalar} in such a model")
    c.only("use_bidirectional_attention", False, why="such a model in GGUF cannot have")
    arch["attention.sliding_window"] = c.size("sliding_window")


def _gemma2(c: Fields, family: Family, arch: dict[str, Any]) -> Floats | None:
    """Windows in every other layer, and soft caps."""
    _check_gemma(c, arch, _LAYERS_OF_GEMMA2_27B)
    n_layers = arch["block_count"]
    if _layer_types(c, n_layers, lambda i: i % 2 == 0) != [i % 2 == 0 for i in range(n_layers)]:
        raise c.wrong("layer_types", f"{_SLIDING} in every other layer, from the first on")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        arch[key] = c.number(key)
    c.only("tie_word_embeddings", True, why="a gemma2 model in GGUF cannot have")
    return _plain(c, family, arch)


def _gemma3(c: Fields, _: Family, arch: dict[str, Any]) -> Floats | None:
    """Windows, and a RoPE for each kind of layer."""
    _check_gemma(c, arch, _LAYERS_OF_27B)
    n_layers = arch["block_count"]
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        c.only(key, why="a gemma3 model in GGUF cannot have")
    period = c.size("sliding_window_pattern", _SLIDING_PATTERN)
    windowed = _layer_types(c, n_layers, lambda i: bool((i + 1) % period))
    full = [i + 1 for i, one in enumerate(windowed) if not one]
    period = full[0] if full else n_layers + 1
    if full != list(range(period, n_layers + 1, period)):
        raise c.wrong("layer_types", f"{_FULL} in every n-th layer")
    if period != _SLIDING_PATTERN and not (not full and n_layers < _SLIDING_PATTERN):
        arch["attention.sliding_window_pattern"] = period
    ropes = c.child("rope_parameters")
    if ropes.values and not any(kind in ropes for kind in (_FULL, _SLIDING)):
        raise c.wrong("rope_parameters", f"an object with {_FULL} and {_SLIDING}")
    both = ropes.child(_FULL)
    full_rope = Fields({**both.values, **c.child("rope_scaling").values}, both.where, both.prefix)
    factors = _rope(c, full_rope, arch, 0, 1e6)
    sliding = ropes.child(_SLIDING)
    sliding.only("rope_type", "default", why="GGUF cannot express for layers with a window")
    base = sliding.number("rope_theta", c.number("rope_local_base_freq", 10000.0))
    if base != 10000.0:
        arch["rope.freq_base_swa"] = base
    _name_unknown(sliding, frozenset({"type"}))
    _name_unknown(ropes, frozenset())
    return factors


# ---- RoPE ----


def _rope(c: Fields, rope: Fields, arch: dict[str, Any], factor_dims: int, default_base: float) -> Floats | None:
    """Writes base and scaling to `arch`; returns the divisors of frequencies where the scaling is Llama-3's, for heads
    of `factor_dims` dimensions (0: readers of this architecture know no divisors).
    """
    base = rope.number("rope_theta", c.number("rope_theta", default_base))
    if base < 1:
        raise c.error("rope_theta", f"is {base:g}, not a valid RoPE base")
    arch["rope.freq_base"] = base
    for where in (c, rope):
        where.only("partial_rotary_factor", 1.0, why="cannot be expressed in GGUF")
    old = rope.get("type")
    kind = rope.text("rope_type", old if isinstance(old, str) else "default")
    if old is not None and not isinstance(old, str):
        raise rope.wrong("type", "a text")
    factors = None
    if kind == "linear":
        arch |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.number("factor")}
    elif kind == "yarn" and "attention.sliding_window" not in arch:
        _yarn(c, rope, arch)
    elif kind == "llama3" and factor_dims:
        factors = _llama3_factors(c, rope, base, factor_dims, arch["context_length"])
    elif kind != "default":
        raise rope.error("rope_type", f"is {short(kind)}, which cannot be converted for a model of this architecture")
    _name_unknown(rope, frozenset())
    return factors


def _yarn(c: Fields, rope: Fields, arch: dict[str, Any]) -> None:
    """Scaling by YaRN: GGUF holds what the magnitude is multiplied by beyond the one that follows from the factor."""
    factor, key = rope.number("factor"), "original_max_position_embeddings"
    for name, usual in (("truncate", True), ("beta_fast", 32.0), ("beta_slow", 1.0)):
        rope.only(name, usual, why="cannot be expressed in GGUF")
    some, every = (rope.number(name, 0.0, above=-1.0) for name in ("mscale", "mscale_all_dim"))
    magnitude = own = 1.0 + 0.1 * np.log(max(factor, 1.0))
    if some and every:
        magnitude = (1.0 + some * (own - 1.0)) / (1.0 + every * (own - 1.0))
    arch |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": c.size(key, rope.size(key, arch["context_length"])),
        "rope.scaling.attn_factor": float(rope.number("attention_factor", magnitude) / own),
    }


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


_OWN: dict[str, Callable[[Fields, Family, dict[str, Any]], Floats | None]] = {
    "exaone4": _exaone4, "gemma2": _gemma2, "gemma3": _gemma3, "granite": _granite, "smollm3": _smollm3,
}  # fmt: skip
