"""config.json of a checkpoint as GGUF metadata. A setting that changes the result is written, or refused by name where
GGUF or its readers cannot express it; unknown ones are named in one line. The truth is what transformers computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fabric.core.blocks import Floats
from fabric.fields import Fields
from fabric.huggingface.inert import OF_IMAGES, name_unknown
from fabric.huggingface.layered import (
    FULL,
    SHAPES,
    SLIDING,
    Shapes,
    Tensors,
    alike,
    layer_types,
    read_gemma4,
    read_lfm2,
    read_qwen3moe,
    read_qwen35,
    share_turned,
)
from fabric.huggingface.names import EMBEDDING, HEAD, NORM, Family, family_of_config
from fabric.huggingface.rope import read_rope
from fabric.notices import notice

MOST_HEAD_DIM = MOST_LAYERS = 1 << 16
_LAYERS_OF_27B, _LAYERS_OF_GEMMA2_27B = 62, 46  # sizes whose scores are scaled by hidden_size / heads
_SLIDING_PATTERN = 6
_OF_TEXT_AND_IMAGES = (
    "gemma3",
    "gemma4",
    "mistral3",
    "qwen3_5",
)  # types whose text model is a part of the configuration
_WITHOUT_ROPE = 4  # every so many layers of smollm3


@dataclass(frozen=True)
class Settings:
    """What config.json says of the text model: sizes, which modules have biases, the metadata of its architecture, and
    tensors that stand for settings, as the factors of RoPE's frequencies do."""

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
    tensors: dict[str, Floats]
    weights: str | None  # the file of weights that it names

    @property
    def heads(self) -> dict[str, int]:
        """Of the modules whose rows RoPE turns, and what else of heads decides about the order of tensors."""
        return {"attn_q": self.n_head, "attn_k": self.n_kv_head, **self.family.heads(self.metadata)}

    @property
    def arch(self) -> dict[str, Any]:
        """The metadata by keys without the architecture's name."""
        return {key.removeprefix(f"{self.family.architecture}."): value for key, value in self.metadata.items()}

    def shapes(self) -> Shapes:
        """GGUF's name and the shape of every tensor that the model has; an untied head included."""
        d, q, kv, f = self.width, self.n_head * self.head_dim, self.n_kv_head * self.head_dim, self.ffn
        linear = {
            "attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q), "ffn_gate": (f, d),
            "ffn_up": (f, d), "ffn_down": (d, f),
        }  # fmt: skip
        if "mlp.gate_up_proj" in self.family.names:
            linear |= {"attn_qkv": (q + 2 * kv, d), "ffn_up": (2 * f, d)}
        whole = self.family.row_norms
        norms = {"attn_q_norm": (q if whole else self.head_dim,), "attn_k_norm": (kv if whole else self.head_dim,)}
        norms |= {"ffn_sub_norm": (f,)}
        block: Shapes = {}
        for module in self.family.names.values():
            block[f"{module}.weight"] = linear.get(module, norms.get(module, (d,)))
            if module in self.biases:
                block[f"{module}.bias"] = linear[module][:1]
        own = SHAPES.get(self.family.architecture, alike)
        arch = {**self.arch, "vocab_size": self.vocab_size}
        found: Shapes = {EMBEDDING: (self.vocab_size, d)}
        for i in range(self.n_layers):
            found |= {f"blk.{i}.{name}": shape for name, shape in own(arch, i, block).items()}
        outside = own(arch, -1, {NORM: (d,)})
        return {**found, **outside, **({} if self.tied else {HEAD: (self.vocab_size, d)})}


def read_settings(config: Fields) -> Settings:
    """From config.json. Raises DataError for what is malformed, missing or not expressible."""
    family = family_of_config(config)
    names = config.get("architectures") or [""]
    told, prefix = config.values, ""
    if config.get("model_type") in _OF_TEXT_AND_IMAGES or names[0].endswith("ForConditionalGeneration"):
        text = config.child("text_config")
        text.only("model_type", *family.model_types, why=f"is no {family.architecture} model")
        tied = family.norm_offset > 0 and not family.around_keys
        tied = tied or text.flag("tie_word_embeddings", False)
        told, prefix = {**text.values, "tie_word_embeddings": config.flag("tie_word_embeddings", tied)}, text.prefix
        _refuse_foreign(config)
        name_unknown(config, OF_IMAGES)
    older = {new: told[old] for old, new in family.older.items() if old in told}
    told = {key: value for key, value in told.items() if key not in family.older}
    return _settings(family, Fields({**family.defaults, **told, **older}, config.where, prefix), config)


def _refuse_foreign(c: Fields) -> None:
    c.only("quantization_config", why="cannot be converted; convert the checkpoint that was quantized")
    c.only("is_encoder_decoder", False)
    c.only("is_causal", True)
    c.only("per_layer_config")


def _settings(family: Family, c: Fields, top: Fields) -> Settings:
    if "per_layer_config" not in family.defaults:
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
        "attention.layer_norm_rms_epsilon": c.number(family.eps, most=1.0),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if family.architecture == "llama":
        arch |= {"rope.dimension_count": head_dim, "vocab_size": c.size("vocab_size")}
    tensors = _OWN.get(family.architecture, _plain)(c, family, arch)
    settings = Settings(
        family=family, fields=c, n_layers=n_layers, width=width, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim,
        ffn=arch["feed_forward_length"], vocab_size=c.size("vocab_size"), tied=c.flag("tie_word_embeddings", False),
        biases=_biases(c, family), tensors=tensors,
        metadata={f"{family.architecture}.{key}": value for key, value in arch.items()},
        weights=top.text("transformers_weights") if "transformers_weights" in top else None,
    )  # fmt: skip
    name_unknown(c, frozenset())
    return settings


def _biases(c: Fields, family: Family) -> frozenset[str]:
    found = family.biases
    for flag in ("attention_bias", "mlp_bias"):
        if flag in family.bias_flags:
            found |= family.bias_flags[flag] if c.flag(flag, False) else frozenset()
        elif flag in family.defaults:
            c.only(flag, False, why=f"a {family.architecture} model in GGUF cannot have")
    return found


# ---- what is an architecture's own ----


def _plain(c: Fields, family: Family, arch: dict[str, Any], default_base: float = 10000.0) -> Tensors:
    """Windows that GGUF does not have, and one RoPE for all layers."""
    _window(c, family, arch)
    told = "rope_scaling" if c.get("rope_scaling") else "rope_parameters"
    return read_rope(c, c.child(told), family, arch, default_base)


def _smollm3(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """GGUF's readers take as given which layers know no positions."""
    n_layers = arch["block_count"]
    told = c.get("no_rope_layers")
    turned = [(i + 1) % c.size("no_rope_layer_interval") for i in range(n_layers)] if told is None else told
    if not isinstance(turned, list) or [bool(one) for one in turned[:n_layers]] != [
        bool((i + 1) % _WITHOUT_ROPE) for i in range(n_layers)
    ]:
        raise c.wrong("no_rope_layers", f"0 in every {_WITHOUT_ROPE}th of {n_layers} layers, as GGUF's readers have it")
    c.only("use_sliding_window", False, why="a smollm3 model in GGUF cannot have")
    if any(layer_types(c, n_layers, lambda _: False)):
        raise c.error("layer_types", f"has {SLIDING}, but a smollm3 model in GGUF has no windows")
    c.get("sliding_window")  # without effect where no layer has one
    return _plain(c, family, arch, 2e6)


def _granite(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Four constants."""
    for theirs, key in (
        ("embedding_multiplier", "embedding_scale"), ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"), ("logits_scaling", "logit_scale"),
    ):  # fmt: skip
        arch[key] = c.number(theirs)
    return _plain(c, family, arch)


def _exaone4(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """GGUF's readers know windows in the largest of these models only."""
    c.only("sliding_window", None, why="is not supported in an exaone4 model")
    if any(layer_types(c, arch["block_count"], lambda _: False)):
        raise c.error("layer_types", f"has {SLIDING}, but there is no sliding window")
    c.get("sliding_window_pattern")  # without effect where there is no window
    return _plain(c, family, arch)


def _bitnet(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """GGUF's readers know the activation by a key, and take the embedding as the head."""
    arch["hidden_activation"] = family.activations[0]
    c.only("tie_word_embeddings", True, why="a bitnet model in GGUF cannot have")
    return _plain(c, family, arch, 5e5)


def _mistral3(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """A temperature by position, in lengths of the context that YaRN began from; readers take that as given."""
    c.only("sliding_window", None, why="is not supported in a mistral3 model")
    rope = c.child("rope_scaling" if c.get("rope_scaling") else "rope_parameters")
    if "yarn" not in (rope.get("rope_type"), rope.get("type")):
        raise rope.error("rope_type", "is not yarn, which a mistral3 model has")
    arch["attention.temperature_scale"] = rope.number("llama_4_scaling_beta", above=-1.0)
    rope.get("max_position_embeddings")  # the one outside counts
    return read_rope(c, rope, family, arch, 1e6)


def _phi3(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """A part of each head is turned; every layer may have a window."""
    rope = c.child("rope_scaling" if c.get("rope_scaling") else "rope_parameters")
    arch |= {
        "rope.dimension_count": share_turned(c, rope, arch, 1.0),
        "rope.scaling.original_context_length": c.size("original_max_position_embeddings"),
        "attention.sliding_window": c.size("sliding_window", 0, least=0),
    }
    return read_rope(c, rope, family, arch, 10000.0)


# ---- attention ----


def _window(c: Fields, family: Family, arch: dict[str, Any]) -> None:
    """GGUF has no windows for these models: rows that are no longer than the window compute the same without it."""
    if "sliding_window" not in family.defaults or family.architecture in _OWN:
        return
    window, n_layers = c.size("sliding_window", 0), arch["block_count"]
    if "max_window_layers" in family.defaults:
        first = c.size("max_window_layers", least=0)
        windowed = c.flag("use_sliding_window", False) and window > 0
        sliding = any(layer_types(c, n_layers, lambda i: windowed and i >= first))
        if sliding and not windowed:
            raise c.error("layer_types", f"has {SLIDING}, but there is no sliding window")
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


def _gemma2(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Windows in every other layer, and soft caps."""
    _check_gemma(c, arch, _LAYERS_OF_GEMMA2_27B)
    n_layers = arch["block_count"]
    if layer_types(c, n_layers, lambda i: i % 2 == 0) != [i % 2 == 0 for i in range(n_layers)]:
        raise c.wrong("layer_types", f"{SLIDING} in every other layer, from the first on")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        arch[key] = c.number(key)
    c.only("tie_word_embeddings", True, why="a gemma2 model in GGUF cannot have")
    return _plain(c, family, arch)


def _gemma3(c: Fields, family: Family, arch: dict[str, Any]) -> Tensors:
    """Windows, and a RoPE for each kind of layer."""
    _check_gemma(c, arch, _LAYERS_OF_27B)
    n_layers = arch["block_count"]
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        c.only(key, why="a gemma3 model in GGUF cannot have")
    period = c.size("sliding_window_pattern", _SLIDING_PATTERN)
    windowed = layer_types(c, n_layers, lambda i: bool((i + 1) % period))
    full = [i + 1 for i, one in enumerate(windowed) if not one]
    period = full[0] if full else n_layers + 1
    if full != list(range(period, n_layers + 1, period)):
        raise c.wrong("layer_types", f"{FULL} in every n-th layer")
    if period != _SLIDING_PATTERN and not (not full and n_layers < _SLIDING_PATTERN):
        arch["attention.sliding_window_pattern"] = period
    ropes = c.child("rope_parameters")
    if ropes.values and not any(kind in ropes for kind in (FULL, SLIDING)):
        raise c.wrong("rope_parameters", f"an object with {FULL} and {SLIDING}")
    both = ropes.child(FULL)
    full_rope = Fields({**both.values, **c.child("rope_scaling").values}, both.where, both.prefix)
    tensors = read_rope(c, full_rope, family, arch, 1e6)
    sliding = ropes.child(SLIDING)
    sliding.only("rope_type", "default", why="GGUF cannot express for layers with a window")
    base = sliding.number("rope_theta", c.number("rope_local_base_freq", 10000.0))
    if base != 10000.0:
        arch["rope.freq_base_swa"] = base
    name_unknown(sliding, frozenset({"type"}))
    name_unknown(ropes, frozenset())
    return tensors


_OWN: dict[str, Callable[[Fields, Family, dict[str, Any]], Tensors]] = {
    "bitnet": _bitnet, "exaone4": _exaone4, "gemma2": _gemma2, "gemma3": _gemma3, "gemma4": read_gemma4,
    "granite": _granite, "lfm2": read_lfm2, "mistral3": _mistral3, "phi3": _phi3, "qwen35": read_qwen35,
    "qwen3moe": read_qwen3moe, "smollm3": _smollm3,
}  # fmt: skip
