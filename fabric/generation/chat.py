"""`generate --chat`: a conversation over one cache, of which only what is new is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.errors import DataError
from fabric.generation.answer import Answer
from fabric.generation.decoding import FEED_TOKENS, Lane, advance
from fabric.generation.generate import check_settings, context_limit
from fabric.generation.model import Model, Text, open_model, open_text
from fabric.generation.prompts import asked, system_turn
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder

Stop = Callable[[], bool]


@dataclass
class Turn:
    """What became of a message: the answer as it is kept in the history, and what it took."""

    prompt: str
    answer: str = ""
    answer_tokens: int = 0
    computed_tokens: int = 0
    """Tokens of the conversation that the cache did not hold yet, the answer's own left out."""
    finish: str = ""
    """`stop`, `length`, or `interrupted`."""
    forgotten: int = 0
    """Earlier messages dropped, the oldest first, because they no longer fit."""


class Chat:
    """A conversation: `say` a message, iterate over the pieces of its answer, then read `turn`."""

    def __init__(
        self, settings: GenerateSettings, text: Text, decoder: Decoder, limit: int, notes: Sequence[str]
    ) -> None:
        self.messages = system_turn(settings)
        self.turn = Turn("")
        self.notes = notes
        self._settings, self._text, self._decoder, self._limit = settings, text, decoder, limit
        self._held: list[int] = []
        self._said = 0

    def say(self, message: str, stop: Stop = lambda: False) -> Iterator[str]:
        """Pieces of the answer, as soon as they are certain. `stop` is asked between tokens: True ends the answer, and
        what there is of it stays in the history.

        Raises DataError for a message that does not fit the context even alone; the conversation is as before then.
        """
        messages, ids, forgotten = self._fitting([*self.messages, {"role": "user", "content": message}])
        self._text.template.tell("the conversation")
        kept = min(_shared(self._held, ids), len(ids) - 1)
        answer = Answer(self._text.tokenizer, ids[-1], self._settings.stop)
        lane = Lane(self._said, 0, self._limit, answer, ids[kept:], ids[:kept])
        self._held = lane.held
        self._said += 1
        finish: str | None = None
        while not finish:
            if stop():
                finish = "interrupted"
                answer.close()
            else:
                for _, logits in advance(self._decoder, [lane]):
                    finish = lane.choose(logits, self._settings, self._text.tokenizer)
            yield answer.news()
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.turn = Turn(message, answer.text, len(answer.tokens), len(ids) - kept, finish, forgotten)

    def _fitting(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int], int]:
        """The conversation with room for an answer: its oldest exchanges are dropped where it has none."""
        start, forgotten = len(system_turn(self._settings)), 0
        while True:
            ids = asked({"messages": messages}, "the conversation", self._text)
            if len(ids) + min(self._settings.max_tokens, self._limit // 4) <= self._limit:
                return messages, ids, forgotten
            if len(messages) <= start + 1:
                raise DataError(
                    f"the message has {len(ids)} tokens, too many for an answer within {self._limit}; shorten it, "
                    "or raise --ctx where the model allows more"
                )
            messages, forgotten = messages[:start] + messages[start + 2 :], forgotten + 2


def _shared(a: list[int], b: list[int]) -> int:
    """The length of the beginning that two lists have in common."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@contextlib.contextmanager
def open_chat(settings: GenerateSettings) -> Iterator[Chat]:
    """A conversation with a model and adapters. Raises DataError, MissingInputError, UsageError, DeviceError."""
    check_settings(settings)
    with open_text(settings.model, settings.template, settings.adapters) as text:
        limit = context_limit(settings, text)

        def decoding(model: Model) -> contextlib.closing[Decoder]:
            return contextlib.closing(
                Decoder(model.weights, limit, min(FEED_TOKENS, limit), 1, model.precision, model.loras, context=limit)
            )

        with open_model(text, settings, decoding) as (model, decoder):
            yield Chat(settings, text, decoder, limit, model.notes)
