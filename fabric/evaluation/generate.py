"""`generate`: answers to prompts, several rows at a time over one cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fabric.errors import DataError, UsageError
from fabric.evaluation.answer import Answer
from fabric.evaluation.decoding import FEED_TOKENS, Lane, advance
from fabric.evaluation.model import Text, open_model, open_text
from fabric.evaluation.prompts import Prompt, read_prompts
from fabric.evaluation.settings import GenerateSettings
from fabric.files import check_streams
from fabric.models.inference import Decoder

Watch = Callable[[str], None]  # called with each piece of the first row's answer that has become certain


def generate(settings: GenerateSettings, watch: Watch | None = None) -> Iterator[dict[str, Any]]:
    """The rows with their answers, in input order: `answer`, `answer_tokens`, `finish` ("stop" or "length"), and with
    several `choices` a row each, numbered `choice`.

    The row's other fields are passed on. A trailing assistant turn, or a completion, is not shown to the model; it is
    passed on as `reference`. Everything is read and checked before the first answer.
    Raises DataError, MissingInputError, UsageError, DeviceError.
    """
    check_settings(settings)
    with open_text(settings.model, settings.template) as text:
        limit = context_limit(settings, text)
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
        prompts = [prompt for prompt in prompts for _ in range(settings.choices)]
        lanes = min(settings.batch, len(prompts))
        where = (settings.device, settings.threads, settings.precision)
        with open_model(text.gguf, settings.adapters, *where) as model:
            tokens = max(lanes, min(FEED_TOKENS, sum(len(prompt.ids) for prompt in prompts)))
            decoder = Decoder(model.weights, lanes * room, tokens, lanes, model.precision, model.loras)
            try:
                for number, lane, finish in _in_order(_answers(settings, text, decoder, prompts, lanes, room, watch)):
                    choice = {"choice": number % settings.choices} if settings.choices > 1 else {}
                    told = {"answer": lane.answer.text, "answer_tokens": len(lane.answer.tokens), "finish": finish}
                    yield {**prompts[number].row, **choice, **told}
            finally:
                decoder.close()


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


_Ended = tuple[int, Lane, str]


def _answers(
    settings: GenerateSettings, text: Text, decoder: Decoder, prompts: Sequence[Prompt], lanes: int, room: int,
    watch: Watch | None,
) -> Iterator[_Ended]:  # fmt: skip
    """Rows by number, as they are done; a range of the cache that becomes free takes the next row."""
    waiting = iter(enumerate(prompts))
    free = [lane * room for lane in reversed(range(lanes))]
    running: list[Lane] = []
    while True:
        for number, prompt in itertools.islice(waiting, len(free)):
            answer = Answer(text.tokenizer, prompt.ids[-1], settings.stop)
            running.append(Lane(number, free.pop(), room, answer, list(prompt.ids)))
        if not running:
            return
        for lane, logits in advance(decoder, running):
            finish = lane.choose(logits, settings, text.tokenizer)
            if watch and lane.number == 0:
                watch(lane.answer.news())
            if finish:
                running.remove(lane)
                free.append(lane.first)
                yield lane.number, lane, finish


def _in_order(rows: Iterator[_Ended]) -> Iterator[_Ended]:
    early: dict[int, _Ended] = {}
    number = 0
    for row in rows:
        early[row[0]] = row
        while number in early:
            yield early.pop(number)
            number += 1
