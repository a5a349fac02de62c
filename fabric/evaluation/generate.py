"""`generate`: answers to prompts, several rows at a time over one cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError, UsageError
from fabric.evaluation.model import Text, open_model, open_text
from fabric.evaluation.prompts import Prompt, read_prompts
from fabric.evaluation.sampling import pick
from fabric.evaluation.settings import GenerateSettings
from fabric.files import check_streams
from fabric.models.inference import Decoder

FEED_TOKENS = 256  # of prompts and answers, in one run


def generate(settings: GenerateSettings) -> Iterator[dict[str, Any]]:
    """The rows with their answers, in input order: `answer`, `answer_tokens`, `finish` ("stop" or "length").

    The row's other fields are passed on. A trailing assistant turn, or a completion, is not shown to the model; it is
    passed on as `reference`. Everything is read and checked before the first answer.
    Raises DataError, MissingInputError, UsageError, DeviceError.
    """
    check_settings(settings)
    with open_text(settings.model, settings.template) as text:
        limit = min(settings.ctx, text.gguf.get(f"{text.gguf.architecture}.context_length", int, settings.ctx))
        prompts = read_prompts(settings, text)
        for prompt in prompts:
            if len(prompt.ids) >= limit:
                raise DataError(
                    f"{prompt.source}: the prompt has {len(prompt.ids)} tokens, which leaves no room for an answer "
                    f"within {limit}; shorten it, or raise --ctx where the model allows more"
                )
        if not prompts:
            return
        room = min(limit, max(len(prompt.ids) for prompt in prompts) + settings.max_tokens)
        lanes = min(settings.batch, len(prompts))
        where = (settings.device, settings.threads, settings.precision)
        with open_model(text.gguf, settings.adapters, *where) as model:
            tokens = max(lanes, min(FEED_TOKENS, sum(len(prompt.ids) for prompt in prompts)))
            decoder = Decoder(model.weights, lanes * room, tokens, lanes, model.precision, model.loras)
            try:
                yield from _in_order(_answers(settings, text, decoder, prompts, lanes, room))
            finally:
                decoder.close()


def check_settings(settings: GenerateSettings) -> None:
    """UsageError for values that make no sense."""
    check_streams([settings.data, settings.model, *(adapter.path for adapter in settings.adapters)], [])
    for name, value in {"max-tokens": settings.max_tokens, "batch": settings.batch, "ctx": settings.ctx}.items():
        if value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    if not settings.temperature >= 0:
        raise UsageError(f"--temperature must not be negative, and is {settings.temperature}")
    if settings.top_k < 0 or not 0 < settings.top_p <= 1:
        raise UsageError("--top-k must not be negative, and --top-p lies above 0 and up to 1")
    if not all(settings.stop):
        raise UsageError("a --stop text is empty")


@dataclass
class _Lane:
    """A row being answered, in its own range of the cache."""

    number: int
    prompt: Prompt
    first: int  # slot
    pending: list[int]  # tokens that the cache does not hold yet
    position: int = 0
    answer: list[int] = field(default_factory=list)


def _answers(
    settings: GenerateSettings, text: Text, decoder: Decoder, prompts: Sequence[Prompt], lanes: int, room: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by number, as they are done; a range of the cache that becomes free takes the next row."""
    waiting = iter(enumerate(prompts))
    free = [lane * room for lane in reversed(range(lanes))]
    running: list[_Lane] = []
    while True:
        while free and (row := next(waiting, None)):
            running.append(_Lane(row[0], row[1], free.pop(), list(row[1].ids)))
        if not running:
            return
        for lane, logits in _advance(decoder, running):
            token = pick(logits, settings, lane.number, len(lane.answer))
            lane.pending = [token]
            done = _finished(settings, text, lane, token, room)
            if done:
                running.remove(lane)
                free.append(lane.first)
                yield lane.number, {**lane.prompt.row, **done}


def _advance(decoder: Decoder, running: Sequence[_Lane]) -> list[tuple[_Lane, npt.NDArray[np.float32]]]:
    """One run: as many pending tokens as fit, short ones first; lanes that have none left, with their logits."""
    tokens: list[int] = []
    slots: list[int] = []
    lo: list[int] = []
    ready, last = [], []
    for lane in sorted(running, key=lambda lane: (len(lane.pending), lane.number)):
        part = lane.pending[: decoder.tokens - len(tokens)]
        tokens += part
        slots += range(lane.first + lane.position, lane.first + lane.position + len(part))
        lo += [lane.first] * len(part)
        lane.position += len(part)
        del lane.pending[: len(part)]
        if part and not lane.pending:
            ready.append(lane)
            last.append(len(tokens) - 1)
    at, first = np.array(slots, np.int32), np.array(lo, np.int32)
    logits = decoder.logits(np.array(tokens, np.int32), at - first, first, at + 1, at, np.array(last, np.int32))
    return list(zip(ready, logits, strict=True))


def _finished(settings: GenerateSettings, text: Text, lane: _Lane, token: int, room: int) -> dict[str, Any] | None:
    """What ends a row whose next token is `token`; None where it goes on."""
    end = token in text.tokenizer.end_ids
    if not end:
        lane.answer.append(token)
    full = len(lane.answer) == settings.max_tokens or lane.position >= room
    if not (end or full or settings.stop):
        return None
    answer = text.tokenizer.decode(lane.answer, skip_special=True, follows=lane.prompt.ids[-1])
    stops = [at for stop in settings.stop if (at := answer.find(stop)) >= 0]
    if not (end or full or stops):
        return None
    return {
        "answer": answer[: min(stops)] if stops else answer,
        "answer_tokens": len(lane.answer),
        "finish": "stop" if end or stops else "length",
    }


def _in_order(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    early: dict[int, dict[str, Any]] = {}
    number = 0
    for at, row in rows:
        early[at] = row
        while number in early:
            yield early.pop(number)
            number += 1
