"""Records: the JSON lines that commands pass to each other, checked as they are read.

chat `{"messages": [...], "tools": [...]}`, completion `{"prompt", "completion"}`, text `{"text"}`, rendered
`{"text", "train": [[start, end], ...], "literal": [[start, end], ...]}` in characters, tokens `{"tokens", "train"}`.
Fields beyond these (such as `label`) are kept and passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fabric.data.jsonl import read_json_lines
from fabric.errors import DataError
from fabric.files import read_input, shown

ROLES = ("system", "user", "assistant", "tool")
Kind = Literal["chat", "completion", "prompt", "text", "rendered", "tokens"]
_OWN_FIELDS = frozenset(("messages", "tools", "prompt", "completion", "text", "train", "literal", "tokens"))


@dataclass(frozen=True)
class Record:
    """One checked row: `data` is the JSON object as it came, `source` names it (`file:line`)."""

    kind: Kind
    data: dict[str, Any]
    source: str

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that no record kind owns."""
        return {key: value for key, value in self.data.items() if key not in _OWN_FIELDS}


def read_records(path: str, prompts: bool = False) -> Iterator[Record]:
    """Records of a JSONL file or `-`, one after the other. prompts: also rows with a prompt and no completion.

    Raises MissingInputError, and DataError naming `file:line`.
    """
    with read_input(path) as lines:
        for where, value in read_json_lines(lines, shown(path)):
            yield parse_record(value, where, prompts)


def parse_record(value: Any, where: str, prompts: bool = False) -> Record:
    """Tells what kind of record a JSON value is and checks its fields; DataError names `where`."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: a record is a JSON object, this is {_kind_of(value)}")
    if "messages" in value:
        _check_chat(value, where)
        return Record("chat", value, where)
    if "tokens" in value:
        _check_tokens(value, where)
        return Record("tokens", value, where)
    if "prompt" in value and ("completion" in value or prompts):
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


def _check_chat(value: dict[str, Any], where: str) -> None:
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: 'messages' is {_kind_of(messages)}; it must be a list of at least one message")
    for number, message in enumerate(messages, 1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{place} is {_kind_of(message)}; it must be an object with 'role' and 'content'")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{place} has the role {role!r}; roles are {', '.join(ROLES)}")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) for c in calls)):
            raise DataError(f"{place}: 'tool_calls' is not a list of objects")
        if not isinstance(message.get("content"), str) and not (calls and message.get("content") is None):
            raise DataError(f"{place}: 'content' is {_kind_of(message.get('content'))}; it must be a string")
    tools = value.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise DataError(f"{where}: 'tools' is not a list of objects")


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
        raise DataError(f"{where}: {field!r} is {_kind_of(spans)}; it must be a list of [start, end]")
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
        raise DataError(f"{where}: {field!r} is {_kind_of(value[field])}; it must be a string")


def _kind_of(value: Any) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, (list, dict, str)) and not value:
        return "an empty " + ("string" if isinstance(value, str) else "list" if isinstance(value, list) else "object")
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
