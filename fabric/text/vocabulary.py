"""Plain text to ids, the ways models do it: byte-level byte pairs (GPT-2's), the same of plain characters, and
SentencePiece's scored pieces.

All cut text into words that no token reaches across and merge symbols inside each, best pair first; what a frequent
word became is remembered. Special tokens are `tokenizer.py`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from fabric.core.merging import Words
from fabric.errors import DataError
from fabric.text.pretokenize import Splitter, find_pre

_CACHE_WORDS = 1 << 17
_CACHE_LENGTH = 64
_MOST_GLUED = 64  # up to so many tokens with a space inside, words are split; with more, a text is one word


class Vocabulary(Protocol):
    """Ids of plain text, and the bytes that a token stands for."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""

    def token_bytes(self, token_id: int) -> bytes:
        """What an ordinary token adds to a text."""


class BytePairs:
    """GPT-2's: each byte is a printable character, and ranked pairs of symbols merge (the GPT-2 paper, section 2.2)."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: str) -> None:
        row = find_pre(pre)
        self._tokens = tokens
        none, merged = np.full(len(merges), -1), np.full(len(tokens), -1)
        ranks, ids = np.append(np.arange(len(merges)), merged), np.append(none, np.arange(len(tokens)))
        self._word = Words([*merges, *tokens], ranks, ids, joint=" ")
        self._whole = {text: i for i, text in enumerate(tokens)} if row.ignore_merges else {}
        self.encode = remembering(Splitter(row), self._encode_word)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        text = self._tokens[token_id]
        try:
            return bytes([_CHAR_TO_BYTE[c] for c in text])
        except KeyError:  # a token outside the byte alphabet, such as an unused one
            return text.encode("utf-8", "surrogateescape")

    def _encode_word(self, word: str) -> list[int]:
        word = word.encode().decode("latin-1").translate(BYTE_TO_CHAR)
        return [self._whole[word]] if word in self._whole else self._word(word)


class PlainPairs:
    """Ranked pairs of plain characters, as of Gemma 4; what is no token falls back to the tokens of its bytes, where
    there are such. Where spaces are spelled U+2581, that character itself is spelled in bytes, so that every text comes
    back.
    """

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: str) -> None:
        row = find_pre(pre)
        self._tokens, self._spelled = tokens, row.spelled
        by_text = {text: i for i, text in enumerate(tokens)}
        byte_ids = [by_text.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
        self._bytes = {i: byte for byte, i in enumerate(byte_ids) if i >= 0}
        split = ((merge, merge.find(" ", 1)) for merge in merges)
        pairs = (f"{self._text(merge[:at])}\0{self._text(merge[at + 1 :])}" for merge, at in split)
        usable = {self._text(text): i for text, i in by_text.items() if i not in self._bytes}
        none, merged = np.full(len(merges), -1), np.full(len(usable), -1)
        ranks, ids = np.append(np.arange(len(merges)), merged), np.append(none, np.fromiter(usable.values(), np.int64))
        self._word = Words([*pairs, *usable], ranks, ids, joint="\0", byte_ids=byte_ids)
        self._line_ends = {text: i for text, i in usable.items() if row.line_ends and not text.strip("\n")}
        self.encode = remembering(Splitter(row), self._encode_word)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        if token_id in self._bytes:
            return bytes([self._bytes[token_id]])
        return self._text(self._tokens[token_id]).encode("utf-8", "surrogateescape")

    def _text(self, spelling: str) -> str:
        return spelling.replace("▁", " ") if self._spelled else spelling

    def _encode_word(self, word: str) -> list[int]:
        return [self._line_ends[word]] if word in self._line_ends else self._word(word)


class ScoredPieces:
    """SentencePiece's BPE: two symbols merge where together they are a token, the highest score first; what is no token
    falls back to bytes. Spaces are spelled U+2581 in the vocabulary; that character itself is spelled in bytes, so
    that every text comes back.

    unreachable: ids that no text merges to. Raises DataError where a byte has no token.
    """

    def __init__(self, tokens: Sequence[str], scores: Sequence[float], unreachable: frozenset[int]) -> None:
        self._tokens = tokens
        by_text = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
        try:
            byte_ids = [by_text[f"<0x{byte:02X}>"] for byte in range(256)]
        except KeyError as missing:
            raise DataError(f"the model's vocabulary lacks the token {missing.args[0]} for a byte") from None
        self._bytes = {i: byte for byte, i in enumerate(byte_ids)}
        usable = {text: i for text, i in by_text.items() if text and i not in unreachable and i not in self._bytes}
        texts = [text.replace("▁", " ") for text in usable]
        ids = np.fromiter(usable.values(), np.int64, len(usable))
        best_first = -np.nan_to_num(np.array(scores, np.float64), nan=-np.inf)
        ranks = np.unique(best_first, return_inverse=True)[1].reshape(-1)[ids]
        self._word = Words(texts, ranks, ids, byte_ids=byte_ids)
        self.encode = remembering(_words(texts), self._word)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        if token_id in self._bytes:
            return bytes([self._bytes[token_id]])
        return self._tokens[token_id].replace("▁", " ").encode("utf-8", "surrogateescape")


def remembering(split: Callable[[str], list[str]], encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """Encodes a text word by word, remembering short words."""
    cache: dict[str, list[int]] = {}

    def miss(word: str) -> list[int]:
        ids = encode(word)
        if len(word) <= _CACHE_LENGTH:
            if len(cache) >= _CACHE_WORDS:
                cache.clear()
            cache[word] = ids
        return ids

    def encode_text(text: str) -> list[int]:
        ids: list[int] = []
        cached = cache.get
        for word in split(text):
            ids += cached(word) or miss(word)
        return ids

    return encode_text


def _words(texts: Sequence[str]) -> Callable[[str], list[str]]:
    """Cuts a text where no token of several characters reaches across: in front of spaces, and around line ends."""
    inner = re.compile(r"(?<=[^ ]) ")
    glued = [(text, found.start()) for text in texts for found in inner.finditer(text)]
    if len(glued) > _MOST_GLUED:
        return lambda text: [text]
    lines = any("\n" in text and len(text) > 1 for text in texts)
    letter = "[^ ]" if lines else r"[^ \n]"
    word = f"(?: +{letter}*|{letter}+)"
    if glued:
        places = "|".join(f"(?<={re.escape(text[:at])})(?={re.escape(text[at:])})" for text, at in glued)
        word += f"(?:(?:{places}) +{letter}*)*"
    return re.compile(word if lines else rf"{word}|\n").findall


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else the next one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {c: b for b, c in BYTE_TO_CHAR.items()}
