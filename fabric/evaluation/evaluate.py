"""`eval`: loss and perplexity of rows, and labelled accuracy by likelihood, of a base with and without adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fabric.data.records import Record, read_records
from fabric.errors import DataError, UsageError
from fabric.evaluation.labels import MOST_LABELS, LabelledRow, LabelTest, label_test, labelled_row
from fabric.evaluation.model import Model, Text, open_model, open_text
from fabric.evaluation.scoring import Done, Loras, costs, score
from fabric.evaluation.settings import EvalReport, EvalSettings, Score
from fabric.files import check_streams, shown
from fabric.text.encode import EncodeReport, Example, encode_rows
from fabric.weights.settings import Progress


def evaluate(settings: EvalSettings, progress: Progress | None = None) -> EvalReport:
    """Scores a model on records. `progress`: called with (tokens done, tokens in all).

    Loss and perplexity are over trained tokens: all of a text but what a window starts from, the answers of other rows.
    Raises DataError, MissingInputError, UsageError, DeviceError.
    """
    check_settings(settings)
    with open_text(settings.model, settings.template) as text:
        rows = _read(settings, text)
        test = _label_test(settings, rows, text)
        adapters, where = settings.adapters, (settings.device, settings.threads, settings.precision)
        with open_model(text.gguf, adapters, *where) as model:
            variants = [model.loras, {}] if settings.compare else [model.loras]
            tokens = sum(len(example.tokens) for example in rows.examples)
            label_tokens = sum(choice.tokens for choice in test.choices) if test else 0
            meter = _Meter(len(variants) * (tokens + label_tokens), progress)
            start = time.monotonic()
            scores = [_score(settings, model, loras, rows, test, meter.add) for loras in variants]
            seconds = time.monotonic() - start
            return EvalReport(
                score=scores[0],
                base=scores[1] if settings.compare else None,
                rows=rows.report.rows,
                tokens=tokens,
                trained_tokens=sum(example.trained for example in rows.examples),
                cut=rows.report.cut,
                nothing_to_train=rows.report.nothing_to_train,
                precision=model.precision,
                seconds=seconds,
                tokens_per_s=meter.done / seconds,
                notes=rows.notes,
            )


def check_settings(settings: EvalSettings) -> None:
    """UsageError for values that make no sense."""
    check_streams([settings.data, settings.model, *(adapter.path for adapter in settings.adapters)], [])
    if settings.compare and not settings.adapters:
        raise UsageError("--compare sets an adapter against the base: give one with -a")
    if settings.ctx < 2:
        raise UsageError(f"--ctx must be at least 2 tokens, not {settings.ctx}")
    if settings.stride is not None and not 0 < settings.stride < settings.ctx:
        raise UsageError(f"--stride must lie between 0 and --ctx {settings.ctx}, not {settings.stride}")
    if len(settings.labels) == 1 or len(set(settings.labels)) < len(settings.labels):
        raise UsageError("--labels must name at least two labels, each once")


@dataclass
class _Rows:
    examples: list[Example]
    labelled: list[LabelledRow]
    report: EncodeReport
    notes: list[str]


class _Meter:
    """Counts tokens for whoever watches."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def add(self, tokens: int) -> None:
        self.done += tokens
        if self.progress:
            self.progress(self.done, self.total)


def _read(settings: EvalSettings, text: Text) -> _Rows:
    rows, with_label = _Rows([], [], EncodeReport(), []), 0
    for record in read_records(settings.data):
        examples = list(
            encode_rows([record], text.tokenizer, text.template, settings.ctx, rows.report, settings.stride)
        )
        if record.kind == "text" and settings.stride:
            examples = [*examples[:1], *(_new_part(e, settings.ctx - settings.stride) for e in examples[1:])]
        rows.examples += examples
        if examples and record.data.get("label") is not None:
            with_label += 1
            found = _labelled(settings, record, examples[-1], text)
            rows.labelled += [found] if found else []
    name, report = shown(settings.data), rows.report
    if not rows.examples:
        raise DataError(f"{name}: none of {report.rows} rows has anything to score")
    what = [
        (report.cut, f"cut to {settings.ctx} tokens: raise --ctx to keep them whole"),
        (report.nothing_to_train, "left out: nothing to score (no answer, or it lies beyond the context)"),
        (
            with_label - len(rows.labelled),
            "have a label that is none of the labels asked for or does not begin the answer",
        ),
    ]
    rows.notes += [f"{name}: {n} of {report.rows} rows {sentence}" for n, sentence in what if n]
    return rows


def _new_part(window: Example, seen: int) -> Example:
    """A window in which only tokens that the one before it did not score are scored."""
    train = window.train.copy()
    train[:seen] = 0
    return replace(window, train=train)


def _labelled(settings: EvalSettings, record: Record, example: Example, text: Text) -> LabelledRow | None:
    row = labelled_row(record, example, text.tokenizer)
    return row if row and (not settings.labels or row.label in settings.labels) else None


def _label_test(settings: EvalSettings, rows: _Rows, text: Text) -> LabelTest | None:
    """None, with a note, where there is no choice to make."""
    name = shown(settings.data)
    if settings.labels and not rows.labelled:
        raise DataError(f"{name}: no row has one of the labels {', '.join(settings.labels)} at the start of its answer")
    labels: Sequence[str] = settings.labels or list(dict.fromkeys(row.label for row in rows.labelled))
    if len(labels) > MOST_LABELS and not settings.labels:
        rows.notes.append(
            f"{name}: {len(labels)} different labels are too many to choose from; name some with --labels"
        )
        return None
    if len(labels) < 2:
        if labels:
            rows.notes.append(
                f"{name}: every label is {labels[0]!r}, so no accuracy is told; name others with --labels"
            )
        return None
    test = label_test(rows.labelled, labels, text.tokenizer)
    if test.ambiguous:
        a, b = test.ambiguous
        rows.notes.append(f"{name}: the label {a!r} begins {b!r}, which therefore is never found likelier")
    return test


def _score(
    settings: EvalSettings,
    model: Model,
    loras: Loras,
    rows: _Rows,
    test: LabelTest | None,
    done: Done,
) -> Score:
    loss = score(model, loras, rows.examples, settings.ctx, done) / sum(example.trained for example in rows.examples)
    if not math.isfinite(loss):
        raise DataError(f"{shown(settings.model)}: the loss is not a number; the model or an adapter is damaged")
    accuracy = test.accuracy(costs(model, loras, test.choices, settings.ctx, done)) if test else None
    return Score(loss, math.exp(min(loss, 700.0)), accuracy)
