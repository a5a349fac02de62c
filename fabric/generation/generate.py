"""`generate`: answers to prompts, several rows at a time over one cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fabric.errors import DataError, UsageError
from fabric.files import check_streams, shown
from fabric.generation.decoding import FEED_TOKENS, Lane, Watch, answers
from fabric.generation.model import Model, Text, open_model, open_text
from fabric.generation.prompts import Prompt, read_prompts
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder


def generate(
    settings: GenerateSettings, watch: Watch | None = None, note: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Any]]:
    """The rows with their answers, in input order: `answer`, `answer_tokens`, `finish` ("stop" or "length"), and with
    several `choices` a row each, numbered `choice`.

    The row's other fields are passed on. A trailing assistant turn, or a completion, is not shown to the model; it is
    passed on as `reference`. Everything is read and checked before the first answer;
    `note` is called with what is worth a line.
    Raises DataError, MissingInputError, UsageError, DeviceError.
    """
    check_settings(settings)
    with open_text(settings.model, settings.template, settings.adapters) as text:
        limit = context_limit(settings, text)
        prompts = read_prompts(settings, text)
        text.template.tell(shown(settings.data) if settings.data else "--prompt")
        with_room(prompts, limit)
        if not prompts:
            return
        room = min(limit, max(len(prompt.ids) for prompt in prompts) + settings.max_tokens)
        prompts = [prompt for prompt in prompts for _ in range(settings.choices)]
        lanes = min(settings.batch, len(prompts))
        tokens = max(lanes, min(FEED_TOKENS, sum(len(prompt.ids) for prompt in prompts)))

        def decoding(model: Model) -> contextlib.closing[Decoder]:
            return contextlib.closing(
                Decoder(model.weights, lanes * room, tokens, lanes, model.precision, model.loras, context=limit)
            )

        with open_model(text, settings, decoding) as (model, decoder):
            for sentence in model.notes:
                note(sentence)
            ids = [prompt.ids for prompt in prompts]
            for lane, finish in _in_order(answers(settings, text.tokenizer, decoder, ids, lanes, room, watch)):
                choice = {"choice": lane.number % settings.choices} if settings.choices > 1 else {}
                told = {"answer": lane.answer.text, "answer_tokens": len(lane.answer.tokens), "finish": finish}
                yield {**prompts[lane.number].row, **choice, **told}


def with_room(prompts: Sequence[Prompt], limit: int) -> None:
    """DataError for a prompt that leaves no room for an answer within so many tokens."""
    for prompt in prompts:
        if len(prompt.ids) >= limit:
            raise DataError(
                f"{prompt.source}: the prompt has {len(prompt.ids)} tokens, which leaves no room for an answer "
                f"within {limit}; shorten it, or raise --ctx where the model allows more"
            )


def context_limit(settings: GenerateSettings, text: Text) -> int:
    """The most tokens of a prompt and its answer."""
    return min(settings.ctx, text.gguf.get(f"{text.gguf.architecture}.context_length", int, settings.ctx))


def check_settings(settings: GenerateSettings) -> None:
    """UsageError for values that make no sense."""
    check_streams([settings.data, settings.model, *(adapter.path for adapter in settings.adapters)], [])
    for name in ("max_tokens", "batch", "ctx", "choices"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
    if not settings.temperature >= 0:
        raise UsageError(f"--temperature must not be negative, and is {settings.temperature}")
    if settings.top_k < 0 or not 0 < settings.top_p <= 1:
        raise UsageError("--top-k must not be negative, and --top-p lies above 0 and up to 1")
    if not 0 <= settings.min_p <= 1:
        raise UsageError(f"--min-p lies between 0 and 1, and is {settings.min_p}")
    if not settings.repeat_penalty > 0 or settings.repeat_window < 0:
        raise UsageError("--repeat-penalty lies above 0, and --repeat-window must not be negative")
    if settings.choices > 1 and settings.temperature == 0:
        raise UsageError("--choices asks for different answers, and greedy ones are all the same: set --temperature")
    if not all(settings.stop):
        raise UsageError("a --stop text is empty")


def _in_order(rows: Iterator[tuple[Lane, str]]) -> Iterator[tuple[Lane, str]]:
    early: dict[int, tuple[Lane, str]] = {}
    number = 0
    for row in rows:
        early[row[0].number] = row
        while number in early:
            yield early.pop(number)
            number += 1
