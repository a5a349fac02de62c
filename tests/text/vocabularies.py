"""Vocabularies for the tests of text: shared files, SmolLM2's, and small models around them that llama.cpp loads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from tests.support.paths import gemma3, shared, smollm2


@lru_cache(maxsize=8)
def metadata(path: Path) -> dict[str, Any]:
    with GGUF.open(path) as gguf:
        return {key: value for key, value in gguf.metadata.items() if key.startswith(("tokenizer.", "general.name"))}


@lru_cache(maxsize=8)
def shared_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(shared(f"vocab/ggml-vocab-{name}.gguf")))


@lru_cache(maxsize=1)
def smollm2_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(metadata(smollm2()))


@lru_cache(maxsize=1)
def gemma3_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(metadata(gemma3()))


def shortened(values: Mapping[str, Any], pre: str, merges: int = 4000) -> dict[str, Any]:
    """SmolLM2's vocabulary with its first merges only, under another pre-tokenizer."""
    extra = len(values["tokenizer.ggml.tokens"]) - len(values["tokenizer.ggml.merges"])
    kept = {**values, "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": values["tokenizer.ggml.merges"][:merges]}
    for key in ("tokens", "token_type"):
        kept[f"tokenizer.ggml.{key}"] = values[f"tokenizer.ggml.{key}"][: extra + merges]
    return kept


def write_tiny_model(path: Path, values: Mapping[str, Any]) -> Path:
    """A model of one small layer around a vocabulary, for tools that load nothing less."""
    import gguf

    tokens, width = values["tokenizer.ggml.tokens"], 32
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(values["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(values["tokenizer.ggml.pre"])
    writer.add_token_list(tokens)
    writer.add_token_types(values["tokenizer.ggml.token_type"])
    if "tokenizer.ggml.scores" in values:
        writer.add_token_scores(values["tokenizer.ggml.scores"])
    else:
        writer.add_token_merges(values["tokenizer.ggml.merges"])
    if "general.name" in values:
        writer.add_name(values["general.name"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), width), np.float16))
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for name in names:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
