"""The rows that `eval` scores: encoded, cut or split into windows, those with a label told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fabric.data.records import LABEL, Record, read_records
from fabric.errors import DataError
from fabric.evaluation.answers import Asked, asked
from fabric.evaluation.labels import LabelledRow, labelled_row, spellings
from fabric.evaluation.settings import EvalSettings
from fabric.files import shown
from fabric.generation.model import Text
from fabric.text.encode import EncodeReport, Example, encode_rows, prompt_ids, with_bos


@dataclass
class Rows:
    """Examples to score, those with a label, and what became of the rows."""

    examples: list[Example]
    labelled: list[LabelledRow]
    sources: list[str]  # of the labelled rows
    report: EncodeReport
    notes: list[str]
    asked: list[Asked]
    """Of rows for which an answer can be written; empty where none is."""


def read_rows(settings: EvalSettings, text: Text) -> Rows:
    """Reads and encodes the rows of the settings. Raises DataError where nothing of them can be scored."""
    rows, with_label, odd = Rows([], [], [], EncodeReport(), [], []), 0, 0
    for record in read_records(settings.data, used=settings.answers):
        if settings.llama_perplexity:
            examples = _llama_windows(settings, record, text, rows.report)
        else:
            examples = list(
                encode_rows(
                    [record], text.tokenizer, text.template, settings.ctx, rows.report, settings.stride, settings.train
                )
            )
        if settings.writes and (question := asked(record, text.tokenizer.end_texts)):
            rows.asked.append(question)
        if record.kind == "text" and settings.stride:
            examples = [*examples[:1], *(_new_part(e, settings.ctx - settings.stride) for e in examples[1:])]
        rows.examples += examples
        label = record.data.get(LABEL)
        if examples and label is not None and not spellings(label):
            odd += 1
        elif examples and label is not None:
            with_label += 1
            found = _labelled(settings, record, examples[-1], text)
            rows.labelled += [found] if found else []
            rows.sources += [record.source] if found else []
    name, report = shown(settings.data), rows.report
    text.template.tell(name)
    if not rows.examples:
        raise DataError(f"{name}: none of {report.rows} rows has anything to score")
    if settings.writes and not rows.asked:
        raise DataError(f"{name}: no row asks for an answer; --measures and --judge need chats or prompts")
    if settings.measures and not any(row.reference is not None for row in rows.asked):
        raise DataError(f"{name}: no row has an answer of its own that --measures could hold written ones against")
    what = [
        (report.cut, f"cut to {settings.ctx} tokens: raise --ctx to keep them whole"),
        (report.nothing_to_train, "left out: nothing to score (no answer, or it lies beyond the context)"),
        (
            with_label - len(rows.labelled),
            "have a label that is none of the labels asked for or does not begin the answer",
        ),
        (
            report.rows - len(rows.asked) if settings.writes else 0,
            "are texts or tokens, which ask nothing, and get no written answer",
        ),
        (odd, "have a label that is empty, or no text, number or truth value, and is not compared"),
    ]
    rows.notes += [f"{name}: {n} of {report.rows} rows {sentence}" for n, sentence in what if n]
    return rows


def _llama_windows(settings: EvalSettings, record: Record, text: Text, report: EncodeReport) -> list[Example]:
    """Windows as `llama-perplexity` has them: every one whole, a beginning-of-text token in place of its first token
    where the model wants one, and the tokens of its second half scored, but for the one in the middle."""
    if record.kind != "text":
        raise DataError(f"{record.source}: --llama-perplexity is of text rows, and this is a {record.kind} row")
    ids, ctx = prompt_ids(text.tokenizer, record.data["text"]), settings.ctx
    train = (np.arange(ctx) > ctx // 2).astype(np.uint8)
    windows = [with_bos(text.tokenizer, [])[:1] or ids[at : at + 1] for at in range(0, len(ids) - ctx + 1, ctx)]
    examples = [
        Example(np.array([*first, *ids[n * ctx + 1 : (n + 1) * ctx]], np.int32), train, record.source, ctx)
        for n, first in enumerate(windows)
    ]
    report.rows += 1
    report.nothing_to_train += not examples
    return examples


def _new_part(window: Example, seen: int) -> Example:
    """A window in which only tokens that the one before it did not score are scored."""
    train = window.train.copy()
    train[:seen] = 0
    return replace(window, train=train)


def _labelled(settings: EvalSettings, record: Record, example: Example, text: Text) -> LabelledRow | None:
    row = labelled_row(record, example, text.tokenizer)
    return row if row and (not settings.labels or row.label in settings.labels) else None
