"""Records to training rows: token ids, and which of them are targets.

What a model is given stands before a trained span, and generation starts from exactly that; so no token spans the
start of a trained span: a prompt and its completion are tokenized as generation would see them, even where joint
tokenization would have merged across. A token that straddles a span's end is not trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fabric.data.records import Record
from fabric.data.skipped import Skipped
from fabric.errors import DataError, UsageError
from fabric.settings import TrainOn
from fabric.text.answers import Span
from fabric.text.template import ChatTemplate, Rendered
from fabric.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """One training row of n tokens."""

    tokens: npt.NDArray[np.int32]  # (n,)
    train: npt.NDArray[np.uint8]  # (n,) 1: this token is a target; the first never is
    source: str  # the record it came from, `file:line`
    length: int  # tokens of the row before it was cut to the context

    @property
    def cut(self) -> bool:
        """Whether it was longer than the context."""
        return self.length > len(self.tokens)

    @property
    def trained(self) -> int:
        """How many tokens are targets."""
        return int(np.count_nonzero(self.train))


@dataclass
class EncodeReport:
    """What became of the records, filled in while `encode_rows` runs."""

    rows: int = 0  # records read, but for bad ones
    examples: int = 0  # rows to train on
    tokens: int = 0  # of the examples
    trained: int = 0  # targets among them
    cut: int = 0  # examples that were longer than the context and lost their end
    windowed: int = 0  # texts that were longer and became several examples
    nothing_to_train: int = 0  # rows left out because no token of them is a target
    empty: int = 0  # those of them without any text or token
    longest: int = 0  # tokens of the longest example
    kinds: dict[str, int] = field(default_factory=dict)  # records by kind
    bad: Skipped = field(default_factory=Skipped)  # records left out because something is wrong with them

    def count(self, record: Record, examples: Sequence[Example]) -> None:
        """Counts a record and what it became."""
        self.rows += 1
        self.kinds[record.kind] = self.kinds.get(record.kind, 0) + 1
        self.windowed += len(examples) > 1
        self.empty += not examples
        self.nothing_to_train += not any(example.trained for example in examples)
        self.cut += sum(example.cut for example in examples)
        for example in examples:
            if example.trained:
                self.examples += 1
                self.tokens += len(example.tokens)
                self.trained += example.trained
                self.longest = max(self.longest, len(example.tokens))


def encode(
    record: Record,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    max_tokens: int | None = None,
    stride: int | None = None,
    train: TrainOn = "all",
) -> list[Example]:
    """The rows of a record: one, or for a text longer than max_tokens several windows; none where it is empty.

    chat: answers and their end-of-turn tokens are trained, or the last one of them (`train`), the rest is context.
    completion: the completion and the
    end-of-text token. text: everything, with the end-of-text token; windows start every `stride` tokens, by default
    such that every token is trained once, and each starts with the model's beginning-of-text token if it has one.
    rendered: its spans. tokens: as given. Rows of other kinds than text lose what is beyond max_tokens.
    Raises DataError naming the record, UsageError for lengths that make no sense.
    """
    if max_tokens is not None and max_tokens < 2:
        raise UsageError(f"a context of {max_tokens} tokens is too short; at least 2 are needed")
    if stride is not None and (max_tokens is None or not 0 < stride < max_tokens):
        raise UsageError(f"a stride of {stride} tokens needs a longer context; give one with --ctx")
    data = record.data
    if template is not None and record.rendered_with:
        template.rendered_earlier(record.rendered_with)
    if record.kind == "text":
        return _text_windows(data["text"], record.source, tokenizer, max_tokens, stride)
    if record.kind == "chat":
        if template is None:
            raise DataError(f"{record.source}: a chat row needs a chat template")
        text, spans, literal = spans_of(record, template, train)
        ids, flags = encode_spans(tokenizer, text, spans, literal)
    elif record.kind == "rendered":
        spans, literal = _pairs(data["train"]), _pairs(data.get("literal", []))
        ids, flags = encode_spans(tokenizer, data["text"], spans, literal)
    elif record.kind == "tokens":
        ids, flags = data["tokens"], data["train"]
        if ids and max(ids) >= tokenizer.vocab_size:
            raise DataError(
                f"{record.source}: token {max(ids)} is not in the model's vocabulary of {tokenizer.vocab_size}; "
                "the row was made for another model"
            )
    else:
        ids = prompt_ids(tokenizer, data["prompt"])
        target = tokenizer.encode(data.get("completion", ""), follows=ids[-1] if ids else None)
        if "completion" in data and tokenizer.eos_id is not None:
            target.append(tokenizer.eos_id)
        flags = [0] * len(ids) + [1] * len(target)
        ids = ids + target
    if not ids:
        return []
    return [_example(ids, flags, record.source, max_tokens)]


def encode_rows(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    max_tokens: int | None,
    report: EncodeReport,
    stride: int | None = None,
    train: TrainOn = "all",
    skip: bool = False,
) -> Iterator[Example]:
    """Rows of all records that have something to train on; `report` counts them and those that have not.

    skip: leave out records that cannot be encoded, which `report` counts too, instead of raising.
    """
    for record in records:
        try:
            examples = encode(record, tokenizer, template, max_tokens, stride, train)
        except DataError as error:
            if not skip:
                raise
            report.bad.count(error)
            continue
        report.count(record, examples)
        yield from (example for example in examples if example.trained)


def spans_of(record: Record, template: ChatTemplate, train: TrainOn) -> Rendered:
    """A chat record rendered, with its trained spans; DataError naming the record."""
    try:
        return template.spans(record.data["messages"], record.data.get("tools"), train)
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from None


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A plain prompt as generation starts from it: with the beginning-of-text token where the model wants one."""
    return with_bos(tokenizer, tokenizer.encode(prompt))


def with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Puts the beginning-of-text token in front where the model wants one and it is not there."""
    bos = tokenizer.bos_id
    return [bos, *ids] if tokenizer.add_bos and bos is not None and ids[:1] != [bos] else ids


def encode_spans(
    tokenizer: Tokenizer, text: str, spans: Sequence[Span], literal: Sequence[Span] = ()
) -> tuple[list[int], list[int]]:
    """Ids and train flags of rendered text. Control tokens are recognised outside `literal`."""
    pieces = tokenizer.encode_pieces(text, special=True, literal=literal, cuts=[start for start, _ in spans])
    first = np.array([start for start, _ in spans] or [0], np.int64)
    last = np.array([end for _, end in spans] or [0], np.int64)
    span = np.maximum(np.searchsorted(first, pieces.starts, side="right") - 1, 0)
    inside = (pieces.starts >= first[span]) & (pieces.ends <= last[span]) & (pieces.starts < last[span])
    train = inside.astype(int).tolist()
    ids = with_bos(tokenizer, pieces.ids)
    return ids, [0] * (len(ids) - len(train)) + train


def _text_windows(
    text: str, source: str, tokenizer: Tokenizer, max_tokens: int | None, stride: int | None
) -> list[Example]:
    ids = tokenizer.encode(text)
    if not ids:
        return []
    if tokenizer.eos_id is not None:
        ids.append(tokenizer.eos_id)
    bos = with_bos(tokenizer, [])
    body = len(ids) if max_tokens is None else max_tokens - len(bos)
    # Without a beginning-of-text token a window's first token is context, so windows share one.
    step = stride or max(body - (not bos), 1)
    last = max(len(ids) - (body - step), 1)
    windows = [bos + ids[at : at + body] for at in range(0, last, step)]
    return [_example(window, [1] * len(window), source, max_tokens) for window in windows]


def _example(ids: Sequence[int], train: Sequence[int], source: str, max_tokens: int | None) -> Example:
    tokens, flags = np.array(ids[:max_tokens], np.int32), np.array(train[:max_tokens], np.uint8)
    flags[0] = 0
    return Example(tokens, flags, source, len(ids))


def _pairs(ranges: list[list[int]]) -> list[Span]:
    return [(start, end) for start, end in ranges]
