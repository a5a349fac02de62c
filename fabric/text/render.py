"""The function behind `fabric template`: chat records to rendered ones, or any records to token records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from fabric.data.jsonl import dumps
from fabric.data.records import RENDERED_WITH, Record, read_records
from fabric.data.skipped import Skipped
from fabric.errors import DataError
from fabric.files import shown
from fabric.text.encode import EncodeReport, Example, encode, spans_of
from fabric.text.settings import RenderSettings
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.gguf import GGUF
from fabric.weights.rewrite import check_kind


@dataclass
class RenderReport:
    """What became of the rows. `encoded` is filled in where tokens were counted (`tokens`, `check`)."""

    rows: int = 0
    written: int = 0
    answers: int = 0  # trained spans: of chat rows where text is rendered, of all rows where tokens are counted
    nothing_to_train: int = 0  # chat rows without an answer, or rows without a trained token
    bad: Skipped = field(default_factory=Skipped)  # rows left out because something is wrong with them
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
            "bad": self.bad.rows,
            "bad_rows": self.bad.named,
            "reasons": dict(self.bad.reasons.most_common()),
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
        check_kind(gguf)
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        context = settings.ctx or gguf.get(f"{gguf.architecture}.context_length", int, 0)
    template = ChatTemplate.choose(tokenizer, settings.template)
    try:
        report = RenderReport(context=context)
        report.encoded = EncodeReport() if settings.tokens or settings.check else None
        skip = report.bad.count if settings.on_error == "skip" else None
        write = _text_rows if report.encoded is None else _token_rows
        for record in read_records(settings.data, bad=skip):
            try:
                rows = write(record, settings, tokenizer, template, report)
            except DataError as error:
                if skip is None:
                    raise
                skip(error)
                continue
            for row in rows:
                out.write(dumps(row) + b"\n")
                report.written += 1
        report.rows += report.bad.rows
        if report.rows and report.rows == report.bad.rows:
            raise DataError(
                f"{shown(settings.data)}: all {report.rows} rows are bad; the first is {report.bad.named[0]}"
            )
        template.tell(shown(settings.data))
        return report
    finally:
        template.close()


def _text_rows(
    record: Record, settings: RenderSettings, tokenizer: Tokenizer, template: ChatTemplate, report: RenderReport
) -> list[dict[str, Any]]:
    if record.kind != "chat":
        report.rows += 1
        return [record.data]
    text, spans, literal = spans_of(record, template, settings.train)
    report.rows += 1
    report.answers += len(spans)
    report.nothing_to_train += not spans
    row: dict[str, Any] = {"text": text, "train": [list(span) for span in spans]}
    if literal:
        row["literal"] = [list(span) for span in literal]
    return [row | record.extra | {RENDERED_WITH: template.hash}]


def _token_rows(
    record: Record, settings: RenderSettings, tokenizer: Tokenizer, template: ChatTemplate, report: RenderReport
) -> list[dict[str, Any]]:
    """Token records, and none for a check, which looks at them."""
    examples = encode(record, tokenizer, template, settings.ctx, settings.stride, settings.train)
    assert report.encoded is not None
    report.encoded.count(record, examples)
    report.rows, report.nothing_to_train = report.encoded.rows, report.encoded.nothing_to_train
    if not settings.check:
        more = record.extra | ({RENDERED_WITH: template.hash} if record.kind == "chat" else {})
        return [{"tokens": e.tokens.tolist(), "train": e.train.tolist()} | more for e in examples if e.trained]
    for example in examples:
        report.lengths.append(example.length)
        report.answers += int((np.diff(example.train, prepend=0) == 1).sum())
        report.over_context += 0 < report.context < example.length
        report.sample = report.sample or _sample(example, tokenizer)
    return []


def _sample(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    ids = example.tokens.tolist()
    rows = zip([None, *ids], ids, example.train.tolist(), strict=False)
    return [(tokenizer.decode([token], follows=before), bool(train)) for before, token, train in rows]
