"""Vocabularies for the tests of text: shared files, SmolLM2's, and small models around them that llama.cpp loads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fabric.text.tokenizer import Tokenizer
from fabric.text.vocabulary import BYTE_TO_CHAR
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


def in_plain_characters(values: Mapping[str, Any]) -> dict[str, Any]:
    """A vocabulary of bytes as one of characters: U+2581 for a space and a token for each byte, as in Gemma 4's."""
    bytes_of = {character: byte for byte, character in BYTE_TO_CHAR.items()}

    def plain(text: str) -> str:
        """Empty for what is no characters."""
        return bytes(bytes_of[c] for c in text).decode(errors="ignore").replace(" ", "▁")

    kinds: dict[str, int] = {}
    for text, kind in zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"], strict=True):
        kinds.setdefault(text if kind != 1 else plain(text), kind)
    kinds.pop("", None)
    kinds |= {f"<0x{byte:02X}>": 6 for byte in range(256)}
    pairs = (tuple(map(plain, merge.split(" "))) for merge in values["tokenizer.ggml.merges"])
    merges = [f"{left} {right}" for left, right in pairs if left and right and left + right in kinds]
    made = {"tokens": [*kinds], "token_type": [*kinds.values()], "merges": merges}
    return {**values, **{f"tokenizer.ggml.{key}": value for key, value in made.items()}}


def write_tiny_model(path: Path, values: Mapping[str, Any], architecture: str = "llama") -> Path:
    """A model of one small layer around a vocabulary."""
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    vocab = len(values["tokenizer.ggml.tokens"])
    window = 16 if architecture == "gemma3" else 0
    shape = Shape(32, 1, 2, 1, 16, 32, vocab, architecture=architecture, window=window)
    return write_model(path, shape, "Q8_0", repeat=True, vocabulary=values)
