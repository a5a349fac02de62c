"""Labelled accuracy: which of the labels does the model find likeliest as the beginning of an answer, or write there?

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
from typing import Any

import numpy as np

from fabric.data.jsonl import spelled
from fabric.data.records import LABEL, Record
from fabric.evaluation.scoring import Choice, Ids
from fabric.evaluation.settings import Accuracy, LabelCount
from fabric.evaluation.statistics import wilson
from fabric.text.encode import Example
from fabric.text.tokenizer import Tokenizer

MOST_LABELS = 64  # taken from rows; more are a mistake unless they are asked for

_LEAD = re.compile(r"\s*(?:<think>.*?</think>\s*)?", re.DOTALL)  # reasoning models think first, if only nothing
_PUNCTUATION = re.compile(r"[^\w\s]*")


@dataclass(frozen=True)
class LabelledRow:
    """A row whose answer begins with its label, `space` before it (white space, or a thought) and `ending` after it.

    ending: None where nothing follows.
    """

    label: str
    prompt: Ids
    space: str
    ending: str | None
    end: Ids  # the tokens that end the answer


def labelled_row(record: Record, example: Example, tokenizer: Tokenizer) -> LabelledRow | None:
    """The row for scoring labels; None where its last answer does not begin with its label."""
    names = spellings(record.data[LABEL])
    if not names or record.kind == "text":
        return None
    last = int(np.flatnonzero(example.train)[-1]) + 1
    first = int(np.flatnonzero(example.train[:last] == 0)[-1]) + 1
    ids = tuple(int(token) for token in example.tokens)
    stop = next((i for i in range(first, last) if ids[i] in tokenizer.end_ids), last)
    answer = tokenizer.decode(ids[first:stop], follows=ids[first - 1])
    found = _LEAD.match(answer)
    space = found.group() if found else ""
    label = next((name for name in names if begins_with(answer, name)), None)
    if label is None:
        return None
    rest = answer[len(space) + len(label) :]
    found = _PUNCTUATION.match(rest)
    return LabelledRow(label, ids[:first], space, found.group() if found and rest.strip() else None, ids[stop:last])


def spellings(label: Any) -> list[str]:
    """How a label may stand in an answer: a text as it is; a number or truth value as JSON spells it, as Python does,
    and a whole number without its fraction. None for what is no label."""
    if isinstance(label, str):
        return [label.strip()] if label.strip() else []
    if not isinstance(label, (bool, int, float)):
        return []
    whole = not isinstance(label, bool) and label == int(label)
    return list(dict.fromkeys([spelled(label), str(label), *([str(int(label))] if whole else [])]))


@dataclass(frozen=True)
class LabelTest:
    """All labels after each row's prompt."""

    rows: Sequence[LabelledRow]
    labels: Sequence[str]
    choices: Sequence[Choice]

    @property
    def ambiguous(self) -> tuple[str, str] | None:
        """Two labels of which one's tokens begin the other's, if there are any: the shorter one always wins."""
        for a, first in zip(self.labels, self.choices[0].candidates, strict=True):
            for b, second in zip(self.labels, self.choices[0].candidates, strict=True):
                if a != b and second[: len(first)] == first:
                    return a, b
        return None

    def likeliest(self, costs: Sequence[Sequence[float]]) -> list[str]:
        """The label of each row with the lowest negative log likelihood."""
        return [self.labels[int(np.argmin(row))] for row in costs]

    def written(self, answers: Sequence[str]) -> list[str]:
        """The label that each answer begins with, "" where it begins with none."""
        longest = sorted(self.labels, key=len, reverse=True)
        return [next((label for label in longest if begins_with(answer, label)), "") for answer in answers]

    def accuracy(self, chosen: Sequence[str]) -> Accuracy:
        """Of the label chosen for each row."""
        own, picks = Counter(row.label for row in self.rows), Counter(chosen)
        pairs = Counter((row.label, label) for row, label in zip(self.rows, chosen, strict=True))
        right = {label: pairs[label, label] for label in self.labels}
        f1 = [2 * right[label] / max(1, own[label] + picks[label]) for label in self.labels]
        columns = [*self.labels, *([""] if "" in picks else [])]
        return Accuracy(
            rows=len(self.rows),
            right=sum(right.values()),
            majority=max(own.values()) / len(self.rows),
            interval=wilson(sum(right.values()), len(self.rows)),
            macro_f1=sum(f1) / len(f1),
            confusion={label: {column: pairs[label, column] for column in columns} for label in self.labels},
            labels={label: LabelCount(own[label], picks[label], right[label]) for label in self.labels},
        )


def begins_with(answer: str, label: str) -> bool:
    """Whether an answer's first word, after white space or an empty thought, is the label."""
    found = _LEAD.match(answer)
    rest = answer[found.end() if found else 0 :]
    after = rest[len(label) :]
    return rest.startswith(label) and not (after and (label[-1] + after[0]).isalnum())


def label_test(rows: Sequence[LabelledRow], labels: Sequence[str], tokenizer: Tokenizer) -> LabelTest:
    """Every label, and what ends it, after every row's prompt."""
    common = Counter(row.ending for row in rows).most_common(1)[0][0]
    by_label = {label: Counter(row.ending for row in rows if row.label == label).most_common(1) for label in labels}
    endings = {label: found[0][0] if found else common for label, found in by_label.items()}
    choices = []
    for row in rows:
        candidates = []
        for label, ending in endings.items():
            end = row.end if ending is None else ()
            text = row.space + label + (ending or "")
            candidates.append((*tokenizer.encode(text, follows=row.prompt[-1]), *end))
        choices.append(Choice(row.prompt, candidates))
    return LabelTest(rows, labels, choices)
