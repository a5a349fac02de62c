"""The shapes that rows of data sets have, and how each becomes a record: chat messages, ShareGPT conversations, pairs
of a prompt and an answer under their various names, questions whose answer lies in a text, and plain texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fabric.data.jsonl import spelled
from fabric.data.messages import (
    KNOWN_FIELDS,
    Message,
    is_masked,
    other_fields,
    other_parts,
    read_messages,
    read_tools,
    two_sides,
    unpacked,
)
from fabric.data.records import LABEL, RECORD_FIELDS, Kind, Record
from fabric.errors import DataError, UsageError

if TYPE_CHECKING:
    from fabric.data.settings import PrepareSettings

# Names of a prompt and its answer in the order in which they are looked for: pairs of known data sets, then all others.
_PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
_ANSWERS = ("completion", "output", "response", "answer", "solution")
_PAIRS = tuple(dict.fromkeys((
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"), ("question", "response"), ("query", "response"), ("input", "output"),
    *((prompt, answer) for prompt in _PROMPTS for answer in _ANSWERS),
)))  # fmt: skip
_BELOW = ("input", "context")  # what stands below a prompt, a paragraph each
_SYSTEM = ("system", "system_prompt", "system_message")
_CONVERSATIONS = ("conversations", "conversation")
_OPTIONAL = (*_BELOW, *_SYSTEM, "history", "tools")  # fields of known formats that may be empty
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_ONE_ANSWER = ["user", "assistant"]
_ODD_SPACE = re.compile(r"[^\S\n\t ]")
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class Made(NamedTuple):
    """A record, the fields of the row by their new names, and those that have no effect on the record."""

    record: Record
    fields: dict[str, Any]
    unused: list[str]


def known_fields(names: Collection[str], mapped: Mapping[str, str]) -> bool:
    """Whether rows with these fields have a shape, after the mapping of `PrepareSettings.fields`."""
    have = set(names) | {new for new, old in mapped.items() if old in names}
    return bool({"text", "completion"} & have) or any({prompt, answer} <= have for prompt, answer in _PAIRS)


def to_record(row: Any, where: str, settings: PrepareSettings) -> Made:
    """What a row becomes. Raises DataError naming `where`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is a JSON object, this is {str(row)[:40]!r}")
    row, lost = _renamed(row, settings.fields, where)
    if "tokens" in row or ("text" in row and "train" in row):
        raise DataError(f"{where}: the row is rendered already, there is nothing to prepare")
    turns, used = _turns(row, where, settings)
    used |= {name for name in _OPTIONAL if name in row and row[name] in _NOTHING}
    if isinstance(turns, str):
        data: dict[str, Any] = {"text": normalized(turns) if settings.normalize else turns}
        if not data["text"].strip():
            raise DataError(f"{where}: the text is empty")
        kind: Kind = "text"
    else:
        lost |= other_fields(turns).union(*(other_parts(row[name]) for name in used if name in row))
        if used.intersection(_CONVERSATIONS):
            turns = [{key: turn[key] for key in turn if key in KNOWN_FIELDS} for turn in turns]
        used |= _complete(turns, row, where, settings)
        _check_said(turns, where)
        data, tools = _two_sided(turns, row, where, settings)
        kind, used = "chat" if "messages" in data else "completion" if "prompt" in data else "text", used | tools
    others = [name for name in row if name not in used]
    passed = others if settings.keep is None else [name for name in row if name in settings.keep]
    data |= {name: row[name] for name in passed if name not in RECORD_FIELDS}
    if settings.keep is None:
        named = (LABEL, settings.balance, settings.stratify, *settings.fields)
        lost |= {name for name in others if name not in named and row[name] not in _NOTHING}
    return Made(Record(kind, data, where), row, sorted(lost))


def contents(record: Mapping[str, Any]) -> list[str]:
    """The texts a record is made of."""
    if "messages" in record:
        return [message.get("content") or "" for message in record["messages"]]
    return [record[name] for name in ("prompt", "completion", "text") if name in record]


def normalized(text: str) -> str:
    """Unicode NFC; plain spaces and line ends; no spaces at ends of lines and no white space around the text.
    Indentation and spaces between words stay."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line.rstrip() for line in _ODD_SPACE.sub(" ", text).split("\n")).strip()


def _renamed(row: dict[str, Any], mapped: Mapping[str, str], where: str) -> tuple[dict[str, Any], set[str]]:
    """A row with its fields by their new names, and the names of those that had to make room for them."""
    renamed = {name: value for name, value in row.items() if name not in mapped.values()}
    replaced = {new for new in mapped if new in renamed}
    for new, old in mapped.items():
        if old not in row:
            raise DataError(f"{where}: the row has no field {old!r}; it has {', '.join(map(repr, row)) or 'none'}")
        renamed[new] = row[old]
    return renamed, replaced


def _turns(row: dict[str, Any], where: str, settings: PrepareSettings) -> tuple[list[Message] | str, set[str]]:
    """The messages or the text of a row, and the fields that they come from."""
    mapped = settings.fields.keys()
    paired = bool({"prompt", "completion"} & mapped)
    if "text" in mapped and not paired and not {"messages", "question"} & mapped:
        return _string(row, "text", where), {"text"}
    if row.get("messages") is not None and not paired:
        return read_messages(row["messages"], "messages", where, raw=True), {"messages"}
    for name in _CONVERSATIONS:
        if isinstance(row.get(name), list) and not paired:
            return read_messages(row[name], name, where, raw=True), {name}
    pairs = _pairs_among(frozenset(row))
    for prompt, answer in sorted(pairs, key=lambda pair: row[pair[0]] is None or row[pair[1]] is None)[:1]:
        return _pair(row, prompt, answer, where, settings)
    if "completion" in row and settings.prompt_template is not None:
        return two_sides("", _string(row, "completion", where), ("", "completion"), where), {"completion"}
    if "question" in row and "text" in row and not paired:
        asked, (_, found, said) = _string(row, "question", where), _string(row, "text", where).partition("\nA:")
        if found:
            return two_sides(asked, said.strip(), ("question", "text"), where), {"question", "text"}
        raise DataError(f"{where}: beside the question the text has no line that begins with 'A:'; map the fields")
    if "text" in row and not paired:
        return _string(row, "text", where), {"text"}
    names = ", ".join(map(repr, row)) or "none"
    raise DataError(f"{where}: the fields ({names}) have no known shape; map them to prompt and completion, or to text")


@lru_cache(256)
def _pairs_among(names: frozenset[str]) -> list[tuple[str, str]]:
    return [pair for pair in _PAIRS if names.issuperset(pair)]


def _pair(
    row: dict[str, Any], prompt: str, answer: str, where: str, settings: PrepareSettings
) -> tuple[list[Message], set[str]]:
    """A prompt and its answer, texts or lists of messages; what belongs below the prompt, and earlier turns."""
    used = {prompt, answer}
    asked, said = (row[name] if isinstance(row[name], list) else _string(row, name, where) for name in (prompt, answer))
    if isinstance(asked, str):
        placed = _PLACE.findall(settings.prompt_template or "{prompt}")
        below = [name for name in _BELOW if name not in (prompt, answer, *placed) and "prompt" in placed]
        parts = {name: _paragraphs(row, name, where) for name in below if row.get(name)}
        used |= parts.keys()
        asked = "\n\n".join(part for part in (asked, *parts.values()) if part.strip())
    turns = two_sides(asked, said, (prompt, answer), where, raw=True)
    if row.get("history"):
        turns = [*_history(row["history"], where), *turns]
        used.add("history")
    return turns, used


def _paragraphs(row: dict[str, Any], name: str, where: str) -> str:
    """A text, or the texts of a list."""
    value = row[name]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    if isinstance(value, (list, dict)):
        raise DataError(
            f"{where}: {name!r} is not a text but {value!r:.40}; place texts with --prompt-template instead"
        )
    return _string(row, name, where)


def _history(history: Any, where: str) -> list[Message]:
    """Earlier turns as alpaca rows have them: pairs of a question and its answer, in a cell of a table as JSON."""
    if isinstance(history, str):
        history = unpacked(history, f"{where}: 'history'") if history.strip() else []
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history) and history:
        return read_messages(history, "history", where, raw=True)
    turns: list[Message] = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise DataError(f"{where}: 'history' holds {pair!r:.60}, which is no pair of a question and an answer")
        turns += two_sides(pair[0], pair[1], ("history", "history"), where)
    return turns


def _complete(messages: list[Message], row: dict[str, Any], where: str, settings: PrepareSettings) -> set[str]:
    """Give messages their system message, template and normal form; return the fields this took."""
    used = set()
    if settings.prompt_template is not None:
        for message in messages:
            if message["role"] == "user":
                message["content"], names = _filled(settings.prompt_template, message["content"] or "", row, where)
                used |= names
    own = next((name for name in _SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None)
    system = row[own] if own else settings.system
    told = [message["content"] for message in messages if message["role"] in ("system", "developer")]
    if system and not told:
        messages.insert(0, {"role": "system", "content": system})
    if own and (not told or told == [system]):
        used.add(own)
    if settings.normalize:
        for message in messages:
            message["content"] = message["content"] and normalized(message["content"])
    return used


def check_template(template: str) -> None:
    """UsageError for a prompt template with a stray brace, or one that makes all prompts equal."""
    if re.search("[{}]", _PLACE.sub("", template)):
        raise UsageError(f"the prompt template {template!r} has a brace without its other half; {{{{ writes a brace")
    if not any(_PLACE.findall(template)):
        raise UsageError(
            f"the prompt template {template!r} names no field, so that all prompts are equal: use {{prompt}}"
        )


def _filled(template: str, prompt: str, row: dict[str, Any], where: str) -> tuple[str, set[str]]:
    """The template with its places filled, and the names of the fields in it. {{ and }} stand for braces."""
    names: set[str] = set()

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        if name is None:
            return place[0][0]
        if name == "prompt":
            return prompt
        if name not in row:
            raise DataError(f"{where}: the prompt template names {name!r}, which the row lacks; {{{{ writes a brace")
        names.add(name)
        return _paragraphs(row, name, where)

    return _PLACE.sub(fill, template), names


def _two_sided(
    messages: list[Message], row: dict[str, Any], where: str, settings: PrepareSettings
) -> tuple[dict[str, Any], set[str]]:
    """The record of a conversation, and the fields of the row that its tools come from."""
    tools, used = read_tools(row.get("tools"), where), {"tools"} & row.keys()
    if settings.as_record == "chat":
        return {"messages": messages, **({"tools": tools} if tools else {})}, used
    lost = next(
        (key for message in messages for key in message if key not in ("role", "content", "train", "weight")), ""
    )
    masked = any(map(is_masked, messages))
    texts = [message["content"] for message in messages]
    if tools or lost or any(message["role"] == "tool" or message["content"] is None for message in messages):
        raise DataError(f"{where}: {lost or 'tools'!r} can only be in a chat; keep such rows as chats")
    if settings.as_record == "text":
        if masked:
            raise DataError(
                f"{where}: a text trains as a whole, and one answer of this row must not; keep it as a chat"
            )
        return {"text": "\n\n".join(texts)}, used
    if [message["role"] for message in messages if message["role"] not in ("system", "developer")] != _ONE_ANSWER:
        raise DataError(f"{where}: only one question with its answer can be a completion; keep such rows as chats")
    return {"prompt": "\n\n".join(texts[:-1]), "completion": texts[-1]}, used


def _check_said(messages: list[Message], where: str) -> None:
    def silent(message: Message) -> bool:
        return not ((message["content"] or "").strip() or message.get("tool_calls"))

    if all(silent(message) or is_masked(message) for message in messages if message["role"] == "assistant"):
        raise DataError(f"{where}: no message of the assistant trains, so there is nothing to learn")
    if any(silent(message) for message in messages if message["role"] == "user"):
        raise DataError(f"{where}: the prompt is empty")


def _string(row: dict[str, Any], name: str, where: str) -> str:
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return spelled(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is not a text but {value!r:.40}")
    return value
