"""A tokenizer built from a GGUF's metadata alone: byte-level BPE as GPT-2 introduced it.

Ids match stock llama.cpp. Offsets count characters of the given text, so that a span of text becomes a set of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from fabric.errors import DataError
from fabric.text.pretokenize import Splitter, find_pre

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_CACHE_WORDS = 1 << 17
_CACHE_LENGTH = 64
# Names under which models spell the tokens that end an answer, for files whose metadata name only one of them.
_END_NAMES = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
)
_END_NAMES |= {"<|EOT|>", "<EOT>", "<｜end▁of▁sentence｜>"}

Int64Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Pieces:
    """Tokens of a text and the characters each one covers: [starts[i], ends[i]).

    A character whose bytes are spread over several tokens is covered by each of them.
    """

    ids: list[int]
    starts: Int64Array
    ends: Int64Array


class Tokenizer:
    """Text to ids and back. Build one with `from_gguf`."""

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        merges: Sequence[str],
        pre: str,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        eot_id: int | None = None,
        pad_id: int | None = None,
        add_bos: bool | None = None,
        chat_template: str | None = None,
    ) -> None:
        row = find_pre(pre)
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.bos_id, self.eos_id, self.eot_id, self.pad_id = bos_id, eos_id, eot_id, pad_id
        self.add_bos = (row.add_bos if add_bos is None else add_bos) and bos_id is not None
        self.chat_template = chat_template
        # of equal strings the first counts, in vocabulary and merges alike
        self._ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._split = Splitter(row)
        self._ignore_merges = row.ignore_merges
        self._cache: dict[str, list[int]] = {}
        self._control = {tokens[i]: i for i, kind in enumerate(types) if kind == _CONTROL and tokens[i]}
        self._user = {tokens[i]: i for i, kind in enumerate(types) if kind == _USER_DEFINED and tokens[i]}
        self._special_ids = frozenset(self._control.values()) | frozenset(self._user.values())
        self._find_user = _Finder(self._user)
        self._find_special = _Finder(self._user | self._control)
        self._lengths: Int64Array | None = None
        named = (self._ids[name] for name in _END_NAMES if name in self._control)
        self.end_ids = frozenset(i for i in (*named, eos_id, eot_id) if i is not None)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.*` keys of a GGUF's metadata; DataError where they are missing, wrong or unsupported."""
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            known = "has no tokenizer (tokenizer.ggml.model)" if model is None else f"has a tokenizer of kind {model!r}"
            raise DataError(f"the model {known}; byte-level BPE ('gpt2') is what is supported")
        tokens = _strings(metadata, "tokenizer.ggml.tokens")
        merges = _strings(metadata, "tokenizer.ggml.merges")
        types = metadata.get("tokenizer.ggml.token_type")
        if types is None:
            types = [1] * len(tokens)
        elif not isinstance(types, list) or not all(isinstance(kind, int) for kind in types):
            raise DataError("the model's tokenizer.ggml.token_type is not a list of numbers")
        elif len(types) != len(tokens):
            raise DataError(f"the model's tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")

        def token_id(name: str) -> int | None:
            value = metadata.get(f"tokenizer.ggml.{name}_token_id")
            if value is not None and (not isinstance(value, int) or not 0 <= value < len(tokens)):
                raise DataError(f"tokenizer.ggml.{name}_token_id is {value!r}, not one of the {len(tokens)} tokens")
            return value

        add_bos = metadata.get("tokenizer.ggml.add_bos_token")
        template = metadata.get("tokenizer.chat_template")
        return cls(
            tokens,
            types,
            merges,
            str(metadata.get("tokenizer.ggml.pre", "default")),
            bos_id=token_id("bos"),
            eos_id=token_id("eos"),
            eot_id=token_id("eot"),
            pad_id=token_id("padding"),
            add_bos=None if add_bos is None else bool(add_bos),
            chat_template=template if isinstance(template, str) else None,
        )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text, without a beginning-of-text token.

        special: the spelling of a control token stands for that token. Otherwise it is text like any other;
        user-defined tokens (such as `<think>`) are ordinary vocabulary and recognised either way.
        """
        ids: list[int] = []
        for part, token in self._parts(text, special, ()):
            if token is None:
                self._encode_plain(part, ids)
            else:
                ids.append(token)
        return ids

    def encode_pieces(
        self,
        text: str,
        special: bool = False,
        literal: Sequence[tuple[int, int]] = (),
        cuts: Sequence[int] = (),
    ) -> Pieces:
        """Ids and the characters that each covers.

        literal: ascending ranges of `text` in which control tokens are not recognised even when special is set.
        cuts: ascending positions that no token may span.
        """
        ids: list[int] = []
        first = 0
        for cut in (*cuts, len(text)):
            shifted = [(a - first, b - first) for a, b in literal if a < cut and b > first]
            for part, token in self._parts(text[first:cut], special, shifted):
                if token is None:
                    self._encode_plain(part, ids)
                else:
                    ids.append(token)
            first = cut
        data = text.encode()
        lengths = self._byte_lengths()[ids]
        ends = np.cumsum(lengths)
        if ids and ends[-1] != len(data):  # some bytes have no token and were left out
            at = 0
            for k, token in enumerate(ids):
                piece = self.token_bytes(token)
                at = data.index(piece, at) + len(piece)
                ends[k] = at
        starts = ends - lengths
        if ids and len(data) != len(text):
            char_of_byte = np.cumsum(np.frombuffer(data, np.uint8) & 0xC0 != 0x80) - 1
            starts, ends = char_of_byte[starts], char_of_byte[ends - 1] + 1
        return Pieces(ids, starts, ends)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. skip_special leaves control tokens out."""
        controls = frozenset(self._control.values()) if skip_special else frozenset()
        return b"".join(self.token_bytes(i) for i in ids if i not in controls).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; a special token's are its spelling."""
        text = self.tokens[token_id]
        if token_id in self._special_ids:
            return text.encode("utf-8", "surrogateescape")
        try:
            return bytes([_CHAR_TO_BYTE[c] for c in text])
        except KeyError:  # a token outside the byte alphabet, such as an unused one
            return text.encode("utf-8", "surrogateescape")

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control or user-defined one."""
        return token_id in self._special_ids

    @property
    def control_texts(self) -> frozenset[str]:
        """The spellings of the control tokens."""
        return frozenset(self._control)

    @property
    def end_texts(self) -> tuple[str, ...]:
        """The spellings of the tokens that end an answer."""
        return tuple(self.tokens[i] for i in sorted(self.end_ids))

    def _parts(self, text: str, special: bool, literal: Sequence[tuple[int, int]]) -> Iterable[tuple[str, int | None]]:
        """The text cut at special tokens: (text, id), id None for plain text."""
        finder = self._find_special if special else self._find_user
        end = 0
        for start, found in finder(text):
            token = self._user.get(found)
            if token is None:
                if any(start < b and start + len(found) > a for a, b in literal):
                    continue
                token = self._control[found]
            if start > end:
                yield text[end:start], None
            end = start + len(found)
            yield found, token
        if end < len(text):
            yield text[end:], None

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        cached = self._cache.get
        for word in self._split(text):
            ids += cached(word) or self._encode_word(word)

    def _byte_lengths(self) -> Int64Array:
        if self._lengths is None:
            self._lengths = np.fromiter(map(len, self.tokens), np.int64, self.vocab_size)  # one character a byte
            for i in self._special_ids:
                self._lengths[i] = len(self.token_bytes(i))
        return self._lengths

    def _encode_word(self, word: str) -> list[int]:
        ids = self._merge(word.encode().decode("latin-1").translate(_BYTE_TO_CHAR))
        if len(word) <= _CACHE_LENGTH:
            if len(self._cache) >= _CACHE_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _merge(self, word: str) -> list[int]:
        """Byte-pair merging: the lowest rank first, of equals the leftmost. O(n log n)."""
        if (self._ignore_merges or len(word) == 1) and word in self._ids:
            return [self._ids[word]]
        ranks = self._ranks
        symbols: list[str] = list(word)
        after = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        heap = []
        for i in range(len(symbols) - 1):
            rank = ranks.get(f"{symbols[i]} {symbols[i + 1]}")
            if rank is not None:
                heap.append((rank, i, symbols[i], symbols[i + 1]))
        heapify(heap)
        while heap:
            _, i, left, right = heappop(heap)
            j = after[i]
            if symbols[i] != left or j >= len(symbols) or symbols[j] != right:
                continue  # one of the two has been merged meanwhile
            symbols[i], symbols[j] = left + right, ""
            after[i] = after[j]
            if after[j] < len(symbols):
                before[after[j]] = i
            for k in (before[i], i):
                if k >= 0 and after[k] < len(symbols):
                    rank = ranks.get(f"{symbols[k]} {symbols[after[k]]}")
                    if rank is not None:
                        heappush(heap, (rank, k, symbols[k], symbols[after[k]]))
        ids = []
        for symbol in symbols:
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            else:  # a merge whose result is no token, or a byte that the vocabulary lacks
                ids += [self._ids[c] for c in symbol if c in self._ids]
        return ids


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise DataError(f"the model's {key} is missing or not a list of strings; its tokenizer cannot be built")
    return values


class _Finder:
    """Finds texts of a table inside a text: leftmost first, of several at one place the longest."""

    def __init__(self, table: Mapping[str, int]) -> None:
        self._table = table
        self._lengths: dict[str, list[int]] = {}
        for length, first in sorted({(len(text), text[0]) for text in table}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        firsts = "".join(map(re.escape, self._lengths))
        self._candidate = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def __call__(self, text: str) -> Iterator[tuple[int, str]]:
        """(position, text) of each."""
        at = 0
        while candidate := self._candidate.search(text, at):
            at = candidate.start()
            for length in self._lengths[text[at]]:
                if (found := text[at : at + length]) in self._table:
                    yield at, found
                    at += length
                    break
            else:
                at += 1


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else the next one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {c: b for b, c in _BYTE_TO_CHAR.items()}
