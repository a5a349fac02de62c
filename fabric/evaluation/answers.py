"""Written answers: what rows ask, what they are answered with, and what a model writes there, greedily.

The answers are those of `fabric generate` with the same --max-tokens.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class Lanes:
    """How prompts decode together: `count` at a time, `room` slots of the cache each. `context`: as in a Recorder."""

    count: int
    room: int
    context: int

    @classmethod
    def of(cls, text: Text, prompts: Sequence[Sequence[int]], most: int, context: int) -> Lanes:
        """For answers of at most `most` tokens, within the model's context where the prompts are."""
        longest = max(map(len, prompts))
        limit = text.gguf.get(f"{text.gguf.architecture}.context_length", int, longest + most)
        room = max(longest + 1, min(longest + most, limit))
        return cls(min(_TOGETHER, len(prompts)), room, max(context, room))

    def decoder(self, model: Model, loras: Loras) -> contextlib.closing[Decoder]:
        """The cache and the plan. Raises DeviceError where they do not fit."""
        rows, tokens = self.count * self.room, max(self.count, FEED_TOKENS)
        return contextlib.closing(
            Decoder(model.weights, rows, tokens, self.count, model.precision, loras, context=self.context)
        )


def written(
    text: Text, model: Model, loras: Loras, prompts: Sequence[Sequence[int]], most: int, context: int, done: Done
) -> list[str]:
    """The greedy answer to each prompt, of at most `most` tokens. `context`: as in a Recorder."""
    greedy, lanes, found = GenerateSettings(text.gguf.name, max_tokens=most), Lanes.of(text, prompts, most, context), {}
    with lanes.decoder(model, loras) as decoder:
        for lane, _ in answers(greedy, text.tokenizer, decoder, prompts, lanes.count, lanes.room):
            found[lane.number] = lane.answer.text
            done(len(prompts[lane.number]))
    return [found[i] for i in range(len(prompts))]


def planned(
    text: Text, prompts: Sequence[Sequence[int]], most: int, context: int
) -> Callable[[Model], contextlib.AbstractContextManager[str]]:
    """Tries the memory that answers will take, before there is work to lose; a sentence that says how much."""

    @contextlib.contextmanager
    def trial(model: Model) -> Iterator[str]:
        if not prompts:
            yield ""
            return
        with Lanes.of(text, prompts, most, context).decoder(model, model.loras) as decoder:
            sentence = f"{text.gguf.name} writes {len(prompts):,} answers {memory(text, model, decoder)}"
        yield sentence

    return trial


def memory(text: Text, model: Model, decoder: Decoder) -> str:
    """What a decoder takes, as the end of a sentence."""
    taken = decoder.plan.stats.allocated_bytes + decoder.cache_bytes
    weights = sum(info.nbytes for info in text.gguf.tensors.values())
    return f"in {taken / 2**20:.0f} MiB on {model.device}, beside {weights / 2**20:.0f} MiB of weights"
