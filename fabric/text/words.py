"""Plain text to ids, the two ways models do it: byte-level byte pairs (GPT-2's) and SentencePiece's scored pieces.

Both cut text into words that no token reaches across and merge symbols inside each, best pair first; what a frequent
word became is remembered. Special tokens are `tokenizer.py`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np

from fabric.errors import DataError
from fabric.text.pretokenize import Splitter, find_pre

_CACHE_WORDS = 1 << 17
_CACHE_LENGTH = 64
_MOST_GLUED = 64  # tokens with a space inside them for which words are told apart; with more, a text is one word

Merge = Callable[[str], list[str]]


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
        # of equal strings the first counts, in vocabulary and merges alike
        self._ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
        self._merge = merger(dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True)), " ")
        self._ignore_merges = row.ignore_merges
        self.encode = remembering(Splitter(row), self._word)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        text = self._tokens[token_id]
        try:
            return bytes([_CHAR_TO_BYTE[c] for c in text])
        except KeyError:  # a token outside the byte alphabet, such as an unused one
            return text.encode("utf-8", "surrogateescape")

    def _word(self, word: str) -> list[int]:
        word = word.encode().decode("latin-1").translate(_BYTE_TO_CHAR)
        if (self._ignore_merges or len(word) == 1) and word in self._ids:
            return [self._ids[word]]
        ids = []
        for symbol in self._merge(word):
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            else:  # a merge whose result is no token, or a byte that the vocabulary lacks
                ids += [self._ids[c] for c in symbol if c in self._ids]
        return ids


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
            self._byte_ids = [by_text[f"<0x{byte:02X}>"] for byte in range(256)]
        except KeyError as missing:
            raise DataError(f"the model's vocabulary lacks the token {missing.args[0]} for a byte") from None
        self._bytes = {i: byte for byte, i in enumerate(self._byte_ids)}
        usable = {text: i for text, i in by_text.items() if text and i not in unreachable and i not in self._bytes}
        self._ids = {text.replace("▁", " "): i for text, i in usable.items()}
        best_first = -np.nan_to_num(np.array(scores, np.float64), nan=-np.inf)
        ranks = np.unique(best_first, return_inverse=True)[1].tolist()
        self._merge = merger({text: ranks[i] for text, i in self._ids.items()}, "")
        self.encode = remembering(_words(self._ids), self._word)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        if token_id in self._bytes:
            return bytes([self._bytes[token_id]])
        return self._tokens[token_id].replace("▁", " ").encode("utf-8", "surrogateescape")

    def _word(self, word: str) -> list[int]:
        ids: list[int] = []
        for symbol in self._merge(word):
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            else:
                ids += [self._byte_ids[byte] for byte in symbol.encode()]
        return ids


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


def merger(ranks: Mapping[str, int], joint: str) -> Merge:
    """Merges the symbols of a word, at first its characters, until no pair is left that has a rank.

    The lowest rank goes first, of equals the leftmost; ranks are looked up by left + joint + right. O(n log n).
    """

    def merge(word: str) -> list[str]:
        symbols = list(word)
        n = len(symbols)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        heap = []
        for i in range(n - 1):
            rank = ranks.get(symbols[i] + joint + symbols[i + 1])
            if rank is not None:
                heap.append((rank, i, symbols[i], symbols[i + 1]))
        heapify(heap)
        while heap:
            _, i, left, right = heappop(heap)
            j = after[i]
            if symbols[i] != left or j >= n or symbols[j] != right:
                continue  # one of the two has been merged meanwhile
            symbols[i], symbols[j] = left + right, ""
            after[i] = after[j]
            if after[j] < n:
                before[after[j]] = i
            for k in (before[i], i):
                if k >= 0 and after[k] < n:
                    rank = ranks.get(symbols[k] + joint + symbols[after[k]])
                    if rank is not None:
                        heappush(heap, (rank, k, symbols[k], symbols[after[k]]))
        return [symbol for symbol in symbols if symbol]

    return merge


def _words(texts: Mapping[str, int]) -> Callable[[str], list[str]]:
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


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {c: b for b, c in _BYTE_TO_CHAR.items()}
