"""A checkpoint's tokenizer as GGUF metadata: byte-level BPE from tokenizer.json, SentencePiece from tokenizer.model, or
from a tokenizer.json that holds a SentencePiece vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabric.errors import DataError, MissingInputError
from fabric.huggingface.safetensors import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}

Metadata = dict[str, Any]


def tokenizer_metadata(folder: Path, vocab_size: int, settings: dict[str, Any]) -> Metadata:
    """The `tokenizer.*` keys, padded to `vocab_size` tokens. `settings`: config.json, for ids that it alone names.

    Raises DataError for a tokenizer of another kind, MissingInputError when there is none.
    """
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    model, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    if not fast.exists() and not model.exists():
        raise MissingInputError(f"{folder}: neither tokenizer.json nor tokenizer.model is there")
    described = read_json(fast) if fast.exists() else {}
    if model.exists():
        metadata = _sentencepiece(model)
    elif _dict(described, "model").get("byte_fallback"):
        metadata = _sentencepiece_of_json(fast, described)
    else:
        metadata = _byte_level(fast, described)
    added = _added(described, config)
    _pad(folder, metadata, added, vocab_size)
    texts: list[str] = metadata["tokenizer.ggml.tokens"]
    places = {text: i for i, text in reversed(list(enumerate(texts)))}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        found = _token_id(name, config, settings, places)
        if found is not None and found < len(texts):
            metadata[f"tokenizer.ggml.{key}_token_id"] = found
    add_bos = _adds_bos(config, described)
    if add_bos is not None:
        metadata["tokenizer.ggml.add_bos_token"] = add_bos
    template = _template(folder, config)
    if template:
        metadata["tokenizer.chat_template"] = template
    return metadata


# ---- the three kinds ----


def _byte_level(path: Path, described: dict[str, Any]) -> Metadata:
    model = _dict(described, "model")
    if model.get("type") != "BPE":
        raise DataError(f"{path}: a tokenizer of type {model.get('type')!r}; BPE and SentencePiece can be converted")
    tokens = _by_id(path, model.get("vocab"))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(path, described),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in _merges(path, model)],
    }


def _sentencepiece_of_json(path: Path, described: dict[str, Any]) -> Metadata:
    """Scores are the ranks of the merges that make a token: merging by them is merging by rank."""
    model = _dict(described, "model")
    tokens = _by_id(path, model.get("vocab"))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(path, model)):
        ranks.setdefault(left + right, rank)
    never = float(-len(ranks) - 1)
    unknown = model.get("unk_token")
    types = [BYTE if _is_byte(t) else UNKNOWN if t == unknown else NORMAL for t in tokens]
    return _spm(tokens, [float(-ranks[t]) if t in ranks else never for t in tokens], types, _prepends(described))


def _sentencepiece(path: Path) -> Metadata:
    """Reads the few fields that matter of a SentencePiece ModelProto (sentencepiece_model.proto)."""
    tokens, scores, types, prefix = [], [], [], True
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                piece = dict(_fields(value))
                tokens.append(bytes(piece.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                types.append(int(piece.get(3, NORMAL)))
            elif number == 3 and isinstance(value, bytes):
                prefix = bool(dict(_fields(value)).get(3, 1))
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, IndexError, TypeError, struct.error):
        raise DataError(f"{path}: not a SentencePiece model, or cut short") from None
    if not tokens:
        raise DataError(f"{path}: a SentencePiece model without pieces")
    return _spm(tokens, scores, types, prefix)


def _spm(tokens: list[str], scores: list[float], types: list[int], prefix: bool) -> Metadata:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol buffer: bytes, or an int for a varint."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a varint of more than 64 bits")

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if size > len(data) - at:
            raise ValueError("a field that passes the end")
        yield key >> 3, data[at : at + size]
        at += size


# ---- the parts of tokenizer.json ----


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _by_id(path: Path, vocab: object) -> list[str]:
    """Tokens in order of their ids, which must leave no gap."""
    if not isinstance(vocab, dict) or not vocab or not all(type(i) is int for i in vocab.values()):
        raise DataError(f"{path}: model.vocab does not give an id a token")
    ordered = sorted(vocab, key=lambda token: int(vocab[token]))
    if [vocab[token] for token in ordered] != list(range(len(ordered))):
        raise DataError(f"{path}: the ids of model.vocab are not 0 to {len(ordered) - 1}")
    return ordered


def _merges(path: Path, model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise DataError(f"{path}: model.merges is missing")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise DataError(f"{path}: {str(merge)[:40]!r} is no merge of two tokens")
        yield pair[0], pair[1]


def _pre_tokenizer(path: Path, described: dict[str, Any]) -> str:
    """`tokenizer.ggml.pre`, by what tokenizer.json cuts words with."""
    pre = _dict(described, "pre_tokenizer")
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps if isinstance(step, dict)]
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = _dict(steps[0], "pattern").get("Regex")
        if pattern in _PATTERNS:
            return _PATTERNS[pattern]
    raise DataError(f"{path}: words are cut in a way ({'+'.join(map(str, kinds))}) that is not known here")


def _prepends(described: dict[str, Any]) -> bool:
    """Whether a text gets a space before its first word."""
    parts = [described.get("normalizer"), described.get("pre_tokenizer")]
    for part in parts:
        steps = [part, *part.get("normalizers", []), *part.get("pretokenizers", [])] if isinstance(part, dict) else []
        for step in steps:
            if step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always"):
                return True
    return False


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _added(described: dict[str, Any], config: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """Tokens beside the vocabulary: id -> (text, whether it is a control token)."""
    rows = list(described.get("added_tokens") or [])
    for key, row in _dict(config, "added_tokens_decoder").items():
        if isinstance(row, dict) and key.isdigit():
            rows.append({**row, "id": int(key)})
    return {
        row["id"]: (row["content"], bool(row.get("special")))
        for row in rows
        if isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("content"), str)
    }


def _pad(folder: Path, metadata: Metadata, added: dict[int, tuple[str, bool]], vocab_size: int) -> None:
    """Puts added tokens in their places, and unused ones up to the rows of the embedding."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = metadata.get("tokenizer.ggml.scores")
    if len(tokens) > vocab_size or any(i >= vocab_size for i in added):
        raise DataError(f"{folder}: the tokenizer has more tokens than the embedding's {vocab_size} rows")
    for i in range(len(tokens), vocab_size):
        tokens.append(f"[PAD{i}]")
        types.append(UNUSED)
        if scores is not None:
            scores.append(-1e4)
    for i, (text, control) in added.items():
        tokens[i] = text
        if types[i] != UNKNOWN:
            types[i] = CONTROL if control else USER_DEFINED


# ---- ids, and what stands before a text ----


def _token_id(name: str, config: dict[str, Any], settings: dict[str, Any], places: dict[str, int]) -> int | None:
    told = config.get(f"{name}_token")
    text = told.get("content") if isinstance(told, dict) else told
    if isinstance(text, str) and text in places:
        return places[text]
    found = settings.get(f"{name}_token_id")
    found = found[0] if isinstance(found, list) and found else found
    return found if type(found) is int and found >= 0 else None


def _adds_bos(config: dict[str, Any], described: dict[str, Any]) -> bool | None:
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    post = _dict(described, "post_processor")
    steps = [post, *(post.get("processors") or [])]
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            single = step.get("single") or [{}]
            return "SpecialToken" in single[0]
    return False if described else None


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.exists():
        return beside.read_text(encoding="utf-8")
    told = config.get("chat_template")
    if isinstance(told, list):
        named = {row.get("name"): row.get("template") for row in told if isinstance(row, dict)}
        told = named.get("default")
    return told if isinstance(told, str) else None
