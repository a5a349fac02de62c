"""tokenizer.model: a SentencePiece ModelProto (sentencepiece_model.proto), of which the few fields that matter are
read. Models that are no BPE, and normalization that GGUF cannot express, are refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from fabric.errors import DataError
from fabric.huggingface.folder import Folder
from fabric.huggingface.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_KNOWN = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BPE, _KINDS, _SUFFIXED = 3, 2, {1: "Unigram", 3: "Word", 4: "Char"}, 24
_IDS = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}  # of the trainer: field, default
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPED = 2, 3, 4, 5


def read_sentencepiece(folder: Folder, name: str) -> Vocabulary:
    """The vocabulary of a tokenizer.model. Raises DataError, MissingInputError."""
    where = str(folder.path / name)
    tokens: list[str] = []
    scores, types = [], []
    prefix = True
    trainer: dict[int, Any] = {}
    try:
        for number, value in _fields(folder.bytes(name)):
            if number == _PIECE and isinstance(value, bytes):
                piece = dict(_fields(value))
                tokens.append(bytes(piece.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                types.append(int(piece.get(3, NORMAL)))
            elif number == _TRAINER and isinstance(value, bytes):
                trainer = dict(_fields(value))
                _check_trainer(where, trainer)
            elif number == _NORMALIZER and isinstance(value, bytes):
                prefix = _read_normalizer(where, dict(_fields(value)))
    except (ValueError, IndexError, TypeError, struct.error):
        raise DataError(f"{where}: not a SentencePiece model, or cut short") from None
    if not tokens:
        raise DataError(f"{where}: a SentencePiece model without pieces")
    if not all(kind in _KNOWN for kind in types):
        raise DataError(f"{where}: a piece is of an unknown type")
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    ids = {f"{name}_token": trainer.get(number, usual) for name, (number, usual) in _IDS.items()}
    special = {name: tokens[i] for name, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}
    return Vocabulary(
        where, metadata, dict(enumerate(tokens)), dict(enumerate(types)), dict(enumerate(scores)), renames=True,
        special=special,
    )  # fmt: skip


def _check_trainer(where: str, trainer: dict[int, Any]) -> None:
    kind = trainer.get(_MODEL_TYPE, 1)
    if kind != _BPE:
        raise DataError(f"{where}: a {_KINDS.get(kind, 'unknown')} model; only BPE models can be converted")
    if trainer.get(_SUFFIXED):
        raise DataError(f"{where}: spaces as suffixes of words cannot be expressed in GGUF")


def _read_normalizer(where: str, spec: dict[int, Any]) -> bool:
    """Whether a text gets a space in front."""
    if spec.get(_CHARSMAP):
        name = bytes(spec.get(1, b"")).decode("utf-8", "replace")
        raise DataError(f"{where}: the normalization {name!r} cannot be expressed in GGUF")
    if spec.get(_EXTRA_SPACES, 1) or not spec.get(_ESCAPED, 1):
        raise DataError(f"{where}: a model that removes or keeps spaces in its own way cannot be expressed in GGUF")
    return bool(spec.get(_DUMMY_PREFIX, 1))


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
