"""Log likelihoods: of the trained tokens of many rows, packed; and of alternatives after one prompt, over a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fabric.data.pack import build_feed, pack_in_order
from fabric.generation.model import Model
from fabric.models.inference import Decoder, Scorer
from fabric.models.recorder import Source
from fabric.text.encode import Example

Ids = tuple[int, ...]
Loras = Mapping[str, Source]
Done = Callable[[int], None]  # called with the tokens of each feed that ran


def score(model: Model, loras: Loras, examples: Sequence[Example], context: int, done: Done) -> npt.NDArray[np.float64]:
    """Negative log likelihood of the trained tokens of each example, summed. Feeds have at most `context` tokens, or
    one row."""
    lengths = [len(example.tokens) for example in examples]
    packs = pack_in_order(lengths, max(context, *lengths))
    tokens = max(sum(lengths[i] for i in pack) for pack in packs)
    trained = max(sum(examples[i].trained for i in pack) for pack in packs)
    scorer = Scorer(model.weights, tokens, model.precision, loras, trained, max(context, *lengths))
    sums = np.zeros(len(examples))
    try:
        for pack in packs:
            feed = build_feed([examples[i] for i in pack])
            owner = np.repeat(pack, [examples[i].trained for i in pack])
            np.add.at(sums, owner, scorer.nll(feed))
            done(len(feed.tokens))
    finally:
        scorer.close()
    return sums


@dataclass(frozen=True)
class Choice:
    """Alternative continuations of a prompt."""

    prompt: Ids
    candidates: Sequence[Ids]

    @cached_property
    def heads(self) -> list[Ids]:
        """The fewest beginnings after whose tokens every later token of every candidate comes."""
        found: list[Ids] = []
        for head in sorted({ids[:-1] for ids in self.candidates}, key=lambda head: (-len(head), head)):
            if head and not any(longer[: len(head)] == head for longer in found):
                found.append(head)
        return found

    @property
    def tokens(self) -> int:
        """That `costs` will run."""
        return len(self.prompt) + sum(map(len, self.heads))

    def after(self, beginning: Ids) -> list[int]:
        """The tokens that candidates have after a beginning."""
        n = len(beginning)
        return sorted({ids[n] for ids in self.candidates if len(ids) > n and ids[:n] == beginning})


def costs(model: Model, loras: Loras, choices: Sequence[Choice], context: int, done: Done) -> list[list[float]]:
    """Negative log likelihood of each candidate of each choice. A prompt runs once, its candidates on top of it."""
    room = [len(choice.prompt) + max(map(len, choice.heads), default=0) for choice in choices]
    groups: list[list[int]] = []
    for i, size in enumerate(room):
        if not groups or sum(room[j] for j in groups[-1]) + size > context:
            groups.append([])
        groups[-1].append(i)
    rows = max(sum(room[i] for i in group) for group in groups)
    outputs = max(sum(max(1, room[i] - len(choices[i].prompt)) for i in group) for group in groups)
    decoder = Decoder(
        model.weights, rows, rows, outputs, model.precision, loras, context=max(context, *room),
        sequences=max(map(len, groups)),
    )  # fmt: skip
    found: list[dict[tuple[Ids, int], float]] = [{} for _ in choices]
    try:
        for group in groups:
            first = dict(zip(group, np.cumsum([0, *(room[i] for i in group)]).tolist(), strict=False))
            prompts = [_Part(i, first[i], 0, choices[i].prompt) for i in group]
            _run(decoder, choices, prompts, found)
            for turn in range(max(len(choices[i].heads) for i in group)):
                heads = [(i, choices[i].heads[turn]) for i in group if turn < len(choices[i].heads)]
                parts = [_Part(i, first[i], len(choices[i].prompt), head) for i, head in heads]
                _run(decoder, choices, parts, found)
            done(sum(choices[i].tokens for i in group))
    finally:
        decoder.close()
    return [
        [sum(known[ids[:n], ids[n]] for n in range(len(ids))) for ids in choice.candidates]
        for choice, known in zip(choices, found, strict=True)
    ]


@dataclass(frozen=True)
class _Part:
    """Tokens of a choice to run: its range of the cache begins at `first`, of which `held` slots are filled."""

    choice: int
    first: int
    held: int
    ids: Ids


def _run(
    decoder: Decoder, choices: Sequence[Choice], parts: Sequence[_Part], found: Sequence[dict[tuple[Ids, int], float]]
) -> None:
    """Runs parts together; notes the costs of what may follow a prompt, or each beginning of a head."""
    slots = np.concatenate([part.first + part.held + np.arange(len(part.ids)) for part in parts]).astype(np.int32)
    lo = np.repeat([part.first for part in parts], [len(part.ids) for part in parts]).astype(np.int32)
    wanted: list[tuple[int, Ids, int]] = []
    start = 0
    for part in parts:
        beginnings = [part.ids[: n + 1] for n in range(len(part.ids))] if part.held else [()]
        start += len(part.ids)
        wanted += [(part.choice, head, start - len(beginnings) + n) for n, head in enumerate(beginnings)]
    tokens = np.concatenate([part.ids for part in parts]).astype(np.int32)
    index = np.array([at for _, _, at in wanted], np.int32)
    logits = decoder.logits(tokens, slots - lo, lo, slots + 1, slots, index)
    for (i, head, _), row in zip(wanted, logits, strict=True):
        after = choices[i].after(head)
        found[i].update(zip(((head, token) for token in after), _nll(row, after), strict=True))


def _nll(logits: npt.NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    scaled = logits.astype(np.float64)
    top = scaled.max()
    values: list[float] = (top + np.log(np.exp(scaled - top).sum()) - scaled[list(tokens)]).tolist()
    return values
