"""Log likelihoods of many rows: packed into feeds, run, and handed back row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.data.pack import build_feed, plan_epoch
from fabric.evaluation.model import Model
from fabric.models.inference import Scorer
from fabric.models.recorder import LoraSource
from fabric.text.encode import Example

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]

_PLAN_ROWS = 256  # packed at a time


class Question(NamedTuple):
    """Tokens (n,), and what may follow them: targets[i] after the token at after[i], which may repeat."""

    tokens: I32Array
    after: I32Array
    targets: I32Array

    @property
    def train(self) -> npt.NDArray[np.uint8]:
        """No flags: a question names its targets itself."""
        return np.zeros(len(self.tokens), np.uint8)


def question_of(example: Example) -> Question:
    """How likely are the trained tokens of a row?"""
    at = np.flatnonzero(example.train).astype(np.int32)
    return Question(example.tokens, at - 1, example.tokens[at])


def score(
    model: Model,
    loras: dict[str, LoraSource],
    questions: Sequence[Question],
    capacity: int,
    done: Callable[[int], None],
) -> list[F32Array]:
    """Negative log likelihoods of each question's targets. Feeds have at most `capacity` tokens, or one question.

    `done` is called with the tokens of each feed that ran.
    """
    lengths = [len(question.tokens) for question in questions]
    capacity = max(capacity, *lengths)
    steps = plan_epoch(
        lengths, batch=_PLAN_ROWS, capacity=capacity, accumulate=1, pack=True, shuffle=False, seed=0, epoch=0
    )
    packs = [pack for step in steps for pack in step]
    tokens = max(sum(lengths[i] for i in pack) for pack in packs)
    targets = max(sum(len(questions[i].targets) for i in pack) for pack in packs)
    scorer = Scorer(model.weights, tokens, model.precision, loras, targets)
    found: dict[int, F32Array] = {}
    try:
        for pack in packs:
            rows = [questions[i] for i in pack]
            found.update(zip(pack, _run(scorer, rows), strict=True))
            done(sum(lengths[i] for i in pack))
    finally:
        scorer.close()
    return [found[i] for i in range(len(questions))]


def _run(scorer: Scorer, rows: list[Question]) -> Iterator[F32Array]:
    starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
    ends = np.cumsum([len(row.targets) for row in rows])
    index = np.concatenate([row.after + start for row, start in zip(rows, starts, strict=False)]).astype(np.int32)
    targets = np.concatenate([row.targets for row in rows]).astype(np.int32)
    nll = scorer.nll(build_feed(rows)._replace(index=index, targets=targets))
    yield from np.split(nll, ends[:-1])
