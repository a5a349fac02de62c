"""Written answers: what rows ask, what they are answered with, and what a model writes there, greedily.

The answers are those of `fabric generate` with the same --max-tokens.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fabric.data.records import Record
from fabric.errors import DataError
from fabric.evaluation.scoring import Done, Loras
from fabric.generation.decoding import FEED_TOKENS, answers
from fabric.generation.model import Model, Text
from fabric.generation.prompts import prompt_of, without_answer
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder
from fabric.text.conversation import forms

_TOGETHER = 8  # rows that are answered at once
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)  # one that has no end is all thought


@dataclass(frozen=True)
class Asked:
    """A row to be answered: its conversation, and the answer that it came with."""

    record: Record
    messages: list[dict[str, Any]]
    reference: str | None
    """Without thoughts and what ends a turn; None where the row has no answer that is text."""

    @property
    def source(self) -> str:
        """Where it stands: `file:line`."""
        return self.record.source


def asked(record: Record, ends: Sequence[str] = ()) -> Asked | None:
    """What a row asks; None for texts and tokens, which ask nothing. ends: spellings of the tokens that end a turn,
    which a rendered row has in its answer. Raises DataError for a row whose only message is an answer."""
    if record.kind in ("text", "tokens"):
        return None
    row, reference = without_answer(record)
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt", row.get("text"))}]
    try:
        messages = next(forms(messages, None, "all")).messages
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from None
    if isinstance(reference, str):
        places = [at for at in (reference.find(end) for end in ends if end) if at >= 0]
        reference = spoken(reference[: min(places)] if places and record.kind == "rendered" else reference)
    return Asked(record, messages, reference if isinstance(reference, str) else None)


def spoken(answer: str) -> str:
    """An answer without the thought before it and the white space around it."""
    return _THOUGHT.sub("", answer, count=1).strip()


def prompts_of(rows: Sequence[Asked], text: Text) -> list[list[int]]:
    """What a model's answer to each row starts from. Raises DataError for a prompt that fills the model's context."""
    prompts = [prompt_of(row.record, text).ids for row in rows]
    limit = text.gguf.get(f"{text.gguf.architecture}.context_length", int, 1 << 20)
    for row, ids in zip(rows, prompts, strict=True):
        if len(ids) >= limit:
            raise DataError(f"{row.source}: the prompt has {len(ids)} tokens, and the model's context ends at {limit}")
    return prompts


def written(
    text: Text, model: Model, loras: Loras, prompts: Sequence[Sequence[int]], most: int, done: Done
) -> list[str]:
    """The greedy answer to each prompt, of at most `most` tokens."""
    greedy = GenerateSettings(text.gguf.name, max_tokens=most)
    lanes, room = min(_TOGETHER, len(prompts)), max(map(len, prompts)) + most
    room = min(room, text.gguf.get(f"{text.gguf.architecture}.context_length", int, room))
    decoder = Decoder(model.weights, lanes * room, max(lanes, FEED_TOKENS), lanes, model.precision, loras)
    found = [""] * len(prompts)
    with contextlib.closing(decoder):
        for lane, _ in answers(greedy, text.tokenizer, decoder, prompts, lanes, room):
            found[lane.number] = lane.answer.text
            done(len(prompts[lane.number]))
    return found
