"""Sequences that decode together over one cache: what each holds of it, what it has yet to compute, its answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fabric.generation.answer import Answer
from fabric.generation.sampling import pick
from fabric.generation.settings import GenerateSettings
from fabric.models.inference import Decoder
from fabric.text.tokenizer import Tokenizer

FEED_TOKENS = 256  # of prompts and answers, in one run
Watch = Callable[[str], None]  # called with each piece of the first answer that has become certain


@dataclass(eq=False)
class Lane:
    """A sequence in `room` slots of the cache, from slot `first` on. `number` keys its random numbers."""

    number: int
    first: int
    room: int
    answer: Answer
    pending: list[int]
    """Tokens that the cache does not hold yet."""
    held: list[int] = field(default_factory=list)
    """Tokens that it holds."""

    def computes(self, prompt: list[int]) -> bool:
        """Whether this is the prompt that it has yet to compute."""
        return not self.answer.tokens and self.held + self.pending == prompt

    def choose(self, logits: npt.NDArray[np.float32], settings: GenerateSettings, tokenizer: Tokenizer) -> str | None:
        """Goes on by a token; why the answer ends with it ("stop" or "length"), None where it does not."""
        token = pick(logits, settings, self.number, len(self.answer.tokens), self.held)
        finish = "stop" if token in tokenizer.end_ids else None
        if finish is None:
            self.answer.add(token)
            self.pending = [token]
            full = len(self.answer.tokens) == settings.max_tokens or len(self.held) >= self.room
            finish = "stop" if self.answer.stopped else "length" if full else None
        if finish:
            self.answer.close()
        return finish


def advance(decoder: Decoder, lanes: Sequence[Lane]) -> list[tuple[Lane, npt.NDArray[np.float32]]]:
    """One run: as many pending tokens as fit, short ones first; lanes that have none left, with their logits."""
    tokens: list[int] = []
    slots: list[int] = []
    lo: list[int] = []
    ready, last = [], []
    for lane in sorted(lanes, key=lambda lane: (len(lane.pending), lane.number)):
        part = lane.pending[: decoder.tokens - len(tokens)]
        tokens += part
        at = lane.first + len(lane.held)
        slots += range(at, at + len(part))
        lo += [lane.first] * len(part)
        lane.held += part
        del lane.pending[: len(part)]
        if part and not lane.pending:
            ready.append(lane)
            last.append(len(tokens) - 1)
    slot, first = np.array(slots, np.int32), np.array(lo, np.int32)
    logits = decoder.logits(np.array(tokens, np.int32), slot - first, first, slot + 1, slot, np.array(last, np.int32))
    return list(zip(ready, logits, strict=True))


def answers(
    settings: GenerateSettings, tokenizer: Tokenizer, decoder: Decoder, prompts: Sequence[Sequence[int]], lanes: int,
    room: int, watch: Watch | None = None,
) -> Iterator[tuple[Lane, str]]:  # fmt: skip
    """Finished answers to prompts, `lanes` of them at a time in `room` slots each, with what ended them; a lane's
    number is that of its prompt. A range of the cache that becomes free takes the next prompt; one that is held
    already is copied but for its last token, and one that is being computed is waited for."""
    waiting = deque(enumerate(map(list, prompts)))
    free = [lane * room for lane in reversed(range(lanes))]
    held: dict[int, list[int]] = {}  # tokens in each range, also where an answer has ended
    running: list[Lane] = []
    while waiting or running:
        while free and waiting and not any(lane.computes(waiting[0][1]) for lane in running):
            number, prompt = waiting.popleft()
            at, kept = free.pop(), len(prompt) - 1
            same = next((first for first, tokens in held.items() if tokens[:kept] == prompt[:kept]), None)
            if same is None:
                kept = 0
            elif kept and same != at:
                decoder.copy(same, at, kept)
            answer = Answer(tokenizer, prompt[-1], settings.stop)
            running.append(Lane(number, at, room, answer, prompt[kept:], prompt[:kept]))
            held[at] = running[-1].held
        for lane, logits in advance(decoder, running):
            finish = lane.choose(logits, settings, tokenizer)
            if watch and lane.number == 0:
                watch(lane.answer.news())
            if finish:
                running.remove(lane)
                free.append(lane.first)
                yield lane, finish
