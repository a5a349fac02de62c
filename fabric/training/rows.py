"""The rows of a run: read, encoded, counted, and split into training and validation."""

from __future__ import annotations

from dataclasses import dataclass, field

from fabric.data.index import Index, each, split
from fabric.data.index import Rows as IndexRows
from fabric.data.records import read_records
from fabric.errors import DataError, UsageError
from fabric.files import shown
from fabric.generation.model import Text
from fabric.notices import notice, remark
from fabric.text.carry import chat_of, end_tokens
from fabric.text.encode import EncodeReport, Example, encode_rows
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.training.defaults import most_tokens
from fabric.training.samples import Samples, read_samples
from fabric.training.settings import TrainSettings
from fabric.weights.chat import CHAT_TEMPLATE, Chat
from fabric.weights.gguf import GGUF


@dataclass(frozen=True)
class Rows:
    """Examples in file order; `notes` are sentences about rows that were cut or left out; `chat` is what the result
    says of how to prompt it.
    """

    train: list[Example]
    val: list[Example]
    notes: list[str]
    chat: Chat = field(default_factory=dict)
    samples: Samples | None = None


def load_rows(settings: TrainSettings, gguf: GGUF, carried: Chat) -> Rows:
    """Reads and encodes the rows of a run. carried: what the adapter that it starts from says of how to prompt it.

    DataError where nothing is left to train on.
    """
    tokenizer = Tokenizer.from_gguf(gguf.metadata)
    earlier = {shown(str(settings.adapter)): carried[CHAT_TEMPLATE]} if carried else {}
    template = ChatTemplate.choose(tokenizer, settings.template, earlier)
    notes: list[str] = []
    ends: set[int] = set()
    kinds: set[str] = set()
    skip, most = settings.on_error == "skip", most_tokens(settings, gguf)

    def load(path: str, stride: int | None = None) -> _Loaded:
        report, loaded = EncodeReport(), _Loaded([], Index())
        for record in read_records(path, bad=report.bad.count if skip else None):
            rows = encode_rows([record], tokenizer, template, most, report, stride, settings.train, skip)
            examples = list(rows)
            if examples:
                kinds.add(record.kind)
                if record.kind in ("chat", "rendered") or record.rendered_with:
                    ends.update(end_tokens(examples[0], tokenizer))
                loaded.rows.append(examples)
                loaded.index.append(0, record.digest, b"", b"")
        what = [
            (report.cut, f"cut to {most} tokens: raise --ctx to keep them whole"),
            (report.nothing_to_train, "left out: nothing to train on (no answer, or it lies beyond the context)"),
        ]
        count = report.rows + report.bad.rows
        notes.extend(report.bad.told(path, count))
        notes.extend(f"{path}: {n} of {count} rows {text}" for n, text in what if n)
        if not loaded.rows:
            why = f": {report.cut} were cut to {most} tokens, raise --ctx" if report.cut else ""
            why += f"; the first bad one is {report.bad.named[0]}" if report.bad.rows else ""
            raise DataError(f"{path}: none of {count} rows has anything to train on{why}")
        template.tell(path)
        return loaded

    try:
        train = load(settings.data, settings.stride)
        fraction = _fraction(settings)
        val = load(settings.val) if settings.val and fraction is None else None
        chat = _chat(settings, template, tokenizer, kinds, ends) or carried
        samples = None
        if settings.sample:
            samples = read_samples(settings.sample, Text(gguf, tokenizer, template, ()), notes)
            template.tell(settings.sample)
    finally:
        template.close()
    if val:
        known = train.index.known()
        both = sum(val.index.digest(row) in known for row in each(val.index.all()))
        if both:
            notice(f"{settings.val}: {both:,} of {len(val.rows):,} validation rows also train")
        return Rows(train.examples(), val.examples(), notes, chat, samples)
    if fraction is None:
        return Rows(train.examples(), [], notes, chat, samples)
    if len(train.rows) < 2:
        what = "one row cannot be divided, as the windows of a text stay together: name a file with --val"
        raise DataError(f"{settings.data}: {what}")
    kept, held = split(train.index, train.index.all(), [(f"--val {fraction:g}", fraction)], settings.seed)
    if not len(kept):
        what = f"{len(train.rows):,} rows, equal ones kept together, are too few to hold out a fraction of {fraction:g}"
        raise DataError(f"{settings.data}: {what}")
    return Rows(train.examples(kept), train.examples(held), notes, chat, samples)


def _chat(
    settings: TrainSettings, template: ChatTemplate, tokenizer: Tokenizer, kinds: set[str], ends: set[int]
) -> Chat:
    """What the result says of how to prompt it: the template of its conversations, or the one that was named for rows
    which are rendered already and do not say by which."""
    if template.used or (settings.template and "rendered" in kinds and not template.used_another):
        return chat_of(template, tokenizer, ends)
    if template.used_another:
        return {}
    if settings.template:
        notice(f"{shown(settings.template)}: no row is a conversation, so this chat template has no effect")
    elif "rendered" in kinds and tokenizer.chat_template is None:
        remark("rows are rendered already and the base has no chat template: name theirs with --template to ship it")
    return {}


@dataclass(frozen=True)
class _Loaded:
    """The examples of each row that has any, and the index of those rows."""

    rows: list[list[Example]]
    index: Index

    def examples(self, rows: IndexRows | None = None) -> list[Example]:
        """Of these rows, or of all."""
        return [e for row in each(self.index.all() if rows is None else rows) for e in self.rows[row]]


def _fraction(settings: TrainSettings) -> float | None:
    """The number in `--val 0.05`; None for a file's name."""
    fraction = settings.val_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(
            f"--val {settings.val}: a fraction lies between 0 and 1; a file of that name is ./{settings.val}"
        )
    return fraction
