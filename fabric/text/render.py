"""The function behind `fabric template`: chat records to rendered ones, or any records to token records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from fabric.data.jsonl import dumps
from fabric.data.records import Record, read_records
from fabric.text.encode import EncodeReport, Example, encode, spans_of
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF


@dataclass(frozen=True)
class RenderSettings:
    """Settings of `template`."""

    data: str
    """JSONL records: a path, or `-` for stdin."""
    model: str
    """The GGUF whose tokenizer and template are used."""
    template: str | None = None
    """A chat template file; None: the model's own, else one that its tokens fit."""
    tokens: bool = False
    """Write token records instead of rendered text."""
    check: bool = False
    """Write nothing; count tokens and show what is trained."""
    ctx: int | None = None
    """With `tokens` or `check`: rows longer than this many tokens are cut, texts split into windows."""
    stride: int | None = None
    """Tokens from one window of a text to the next; None: windows that train every token once."""


@dataclass
class RenderReport:
    """What became of the rows. `encoded` is filled in where tokens were counted (`tokens`, `check`)."""

    rows: int = 0
    written: int = 0
    answers: int = 0  # trained spans: of chat rows where text is rendered, of all rows where tokens are counted
    nothing_to_train: int = 0  # chat rows without an answer, or rows without a trained token
    encoded: EncodeReport | None = None
    lengths: list[int] = field(default_factory=list)  # `check`: tokens of each row, before it is cut
    context: int = 0  # `check`: --ctx, or what the model was made for
    over_context: int = 0  # rows longer than that
    sample: list[tuple[str, bool]] = field(default_factory=list)  # `check`: the first row's tokens, and which train

    def to_json(self) -> dict[str, Any]:
        """As JSON values; lengths as minimum, median, 95th percentile and maximum."""
        values: dict[str, Any] = {
            "rows": self.rows,
            "written": self.written,
            "answers": self.answers,
            "nothing_to_train": self.nothing_to_train,
        }
        if self.encoded is not None:
            counts = self.encoded
            values |= {"tokens": counts.tokens, "trained_tokens": counts.trained, "examples": counts.examples}
            values |= {"cut": counts.cut, "windowed": counts.windowed, "empty": counts.empty}
        if self.lengths:
            ordered = sorted(self.lengths)
            at = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
            values |= {"context": self.context, "over_context": self.over_context}
            values["lengths"] = {name: ordered[int(part * (len(ordered) - 1))] for name, part in at.items()}
        if self.sample:
            values["sample"] = [[text, trained] for text, trained in self.sample]
        return values


def render(settings: RenderSettings, out: BinaryIO) -> RenderReport:
    """Writes records as JSON lines to `out`.

    Chat rows become rendered ones with their trained spans; rows of other kinds already say what is trained and go
    through as they are. With `tokens` every row becomes a token record, a long text several. Fields that no record
    kind owns are kept. Raises DataError naming `file:line`, MissingInputError.
    """
    with GGUF.open(settings.model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        context = settings.ctx or gguf.get(f"{gguf.architecture}.context_length", int, 0)
    template = ChatTemplate.choose(tokenizer, settings.template)
    try:
        report = RenderReport(context=context)
        if settings.tokens or settings.check:
            _write_tokens(settings, tokenizer, template, report, out)
        else:
            for record in read_records(settings.data):
                report.rows += 1
                out.write(dumps(_rendered(record, template, report)) + b"\n")
                report.written += 1
        return report
    finally:
        template.close()


def _rendered(record: Record, template: ChatTemplate, report: RenderReport) -> dict[str, Any]:
    if record.kind != "chat":
        return record.data
    text, spans, literal = spans_of(record, template)
    report.answers += len(spans)
    report.nothing_to_train += not spans
    row: dict[str, Any] = {"text": text, "train": [list(span) for span in spans]}
    if literal:
        row["literal"] = [list(span) for span in literal]
    return row | record.extra


def _write_tokens(
    settings: RenderSettings, tokenizer: Tokenizer, template: ChatTemplate, report: RenderReport, out: BinaryIO
) -> None:
    report.encoded = EncodeReport()
    for record in read_records(settings.data):
        examples = encode(record, tokenizer, template, settings.ctx, settings.stride)
        report.encoded.count(record, examples)
        for example in examples:
            if settings.check:
                report.lengths.append(example.length)
                report.answers += int((np.diff(example.train, prepend=0) == 1).sum())
                report.over_context += 0 < report.context < example.length
                report.sample = report.sample or _sample(example, tokenizer)
            elif example.trained:
                row = {"tokens": example.tokens.tolist(), "train": example.train.tolist()} | record.extra
                out.write(dumps(row) + b"\n")
                report.written += 1
    report.rows, report.nothing_to_train = report.encoded.rows, report.encoded.nothing_to_train


def _sample(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    ids = example.tokens.tolist()
    rows = zip([None, *ids], ids, example.train.tolist(), strict=False)
    return [(tokenizer.decode([token], follows=before), bool(train)) for before, token, train in rows]
