"""What `fabric prepare` does: raw rows in, training records out. Rows stream through one at a time; only where a
shuffle, a split or a balance needs all of them do they wait in a temporary file, with an index in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

# Called with (bytes read, bytes in all or 0 where that is unknown), from the calling thread.
Progress = Callable[[int, int], None]

InputFormat = Literal["auto", "jsonl", "json", "csv", "tsv", "text", "paragraphs"]
RecordKind = Literal["chat", "completion", "text"]


@dataclass(frozen=True)
class HoldOut:
    """A file that gets this fraction of the rows; they are then missing from the result."""

    path: str
    fraction: float


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of `prepare`. Lengths are characters of all the contents of a record together."""

    inputs: tuple[str, ...] = ("-",)
    format: InputFormat = "auto"
    """auto: by the name of a file, else by its first line. json: one array of rows; text: a file is one record;
    paragraphs: text divided at blank lines."""
    as_record: RecordKind = "chat"
    """What two-sided rows become; rows that are only a text stay texts."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """New name: name in the rows, such as {"prompt": "question", "completion": "answer", "label": "class"}."""
    keep: tuple[str, ...] | None = None
    """Further fields (such as `label`) that pass through; None: all that the record is not made of."""
    system: str | None = None
    """System message of the rows that bring none."""
    prompt_template: str | None = None
    """What each user message becomes: {prompt} is the message, other names in braces are fields of the row."""
    normalize: bool = False
    """Unicode NFC, plain spaces and line ends, no spaces at ends of lines, no white space around contents."""
    min_chars: int = 0
    max_chars: int | None = None
    drop_duplicates: bool = False
    """Of records with equal contents keep the first; further fields do not count."""
    balance: str | None = None
    """A field: keep as many rows of each of its values as the rarest has, chosen by the seed, before any split."""
    shuffle: bool = False
    seed: int = 42
    hold_out: tuple[HoldOut, ...] = ()
    stratify: str | None = None
    """A field: each held-out file gets its fraction of each of the field's values."""
    on_error: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class PrepareReport:
    """Where the rows went: `read` is the sum of all the counts below it."""

    read: int
    written: int
    held_out: dict[str, int]
    """Path: rows."""
    bad: int
    duplicates: int
    too_short: int
    too_long: int
    unbalanced: int
    """Left out by `balance`."""
    bad_rows: tuple[str, ...]
    """Why rows were bad, as `file:line: reason`; the first 20."""
