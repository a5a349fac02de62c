"""A tokenizer built from a GGUF's metadata alone: special tokens around the plain text of `vocabulary.py`.

Ids match stock llama.cpp. Offsets count characters of the given text, so that a span of text becomes a set of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any

import numpy as np

from fabric.errors import DataError
from fabric.fields import Fields, named, short
from fabric.notices import notice
from fabric.text.pretokenize import find_pre
from fabric.text.vocabulary import BytePairs, PlainPairs, ScoredPieces, Vocabulary

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # of tokenizer.ggml.token_type
# Names under which models spell the tokens that end an answer, for files whose metadata name only one of them or
# call them ordinary.
END_NAMES = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")
)
END_NAMES |= {"<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|EOT|>", "</s>", "<｜end▁of▁sentence｜>", "[e~["}
END_NAMES |= {"<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<turn|>", "<|tool_response>", "<end_of_utterance>"}
_TAGS = frozenset(("<|EOT|>", "</s>"))  # these end answers only in models that say so
_PART, _WHOLE = "<|end|>", ("<|return|>", "<|calls|>")  # where one of these ends an answer, that ends only a part of it
# What stock llama.cpp does to a whole text or to what it samples, and nothing here does.
_UNUSED = tuple(f"tokenizer.ggml.{name}" for name in ("add_eos_token", "add_sep_token", "suppress_tokens"))
# Of tokenizer.ggml.model, what stock llama.cpp reads and nothing here does.
_OTHER_KINDS = {
    "bert": "WordPiece, as BERT's",
    "t5": "unigrams, as T5's",
    "rwkv": "RWKV's longest matches",
    "plamo2": "PLaMo 2's",
    "hybriddna": "bases of DNA",
    "whitespace": "words between spaces",
}
_MOST_NESTED = 64  # groups inside groups of a pattern
_SPACES = re.compile(r"[ \t-\r]+")

Int64Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Pieces:
    """Tokens of a text and the characters each one covers: [starts[i], ends[i]).

    A character whose bytes are spread over several tokens is covered by each of them. The space that SentencePiece
    puts in front of a text covers nothing.
    """

    ids: list[int]
    starts: Int64Array
    ends: Int64Array


class Tokenizer:
    """Text to ids and back. Build one with `from_gguf`.

    spaced: SentencePiece's rule that plain text gets a space in front where it begins, or follows a special token.
    stripped: Phi-3's rule that control tokens swallow the white space behind them, but for three.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokens: Sequence[str],
        types: Sequence[int],
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        eot_id: int | None = None,
        eom_id: int | None = None,
        pad_id: int | None = None,
        add_bos: bool = False,
        spaced: bool = False,
        stripped: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.bos_id, self.eos_id, self.eot_id, self.eom_id, self.pad_id = bos_id, eos_id, eot_id, eom_id, pad_id
        self.add_bos = add_bos and bos_id is not None
        self.chat_template = chat_template
        self._vocabulary = vocabulary
        self._spaced = spaced
        self._control, self._user = _special(tokens, types)
        self._control_ids = frozenset(self._control.values())
        self._special_ids = self._control_ids | frozenset(self._user.values())
        kept = ("<unk>", "<s>", "<|endoftext|>")
        self._stripping = frozenset(i for text, i in self._control.items() if stripped and text not in kept)
        self._find_user = _Finder(self._user)
        self._find_special = _Finder(self._user | self._control)
        self._lengths = np.full(self.vocab_size, -1, np.int64)  # in bytes, -1 where nobody asked yet
        parts = {_PART} if any(name in self._control for name in _WHOLE) else set()
        named = (self._control[name] for name in END_NAMES - parts if name in self._control)
        named = (i for i in named if tokens[i] not in _TAGS or types[i] == _CONTROL)
        self.end_ids = frozenset(i for i in (*named, eos_id, eot_id, eom_id) if i is not None)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.*` keys of a GGUF's metadata; DataError where they are missing, wrong or unsupported."""
        model = metadata.get("tokenizer.ggml.model")
        if model not in ("gpt2", "gemma4", "llama"):
            known = f"has a tokenizer of kind {short(model)}"
            if model is None:
                known = "has no tokenizer (tokenizer.ggml.model)"
            elif isinstance(model, str) and model in _OTHER_KINDS:
                known = f"has a tokenizer of {_OTHER_KINDS[model]} ({model!r})"
            supported = "byte pairs ('gpt2', 'gemma4') and SentencePiece ('llama')"
            raise DataError(f"the model {known}; {supported} are supported")
        tokens = _strings(metadata, "tokenizer.ggml.tokens")
        types = [1] * len(tokens)
        if "tokenizer.ggml.token_type" in metadata:
            types = _numbers(metadata, "tokenizer.ggml.token_type", int, len(tokens))

        outside: dict[str, int] = {}

        def token_id(name: str) -> int | None:
            key = f"tokenizer.ggml.{name}_token_id"
            value = metadata.get(key)
            if value is not None and type(value) is not int:
                raise DataError(f"{key} is {short(value)}, where the id of a token is expected")
            if value is None or 0 <= value < len(tokens):
                return value
            outside[key] = value
            return None

        fields = Fields(metadata, "the model's tokenizer")

        def flag(name: str, default: bool) -> bool:
            return fields.flag(f"tokenizer.ggml.{name}", default)

        always_bos = False
        if model != "llama":
            pre = "gemma4" if model == "gemma4" else str(metadata.get("tokenizer.ggml.pre", "default"))
            row = find_pre(pre)
            kind = PlainPairs if row.plain else BytePairs
            vocabulary: Vocabulary = kind(tokens, _strings(metadata, "tokenizer.ggml.merges"), pre)
            add_bos, always_bos, spaced = row.add_bos, row.always_bos, False
        else:
            scores = _numbers(metadata, "tokenizer.ggml.scores", (int, float), len(tokens))
            unreachable = frozenset(_special(tokens, types)[0].values())
            vocabulary = ScoredPieces(tokens, scores, unreachable)
            add_bos, spaced = True, flag("add_space_prefix", True)
        ids = {name: token_id(name) for name in ("bos", "eos", "eot", "eom", "padding")}
        add_bos = flag("add_bos_token", add_bos) or always_bos
        if outside:
            told = named(f"{key} {value}" for key, value in outside.items())
            if add_bos and "tokenizer.ggml.bos_token_id" in outside:
                raise DataError(f"every text begins with {told}, which is not one of the model's {len(tokens)} tokens")
            notice(f"ids that are not of the model's {len(tokens)} tokens count as not set: {told}")
        if unused := [key for key in _UNUSED if metadata.get(key)]:
            notice(f"settings of the model's tokenizer that are not used: {named(unused)}")
        template = metadata.get("tokenizer.chat_template")
        name = str(metadata.get("general.name", "")).lower()
        return cls(
            vocabulary,
            tokens,
            types,
            bos_id=ids["bos"],
            eos_id=ids["eos"],
            eot_id=ids["eot"],
            eom_id=ids["eom"],
            pad_id=ids["padding"],
            add_bos=add_bos,
            spaced=spaced,
            stripped="phi-3" in name or "phi3" in name,  # nothing else in the file says so
            chat_template=template if isinstance(template, str) else None,
        )

    def encode(self, text: str, special: bool = False, follows: int | None = None) -> list[int]:
        """Ids of a text, without a beginning-of-text token.

        special: the spelling of a control token stands for that token. Otherwise it is text like any other;
        user-defined tokens (such as `<think>`) are ordinary vocabulary and recognised either way.
        follows: the token in front of the text, None where it begins.
        """
        return self._encode(text, special, (), (), follows).ids

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
        made = self._encode(text, special, literal, cuts, None)
        return Pieces(made.ids, *self._characters(text, made))

    def decode(self, ids: Iterable[int], skip_special: bool = False, follows: int | None = None) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. skip_special leaves control tokens out.

        follows: the token in front of the first one, None where a text begins.
        """
        parts = []
        for i in ids:
            parts.append(self.piece(i, follows, skip_special))
            follows = i
        return b"".join(parts).decode("utf-8", "replace")

    def piece(self, token_id: int, follows: int | None, skip_special: bool = False) -> bytes:
        """What a token adds to a text behind the token `follows`: bytes, of which several tokens may make a character.

        skip_special: control tokens add nothing.
        """
        if skip_special and token_id in self._control_ids:
            return b""
        part = self.token_bytes(token_id)
        plain = token_id not in self._special_ids
        return part[1:] if plain and self._takes_space(follows) and part.startswith(b" ") else part

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; a special token's are its spelling."""
        if token_id in self._special_ids:
            return self.tokens[token_id].encode("utf-8", "surrogateescape")
        return self._vocabulary.token_bytes(token_id)

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

    def _takes_space(self, follows: int | None) -> bool:
        return self._spaced and (follows is None or follows in self._special_ids)

    def _encode(
        self,
        text: str,
        special: bool,
        literal: Sequence[tuple[int, int]],
        cuts: Sequence[int],
        follows: int | None,
    ) -> _Encoded:
        made = _Encoded()
        ids, encode = made.ids, self._vocabulary.encode
        spaced = self._takes_space(follows)
        first = 0
        for cut in (*cuts, len(text)):
            shifted = [(a - first, b - first) for a, b in literal if a < cut and b > first]
            strip = False
            for part, token in self._parts(text[first:cut], special, shifted):
                if token is not None:
                    ids.append(token)
                    spaced, strip = self._spaced, token in self._stripping
                    continue
                if strip and (found := _SPACES.match(part)):
                    made.skipped.append((len(ids), found.end()))
                    part = part[found.end() :]
                if part:
                    if spaced:
                        made.spaced.append(len(ids))
                    ids += encode(" " + part if spaced else part)
                    spaced = strip = False
            first = cut
        return made

    def _characters(self, text: str, made: _Encoded) -> tuple[Int64Array, Int64Array]:
        """The range of characters of each token."""
        data, ids = text.encode(), np.array(made.ids, np.int64)
        if not len(ids):
            return ids, ids
        for i in np.unique(ids[self._lengths[ids] < 0]).tolist():
            self._lengths[i] = len(self.token_bytes(i))
        lengths = self._lengths[ids]
        lengths[made.spaced] -= 1
        steps = lengths.copy()
        for k, count in made.skipped:
            if k < len(steps):
                steps[k] += count
        ends = np.cumsum(steps)
        skipped_last = sum(count for k, count in made.skipped if k == len(ids))
        if ends[-1] + skipped_last != len(data):  # some bytes have no token and were left out
            at = 0
            for k, token in enumerate(made.ids):
                piece = self.token_bytes(token)
                at = data.index(piece, at) + len(piece)
                ends[k] = at
        starts = ends - lengths
        if len(data) == len(text):
            return starts, ends
        char_of_byte = np.cumsum(np.frombuffer(data + b"\0", np.uint8) & 0xC0 != 0x80) - 1
        return char_of_byte[starts], np.where(lengths > 0, char_of_byte[ends - 1] + 1, char_of_byte[starts])

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


@dataclass
class _Encoded:
    """Ids of a text, and what between them is not of it, or of it and not in them."""

    ids: list[int] = field(default_factory=list)
    spaced: list[int] = field(default_factory=list)  # tokens that begin with a space which is not in the text
    skipped: list[tuple[int, int]] = field(default_factory=list)  # (token, white space left out in front of it)


def _special(tokens: Sequence[str], types: Sequence[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Control tokens (and unknown ones, and those that end answers whatever the file calls them), user-defined ones."""
    named = END_NAMES - {"<|EOT|>"}
    control = {text: i for i, text in enumerate(tokens) if text and (types[i] in (_UNKNOWN, _CONTROL) or text in named)}
    user = {text: i for i, text in enumerate(tokens) if text and types[i] == _USER_DEFINED and text not in control}
    return control, user


def _numbers(metadata: Mapping[str, Any], key: str, kind: Any, count: int) -> list[Any]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise DataError(f"the model's {key} is not a list of numbers; its tokenizer cannot be built")
    if len(values) != count:
        raise DataError(f"the model's {key} has {len(values)} entries for {count} tokens")
    return values


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise DataError(f"the model's {key} is missing or not a list of strings; its tokenizer cannot be built")
    return values


class _Finder:
    """Finds texts of a table inside a text: leftmost first, of several at one place the longest."""

    def __init__(self, table: Mapping[str, int]) -> None:
        self._table = table
        self._pattern: re.Pattern[str] | None = None

    def __call__(self, text: str) -> Iterator[tuple[int, str]]:
        """(position, text) of each."""
        if self._pattern is None:
            self._pattern = re.compile(_any_of(sorted(self._table)) if self._table else r"(?!)")
        return ((found.start(), found.group()) for found in self._pattern.finditer(text))


def _any_of(texts: list[str], depth: int = 0) -> str:
    """A pattern for the longest of some sorted texts: what they share is looked at once."""
    if depth > _MOST_NESTED:
        return f"(?:{'|'.join(map(re.escape, reversed(texts)))})"
    parts = []
    for _, some in groupby((text for text in texts if text), key=lambda text: text[0]):
        group = list(some)
        both = zip(group[0], group[-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        rest = [text[shared:] for text in group]
        parts.append(re.escape(group[0][:shared]) + (_any_of(rest, depth + 1) if any(rest) else ""))
    body = parts[0] if len(parts) == 1 and texts[0] else f"(?:{'|'.join(parts)})"
    return body if texts[0] else body + "?"
