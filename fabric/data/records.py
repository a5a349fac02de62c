"""Records: the JSON lines that commands pass to each other, checked as they are read.

chat `{"messages": [...], "tools": [...]}`, completion `{"prompt", "completion"}`, text `{"text"}`, rendered
`{"text", "train": [[start, end], ...], "literal": [[start, end], ...]}` in characters, tokens `{"tokens", "train"}`.
A prompt and completion that are lists of messages are a chat. Fields beyond these (such as `label`) are kept and passed
on; those that nothing uses are counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fabric.data.jsonl import dumps, read_json_lines
from fabric.data.lines import open_rows
from fabric.data.messages import Message, kind_of, other_parts, read_messages, two_sides
from fabric.errors import DataError
from fabric.files import shown
from fabric.notices import notice

Kind = Literal["chat", "completion", "prompt", "text", "rendered", "tokens"]
DIGEST_BYTES = 16

_FIELDS: dict[Kind, tuple[str, ...]] = {
    "chat": ("messages", "tools"),
    "completion": ("prompt", "completion"),
    "prompt": ("prompt",),
    "text": ("text",),
    "rendered": ("text", "train", "literal"),
    "tokens": ("tokens", "train"),
}
RECORD_FIELDS = frozenset(name for names in _FIELDS.values() for name in names)
PREPARE = "; `fabric prepare` makes records of plain text and tables"
LABEL = "label"  # a further field with a meaning: the beginning of the right answer
RENDERED_WITH = "template_hash"  # of rendered and token records: the chat template that made them
_MOST_NAMED = 8
_MOST_COUNTED = 1000  # names of fields; rows may use them for keys of their own


@dataclass(frozen=True)
class Record:
    """One checked row: `data` is the JSON object, messages made one way; `source` names it (`file:line`)."""

    kind: Kind
    data: dict[str, Any]
    source: str

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that no record kind owns."""
        return {key: value for key, value in self.data.items() if key not in RECORD_FIELDS}

    @property
    def rendered_with(self) -> str | None:
        """The hash of the chat template that a rendered or token record says it was made with."""
        told = self.data.get(RENDERED_WITH) if self.kind in ("rendered", "tokens") else None
        return told if isinstance(told, str) else None

    @property
    def unused(self) -> list[str]:
        """The fields that this kind of record does not have."""
        known = {*_FIELDS[self.kind], LABEL} | ({RENDERED_WITH} if self.rendered_with else set())
        return [key for key in self.data if key not in known]

    @property
    def digest(self) -> bytes:
        """A hash of what the record is made of; further fields do not count."""
        made_of = dumps([self.data.get(name) for name in _FIELDS[self.kind]])
        return hashlib.blake2b(made_of, digest_size=DIGEST_BYTES).digest()


class Unused:
    """Counts the rows that have fields which nothing uses, to say so in one line."""

    def __init__(self) -> None:
        self.rows = self.all = 0
        self.names: Counter[str] = Counter()

    def count(self, names: Iterable[str]) -> None:
        """A row and those of its fields."""
        names = list(names)
        self.all += 1
        self.rows += bool(names)
        self.names.update(name for name in names if name in self.names or len(self.names) < _MOST_COUNTED)

    def tell(self, source: str, what_to_do: str = "") -> None:
        """Raises DataError with --strict."""
        if self.rows:
            named = ", ".join(f"{name!r:.60} ({count:,})" for name, count in self.names.most_common(_MOST_NAMED))
            more = f" and {len(self.names) - _MOST_NAMED:,} more" if len(self.names) > _MOST_NAMED else ""
            notice(f"{source}: {self.rows:,} of {self.all:,} rows have unused fields: {named}{more}{what_to_do}")


def read_records(
    path: str, prompts: bool = False, bad: Callable[[DataError], None] | None = None, used: Collection[str] = ()
) -> Iterator[Record]:
    """Records of a JSONL file or `-`, one after the other. prompts: also rows with a prompt and no completion.
    used: further fields that the caller reads.

    Unused fields are reported after the last row. Raises MissingInputError, and DataError naming `file:line`,
    with which `bad` is called instead if it is given.
    """
    unused = Unused()
    with open_rows(path) as lines:
        for where, value in read_json_lines(lines, shown(path), bad, PREPARE):
            try:
                record = parse_record(value, where, prompts)
            except DataError as error:
                if bad is None:
                    raise
                bad(error)
                continue
            inside = [other_parts(value.get(side)) for side in ("messages", "prompt", "completion")]
            unused.count(sorted({*record.unused}.union(*inside).difference(used)))
            yield record
    unused.tell(shown(path))


def parse_record(value: Any, where: str, prompts: bool = False) -> Record:
    """Tells what kind of record a JSON value is and checks its fields; DataError names `where`."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: a record is a JSON object, this is {kind_of(value)}")
    if "messages" in value:
        return _chat(value, read_messages(value["messages"], "messages", where), where)
    if "tokens" in value:
        _check_tokens(value, where)
        return Record("tokens", value, where)
    if "prompt" in value and ("completion" in value or prompts):
        if isinstance(value["prompt"], list) or isinstance(value.get("completion"), list):
            return _sided_chat(value, where)
        _check_string(value, "prompt", where)
        if "completion" not in value:
            return Record("prompt", value, where)
        _check_string(value, "completion", where)
        return Record("completion", value, where)
    if "text" in value:
        _check_string(value, "text", where)
        if "train" not in value:
            return Record("text", value, where)
        for field in ("train", "literal"):
            _check_spans(value.get(field, []), field, len(value["text"]), where)
        return Record("rendered", value, where)
    raise DataError(
        f"{where}: the object has neither 'messages', 'prompt' and 'completion', 'text' nor 'tokens'; "
        "`fabric prepare` makes records of other rows"
    )


def _chat(value: Mapping[str, Any], messages: list[Message], where: str) -> Record:
    data = {**value, "messages": messages}
    tools = data.pop("tools", None)
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"{where}: 'tools' is not a list of objects")
    return Record("chat", {**data, "tools": tools} if tools else data, where)


def _sided_chat(value: dict[str, Any], where: str) -> Record:
    """Messages to answer, and those of the answer if it is there."""
    fields = ("prompt", "completion")
    others = {name: item for name, item in value.items() if name not in fields}
    for field in fields:
        if field in value and not isinstance(value[field], list):
            _check_string(value, field, where)
    if "completion" in value:
        return _chat(others, two_sides(value["prompt"], value["completion"], fields, where), where)
    return _chat(others, read_messages(value["prompt"], "prompt", where), where)


def _check_tokens(value: dict[str, Any], where: str) -> None:
    tokens = value["tokens"]
    if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < 1 << 31 for t in tokens):
        raise DataError(f"{where}: 'tokens' is not a list of token ids")
    train = value.get("train")
    if not isinstance(train, list) or not all(type(t) is int and t in (0, 1) for t in train):
        raise DataError(f"{where}: 'train' is not a list of 0 and 1, one a token")
    if len(train) != len(tokens):
        raise DataError(f"{where}: 'train' has {len(train)} entries for {len(tokens)} tokens")


def _check_spans(spans: Any, field: str, length: int, where: str) -> None:
    if not isinstance(spans, list):
        raise DataError(f"{where}: {field!r} is {kind_of(spans)}; it must be a list of [start, end]")
    last = 0
    for span in spans:
        if not isinstance(span, list) or len(span) != 2 or not all(type(s) is int for s in span):
            raise DataError(f"{where}: {field!r} holds {str(span)[:40]}, which is not [start, end]")
        if not last <= span[0] < span[1] <= length:
            raise DataError(
                f"{where}: the {field!r} range {span} is empty, overlaps, is out of order or leaves the text, "
                f"which has {length} characters"
            )
        last = span[1]


def _check_string(value: dict[str, Any], field: str, where: str) -> None:
    if not isinstance(value[field], str):
        raise DataError(f"{where}: {field!r} is {kind_of(value[field])}; it must be a string")
