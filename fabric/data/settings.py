"""Settings of `prepare`. Leans on fabric.settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fabric.settings import OnError, Seed, Setting, pair_of, split_names

InputFormat = Literal["auto", "jsonl", "json", "csv", "tsv", "text", "paragraphs"]
RecordKind = Literal["chat", "completion", "text"]


@dataclass(frozen=True)
class HoldOut:
    """A file that gets this fraction of the rows; they are then missing from the result."""

    path: str
    fraction: float

    @staticmethod
    def parse(text: str) -> HoldOut:
        """FILE=PART."""
        path, _, part = text.rpartition("=")
        try:
            fraction = float(part)
        except ValueError:
            fraction = -1.0
        if not path or not 0 < fraction < 1:
            raise ValueError("write FILE=PART with a part between 0 and 1, such as held.jsonl=0.1")
        return HoldOut(path, fraction)


def _cell_separator(text: str) -> str:
    return "\t" if text in ("tab", "\\t") else text


@dataclass(frozen=True)
class PrepareSettings:
    """`fabric prepare FILE...`: raw rows as records. Lengths are characters of all the contents of a record."""

    inputs: Annotated[
        tuple[str, ...],
        Setting(
            "JSONL, JSON, CSV, TSV or text; `-` or nothing: stdin", "FILE...", path="in", operand=True, stdin=True,
            many=True,
        ),
    ] = ("-",)  # fmt: skip
    format: Annotated[InputFormat, Setting("text: one record per file; paragraphs: divided at blank lines")] = "auto"
    """auto: by the name of a file, else by its first line. json: one array of rows."""
    separator: Annotated[
        str | None,
        Setting("cell separator of tables, `tab` for a tab; default: detected", "CHAR", parse=_cell_separator),
    ] = None
    as_record: Annotated[RecordKind, Setting("kind of record for rows with a prompt and an answer", flag="as")] = "chat"
    """Rows that are only a text stay texts."""
    fields: Annotated[
        Mapping[str, str],
        Setting(
            "rename a field of the rows; may be given again", "NEW=OLD", flag="field", many=True,
            parse=pair_of("NEW=OLD, such as prompt=question"),
        ),
    ] = field(default_factory=dict)  # fmt: skip
    keep: Annotated[
        tuple[str, ...] | None,
        Setting("fields to keep; default: all", "NAMES", flag="keep-fields", parse=split_names),
    ] = None
    """None: all that the record is not made of."""
    system: Annotated[str | None, Setting("system message of rows that have none", "TEXT")] = None
    prompt_template: Annotated[str | None, Setting("user message, from {prompt} and other {fields}", "TEXT")] = None
    """{prompt} is the message, other names in braces are fields of the row."""
    normalize: Annotated[bool, Setting("Unicode NFC, plain spaces and line ends")] = False
    """Also no spaces at ends of lines, no white space around contents."""
    min_chars: Annotated[int, Setting("shortest record", "N", low=0)] = 0
    max_chars: Annotated[int | None, Setting("longest record", "N", low=1)] = None
    drop_duplicates: Annotated[bool, Setting("keep only the first of equal records", flag="dedup")] = False
    """Further fields do not count."""
    balance: Annotated[str | None, Setting("keep equally many rows of each value of a field", "FIELD")] = None
    """Chosen by the seed, before any split."""
    shuffle: Annotated[bool, Setting("shuffle the rows, by --seed")] = False
    seed: Seed = 42
    hold_out: Annotated[
        tuple[HoldOut, ...],
        Setting(
            "hold out a share of the rows in a file; may be given again", "FILE=PART", flag="holdout", path="out",
            many=True, parse=HoldOut.parse,
        ),
    ] = ()  # fmt: skip
    stratify: Annotated[str | None, Setting("hold out the same share of each value of a field", "FIELD")] = None
    on_error: OnError = "stop"

    @property
    def compares(self) -> bool:
        """Whether anything depends on which rows are equal."""
        return self.drop_duplicates or bool(self.hold_out) or self.balance is not None
