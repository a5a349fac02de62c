"""What every kind of tokenizer file becomes: tokens in the order of their ids with their types, and the metadata beside
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fabric.errors import DataError
from fabric.fields import is_text, named, short

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
_UNUSED_SCORE = -1e4


@dataclass
class Added:
    """A token beside the vocabulary proper; `strips`: it takes white space or word boundaries beside it."""

    text: str
    control: bool
    strips: bool = False


@dataclass
class Vocabulary:
    """`tokens`: text by id, which may leave gaps. `edges`: texts of the tokens that a text gets at its beginning and
    end, None where the file does not say. `renames`: whether other files may call its tokens otherwise.
    """

    where: str
    metadata: dict[str, Any]
    tokens: dict[int, str]
    types: dict[int, int] = field(default_factory=dict)  # of tokens that are not NORMAL
    scores: dict[int, float] | None = None
    added: dict[int, Added] = field(default_factory=dict)
    edges: tuple[list[str], list[str]] | None = None
    renames: bool = False
    special: dict[str, str] = field(default_factory=dict)  # "bos_token": text, where no other file says it

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: i for i, text in sorted(self.tokens.items(), reverse=True)}

    @cached_property
    def _end(self) -> list[int]:
        """One number: the id behind all others."""
        return [max([*self.tokens, *self.added], default=-1) + 1]

    def ids(self) -> dict[str, int]:
        """Ids by text; the lowest where several tokens share one."""
        return {text: i for i, text in sorted(self.all().items(), reverse=True)}

    def all(self) -> dict[int, str]:
        """Every token, also those beside the vocabulary proper."""
        return {**self.tokens, **{i: token.text for i, token in self.added.items()}}

    def place(self, i: int, token: Added) -> None:
        """Adds a token of this or another file at its id. DataError where the id is another token's."""
        known = self._ids.get(token.text)
        if known is not None:
            i = known
        if i in self.added:
            return
        if self.tokens.get(i, token.text) != token.text and not self.renames:
            told = f"{short(self.tokens[i])} and {short(token.text)}"
            raise DataError(f"{self.where}: the id {i} is given to two tokens, {told}")
        self._end[0] = max(self._end[0], i + 1)
        self.added[i] = token
        self._ids[token.text] = i

    def mark(self, text: str, rows: int) -> bool:
        """Makes a token a control token, and adds it behind all others where there is none; False where it would be
        past the embedding's rows."""
        i = self._ids.get(text)
        if i is None:
            i = self._end[0]
            if i >= rows:
                return False
        if i not in self.added:
            self.place(i, Added(text, control=True))
        return True

    def keys(self, rows: int) -> dict[str, Any]:
        """The metadata, with tokens for all rows of the embedding. DataError where there are more tokens than rows."""
        every = self.all()
        beyond = sorted(i for i in every if not 0 <= i < rows)
        if beyond:
            told = f"{named(f'{i} ({short(every[i])})' for i in beyond[:3])}"
            raise DataError(f"{self.where}: the tokenizer has ids outside the embedding's {rows} rows: {told}")
        types = [self.types.get(i, NORMAL) if i in every else UNUSED for i in range(rows)]
        for i, token in self.added.items():
            if types[i] != UNKNOWN:
                types[i] = CONTROL if token.control else USER_DEFINED
        keys = {
            **self.metadata,
            "tokenizer.ggml.tokens": [every.get(i, f"[PAD{i}]") for i in range(rows)],
            "tokenizer.ggml.token_type": types,
        }
        if self.scores is not None:
            keys["tokenizer.ggml.scores"] = [self.scores.get(i, _UNUSED_SCORE) for i in range(rows)]
        return keys


def check_ids(where: str, vocab: object) -> dict[int, str]:
    """Text by id of a table of ids by text. DataError where an id is none, or two tokens share one."""
    if not isinstance(vocab, Mapping) or not vocab or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise DataError(f"{where}: model.vocab does not give each token an id")
    tokens = {i: text for text, i in vocab.items()}
    if len(tokens) != len(vocab):
        raise DataError(f"{where}: two tokens of model.vocab have the same id")
    if not is_text("".join(tokens.values())):
        raise DataError(f"{where}: a token of model.vocab is not text")
    return tokens
