"""Labelled accuracy by likelihood: which of the labels does the model find likeliest as the beginning of an answer?

The score of a label is the summed log likelihood, after the row's prompt, of its tokens and of what ends it: the
punctuation that mostly follows this label in the rows ("No."), or the end of the answer ("positive<|im_end|>"), so that
"1" does not win over "10" by being its beginning. What follows in the row itself is never looked at: it would give the
right label away.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fabric.data.records import Record
from fabric.evaluation.scoring import F32Array, Question
from fabric.evaluation.settings import Accuracy, LabelCount
from fabric.text.encode import Example
from fabric.text.tokenizer import Tokenizer

MOST_LABELS = 64  # taken from rows; more are a mistake unless they are asked for

_PUNCTUATION = re.compile(r"[^\w\s]*")
_Ids = tuple[int, ...]
_Edge = tuple[_Ids, int]  # a token after a beginning of a label


@dataclass(frozen=True)
class LabelledRow:
    """A row whose answer begins with its label, `space` before it and `ending` after it (None: nothing follows)."""

    label: str
    prompt: _Ids
    space: str
    ending: str | None
    end: _Ids  # the tokens that end the answer


def labelled_row(record: Record, example: Example, tokenizer: Tokenizer) -> LabelledRow | None:
    """The row for scoring labels; None where its last answer does not begin with its label."""
    label = record.data["label"]
    if not isinstance(label, str) or not label.strip() or record.kind == "text":
        return None
    label = label.strip()
    last = int(np.flatnonzero(example.train)[-1]) + 1
    first = int(np.flatnonzero(example.train[:last] == 0)[-1]) + 1
    ids = tuple(int(token) for token in example.tokens)
    stop = next((i for i in range(first, last) if ids[i] in tokenizer.end_ids), last)
    answer = tokenizer.decode(ids[first:stop])
    space = answer[: len(answer) - len(answer.lstrip())]
    rest = answer[len(space) + len(label) :]
    if not answer.startswith(space + label) or (rest and (label[-1] + rest[0]).isalnum()):
        return None
    found = _PUNCTUATION.match(rest)
    return LabelledRow(label, ids[:first], space, found.group() if found and rest.strip() else None, ids[stop:last])


@dataclass(frozen=True)
class LabelTest:
    """All rows and labels as questions. `edges[q]` names the targets of question q, which belongs to row `rows[q]`."""

    rows: Sequence[LabelledRow]
    labels: Sequence[str]
    questions: list[Question]
    owners: list[int]
    edges: list[list[_Edge]]
    candidates: list[list[_Ids]]  # a row's labels as tokens

    @property
    def ambiguous(self) -> tuple[str, str] | None:
        """Two labels of which one's tokens begin the other's, if there are any: the shorter one always wins."""
        for a, first in zip(self.labels, self.candidates[0], strict=True):
            for b, second in zip(self.labels, self.candidates[0], strict=True):
                if a != b and second[: len(first)] == first:
                    return a, b
        return None

    def accuracy(self, nll: Sequence[F32Array]) -> Accuracy:
        """From the likelihoods of the questions."""
        found: list[dict[_Edge, float]] = [{} for _ in self.rows]
        for owner, edges, values in zip(self.owners, self.edges, nll, strict=True):
            found[owner].update(zip(edges, map(float, values), strict=True))
        chosen = [
            self.labels[int(np.argmin([sum(costs[edge] for edge in _edges(ids)) for ids in candidates]))]
            for costs, candidates in zip(found, self.candidates, strict=True)
        ]
        own = Counter(row.label for row in self.rows)
        picks = Counter(chosen)
        right = Counter(row.label for row, pick in zip(self.rows, chosen, strict=True) if row.label == pick)
        return Accuracy(
            rows=len(self.rows),
            right=right.total(),
            majority=max(own.values()) / len(self.rows),
            labels={label: LabelCount(own[label], picks[label], right[label]) for label in self.labels},
        )


def label_test(rows: Sequence[LabelledRow], labels: Sequence[str], tokenizer: Tokenizer) -> LabelTest:
    """Every label after every row's prompt, as few questions: labels of a row share what they begin with."""
    common = Counter(row.ending for row in rows).most_common(1)[0][0]
    by_label = {label: Counter(row.ending for row in rows if row.label == label).most_common(1) for label in labels}
    endings = {label: found[0][0] if found else common for label, found in by_label.items()}
    test = LabelTest(rows, labels, [], [], [], [])
    for number, row in enumerate(rows):
        candidates = []
        for label, ending in endings.items():
            end = row.end if ending is None else ()
            candidates.append((*tokenizer.encode(row.space + label + (ending or "")), *end))
        test.candidates.append(candidates)
        for head, edges in _shared(candidates).items():
            prompt = np.array(row.prompt + head, np.int32)
            after = np.array([len(row.prompt) - 1 + len(before) for before, _ in edges], np.int32)
            targets = np.array([token for _, token in edges], np.int32)
            test.questions.append(Question(prompt, after, targets))
            test.owners.append(number)
            test.edges.append(edges)
    return test


def _edges(ids: _Ids) -> list[_Edge]:
    return [(ids[:i], ids[i]) for i in range(len(ids))]


def _shared(candidates: Sequence[_Ids]) -> dict[_Ids, list[_Edge]]:
    """The fewest beginnings after which every token of every candidate can be asked for, and those tokens."""
    heads = sorted({ids[:-1] for ids in candidates}, key=lambda head: (-len(head), head))
    kept: dict[_Ids, list[_Edge]] = {}
    for head in heads:
        if not any(longer[: len(head)] == head for longer in kept):
            kept[head] = []
    for edge in dict.fromkeys(edge for ids in candidates for edge in _edges(ids)):
        next(edges for head, edges in kept.items() if head[: len(edge[0])] == edge[0]).append(edge)
    return kept
