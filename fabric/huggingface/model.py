"""A transformers checkpoint (a folder of config.json, safetensors and a tokenizer) as one GGUF model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fabric.errors import DataError, UsageError
from fabric.files import open_output
from fabric.huggingface.names import Family, family_of_class
from fabric.huggingface.safetensors import Stored, read_folder, read_json
from fabric.huggingface.tokenizer import tokenizer_metadata
from fabric.weights.codec import Floats, encode
from fabric.weights.formats import BY_NAME, F32, FORMATS
from fabric.weights.gguf import TensorSpec, write_gguf
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import encode_history, step
from fabric.weights.settings import Progress

TYPES = ("keep", "f32", "f16", "bf16")
_DROPPED_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class Converted:
    """What was written."""

    output: str
    architecture: str
    tensors: int
    dropped: list[str]  # of the checkpoint, what text models do not have
    file_bytes: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the output and where it comes from: one of the checkpoint, or values made here."""

    spec: TensorSpec
    source: Stored | Floats


def convert_model(folder: Path, output: str, type: str = "keep", progress: Progress | None = None) -> Converted:
    """Writes the GGUF of a checkpoint. `type` is that of matrices; vectors are F32.

    Raises DataError, MissingInputError, OutputError, UsageError.
    """
    if type not in TYPES:
        raise UsageError(f"--type {type}: choose from {', '.join(TYPES)}; `fabric quantize` makes smaller ones")
    config = read_json(folder / "config.json")
    names = config.get("architectures")
    family = family_of_class(str(names[0]) if isinstance(names, list) and names else "unknown", str(folder))
    text = config.get("text_config")
    settings: dict[str, Any] = {**config, **text} if isinstance(text, dict) else config
    stored, dropped = _named(family, read_folder(folder), bool(settings.get("tie_word_embeddings", family.tied)))
    if "token_embd.weight" not in stored:
        raise DataError(f"{folder}: the checkpoint has no model.embed_tokens.weight")
    metadata, rope_factors = _metadata(folder, family, settings)
    metadata |= tokenizer_metadata(folder, stored["token_embd.weight"].shape[0], settings)
    tensors = [_tensor(name, source, type) for name, source in stored.items()]
    if rope_factors is not None:
        tensors.append(_Tensor(TensorSpec("rope_freqs.weight", F32, rope_factors.shape), rope_factors))
    elements: dict[int, int] = {}
    for tensor in tensors:
        elements[tensor.spec.type] = elements.get(tensor.spec.type, 0) + math.prod(tensor.spec.shape)
    metadata["general.file_type"] = FORMATS[max(elements, key=lambda kind: elements[kind])].file_type or 0
    metadata[HISTORY] = encode_history([step("convert", {"type": type}, {"model": _hashes(folder)})])
    heads = {"attn_q": settings["num_attention_heads"], "attn_k": metadata[f"{family.architecture}.{_KV_HEADS}"]}
    with open_output(output) as out:
        size = write_gguf(out, metadata, [t.spec for t in tensors], _payloads(family, tensors, heads, progress))
    return Converted(output, family.architecture, len(tensors), dropped, size)


def _named(family: Family, stored: dict[str, Stored], tied: bool) -> tuple[dict[str, Stored], list[str]]:
    """Tensors by GGUF's names in the order of layers, and those that a text model does not have."""
    found: dict[str, Stored] = {}
    dropped = []
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if name.startswith(_DROPPED_PREFIXES):
            dropped.append(name)
            continue
        plain = name.replace("language_model.model.", "model.").replace("model.language_model.", "model.")
        plain = plain.replace("language_model.lm_head.", "lm_head.")
        ours = family.ours(plain)
        if ours is None:
            raise DataError(f"the checkpoint's tensor {name} has no place in a {family.architecture} model")
        if not (tied and ours == "output.weight"):
            found[ours] = tensor
    return dict(sorted(found.items(), key=lambda item: _place(item[0]))), dropped


def _place(name: str) -> tuple[int, int]:
    if name.startswith("blk."):
        return 1, int(name.split(".")[1])
    return (0, 0) if name.startswith("token_embd") else (2, 0)


def _tensor(name: str, source: Stored, type: str) -> _Tensor:
    kind = F32 if len(source.shape) < 2 else source.type if type == "keep" else BY_NAME[type.upper()].type
    return _Tensor(TensorSpec(name, kind, source.shape), source)


def _payloads(
    family: Family, tensors: list[_Tensor], heads: dict[str, int], progress: Progress | None
) -> Iterator[memoryview]:
    total, done = sum(t.spec.nbytes for t in tensors), 0
    for tensor in tensors:
        yield _encoded(family, tensor, heads)
        done += tensor.spec.nbytes
        if progress:
            progress(done, total)


def _encoded(family: Family, tensor: _Tensor, heads: dict[str, int]) -> memoryview:
    spec, source = tensor.spec, tensor.source
    if not isinstance(source, Stored):
        return np.ascontiguousarray(source, "<f4").data
    offset = family.norm_offset if spec.name.endswith("norm.weight") else 0.0
    if spec.type == source.type and not offset:
        raw = np.frombuffer(source.data, np.uint8).reshape(*source.shape, -1)
        return np.ascontiguousarray(family.reordered(spec.name, raw, heads)).data
    values = family.reordered(spec.name, source.values() + np.float32(offset), heads)
    return encode(spec.type, values.reshape(-1, spec.shape[-1]))


def _hashes(folder: Path) -> list[str]:
    hashes = []
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("tokenizer*")]):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        hashes.append(digest.hexdigest())
    return hashes


# ---- metadata ----

_KV_HEADS = "attention.head_count_kv"
_SLIDING_PATTERN = 6  # of Gemma-3: every sixth layer sees everything


def _metadata(folder: Path, family: Family, c: dict[str, Any]) -> tuple[dict[str, Any], Floats | None]:
    """The architecture's keys, and the factors of Llama-3's RoPE scaling where it has them."""

    def number(key: str, default: Any = None) -> Any:
        value = c.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            what = "missing" if value is None else "no positive number"
            raise DataError(f"{folder / 'config.json'}: {key} is {what}")
        return value

    heads, width = number("num_attention_heads"), number("hidden_size")
    head_dim = number("head_dim", width // heads)
    ropes = _ropes(c)
    context = number("max_position_embeddings")
    window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
    arch = {
        "block_count": number("num_hidden_layers"),
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": number("intermediate_size"),
        "attention.head_count": heads,
        _KV_HEADS: number("num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": float(number("rms_norm_eps")),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": float(ropes["base"]),
    }
    if family.architecture == "llama":
        arch |= {"rope.dimension_count": head_dim, "vocab_size": number("vocab_size")}
    if family.architecture == "gemma3":
        _check_gemma3(folder, c, ropes)
        arch["attention.sliding_window"] = number("sliding_window")
    elif window:  # no key of GGUF says it; shorter rows never meet it
        arch["context_length"] = min(context, window)
    factors = _scaling(folder, ropes["scaling"], arch, head_dim)
    keys = {f"{family.architecture}.{key}": value for key, value in arch.items()}
    name = {"general.name": folder.resolve().name}
    return {"general.architecture": family.architecture, "general.type": "model", **name, **keys}, factors


def _ropes(c: dict[str, Any]) -> dict[str, Any]:
    """Base frequency and scaling, in the old keys or in `rope_parameters`; `local` is the base of sliding layers."""
    told = c.get("rope_parameters") or {}
    full = told.get("full_attention", told)
    local = told.get("sliding_attention", {}).get("rope_theta", c.get("rope_local_base_freq", 10000.0))
    scaling = full if full.get("rope_type", "default") != "default" else c.get("rope_scaling")
    return {"base": full.get("rope_theta") or c.get("rope_theta") or 10000.0, "scaling": scaling, "local": local}


def _check_gemma3(folder: Path, c: dict[str, Any], ropes: dict[str, Any]) -> None:
    """GGUF has no keys for these: readers take them as given."""
    pattern = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", _SLIDING_PATTERN))
    layers = c.get("layer_types")
    if isinstance(layers, list):
        expected = ["sliding_attention" if (i + 1) % _SLIDING_PATTERN else "full_attention" for i in range(len(layers))]
        pattern = _SLIDING_PATTERN if layers == expected else None
    if pattern != _SLIDING_PATTERN:
        raise DataError(f"{folder}: not every sixth layer alone sees everything, as GGUF takes for granted in gemma3")
    if float(ropes["local"]) != 10000.0:
        raise DataError(f"{folder}: sliding layers with a RoPE base of {ropes['local']} cannot be told in GGUF")
    if c.get("final_logit_softcapping") or c.get("attn_logit_softcapping"):
        raise DataError(f"{folder}: a gemma3 model with soft caps cannot be told in GGUF")


def _scaling(folder: Path, scaling: Any, arch: dict[str, Any], head_dim: int) -> Floats | None:
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "default"
    if kind == "default":
        return None
    if kind == "linear":
        arch |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
        return None
    if kind == "llama3":
        return _llama3_factors(scaling, arch["rope.freq_base"], head_dim)
    raise DataError(f"{folder}: RoPE scaling '{kind}' cannot be converted")


def _llama3_factors(scaling: dict[str, Any], base: float, head_dim: int) -> Floats:
    """What each frequency is divided by: long wavelengths by `factor`, short ones by 1, a blend between.

    The Llama 3 Herd of Models, https://arxiv.org/abs/2407.21783
    """
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - share) / scaling["factor"] + share), np.float32)
