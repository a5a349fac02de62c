"""An answer as it grows, token by token: its text as far as it is certain, and what ends it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fabric.text.tokenizer import Tokenizer


class Answer:
    """Tokens after the token `follows`, and their text, which ends before any text of `stop`."""

    def __init__(self, tokenizer: Tokenizer, follows: int, stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._tokenizer, self._last, self._stop = tokenizer, follows, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._told = 0  # characters that `news` returned

    def add(self, token: int) -> None:
        """Takes a token that does not end the answer by itself."""
        self.tokens.append(token)
        self._grow(self._decoder.decode(self._tokenizer.piece(token, self._last, skip_special=True)))
        self._last = token

    def close(self) -> None:
        """No token will follow: bytes that are not yet a character never will be."""
        if not self.stopped:
            self._grow(self._decoder.decode(b"", final=True))
        self._stop = ()

    def news(self) -> str:
        """The text that has become certain since the last call: no stop text begins in it."""
        begun = (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        certain = len(self.text) if self.stopped else len(self.text) - max(begun, default=0)
        told, self._told = self._told, max(certain, self._told)
        return self.text[told : self._told]

    def _grow(self, piece: str) -> None:
        before, self.text = len(self.text), self.text + piece
        if not piece or not self._stop:
            return
        found = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stop]
        places = [at for at in found if at >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
