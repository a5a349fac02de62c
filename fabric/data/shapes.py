"""The shapes that rows of data sets have, and how each becomes a record: chat messages, ShareGPT conversations, pairs
of a prompt and an answer under their various names, questions whose answer lies in a text, and plain texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from fabric.data.records import parse_record
from fabric.errors import DataError, UsageError

if TYPE_CHECKING:
    from fabric.data.prepare import PrepareSettings

Message = dict[str, Any]

# (prompt, what may follow it in the prompt, answer)
_PAIRS = (
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("question", "", "answer"),
    ("input", "", "output"),
)
_SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
# Fields that tell what a record is: none of them may pass through beside another record.
_RECORD_FIELDS = frozenset(("messages", "tools", "prompt", "completion", "text", "train", "literal", "tokens"))
_ODD_SPACE = re.compile(r"[^\S\n\t ]")
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def known_fields(names: Collection[str], mapped: Mapping[str, str]) -> bool:
    """Whether rows with these fields have a shape, after the mapping of `PrepareSettings.fields`."""
    have = set(names) | {new for new, old in mapped.items() if old in names}
    return bool({"text", "completion"} & have) or any({prompt, answer} <= have for prompt, _, answer in _PAIRS)


def to_record(row: Any, where: str, settings: PrepareSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record, and the fields of the row by their new names. Raises DataError naming `where`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is a JSON object, this is {str(row)[:40]!r}")
    row = _renamed(row, settings.fields, where)
    if "tokens" in row or ("text" in row and "train" in row):
        raise DataError(f"{where}: the row is rendered already, there is nothing to prepare")
    turns, used = _turns(row, where, settings)
    if isinstance(turns, str):
        record: dict[str, Any] = {"text": normalized(turns) if settings.normalize else turns}
        if not record["text"].strip():
            raise DataError(f"{where}: the text is empty")
    else:
        used = used | _complete(turns, row, where, settings)
        _check_said(turns, where)
        record = _two_sided(turns, row, where, settings)
    for name, value in row.items():
        wanted = name not in used if settings.keep is None else name in settings.keep
        if wanted and name not in _RECORD_FIELDS:
            record[name] = value
    return record, row


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


def _renamed(row: dict[str, Any], mapped: Mapping[str, str], where: str) -> dict[str, Any]:
    renamed = {name: value for name, value in row.items() if name not in mapped.values()}
    for new, old in mapped.items():
        if old not in row:
            raise DataError(f"{where}: the row has no field {old!r}; it has {', '.join(map(repr, row)) or 'none'}")
        renamed[new] = row[old]
    return renamed


def _turns(row: dict[str, Any], where: str, settings: PrepareSettings) -> tuple[list[Message] | str, set[str]]:
    """The messages or the text of a row, and the fields that they come from."""
    mapped = settings.fields.keys()
    paired = bool({"prompt", "completion"} & mapped)
    if "text" in mapped and not paired and not {"messages", "question"} & mapped:
        return _string(row, "text", where), {"text"}
    if "messages" in row and not paired:
        parse_record({"messages": row["messages"], "tools": row.get("tools") or None}, where)
        return [{"role": m["role"], "content": m.get("content"), **m} for m in row["messages"]], {"messages"}
    if "conversations" in row and not paired:
        return _conversation(row["conversations"], where), {"conversations"}
    for prompt, more, answer in _PAIRS:
        if answer in row and prompt in row:
            asked = _string(row, prompt, where)
            below = _string(row, more, where) if row.get(more) else ""
            asked = f"{asked}\n\n{below}" if below.strip() else asked
            return _pair(asked, _string(row, answer, where)), {prompt, more, answer}
    if "completion" in row and settings.prompt_template is not None:
        return _pair("", _string(row, "completion", where)), {"completion"}
    if "question" in row and "text" in row and not paired:
        asked, (_, found, answer) = _string(row, "question", where), _string(row, "text", where).partition("\nA:")
        if found:
            return _pair(asked, answer.strip()), {"question", "text"}
        raise DataError(f"{where}: beside the question the text has no line that begins with 'A:'; map the fields")
    if "text" in row and not paired:
        return _string(row, "text", where), {"text"}
    names = ", ".join(map(repr, row)) or "none"
    raise DataError(f"{where}: the fields ({names}) have no known shape; map them to prompt and completion, or to text")


def _pair(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _conversation(turns: Any, where: str) -> list[Message]:
    """ShareGPT: a list of {"from", "value"}, or of messages."""
    if not isinstance(turns, list):
        raise DataError(f"{where}: 'conversations' is not a list")
    messages = []
    for number, turn in enumerate(turns, 1):
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        content = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SPEAKERS or not isinstance(content, str):
            raise DataError(f"{where}: turn {number} of the conversation lacks a known speaker or a text: {turn!r:.60}")
        messages.append({"role": _SPEAKERS[speaker], "content": content})
    return messages


def _complete(messages: list[Message], row: dict[str, Any], where: str, settings: PrepareSettings) -> set[str]:
    """Give messages their system message, template and normal form; return the fields this took."""
    used = set()
    if settings.prompt_template is not None:
        for message in messages:
            if message["role"] == "user":
                message["content"], names = _filled(settings.prompt_template, message["content"] or "", row, where)
                used |= names
    own = row.get("system")
    if isinstance(own, str) and own.strip():
        used.add("system")
    system = own if "system" in used else settings.system
    if system and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
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
        return _string(row, name, where)

    return _PLACE.sub(fill, template), names


def _two_sided(messages: list[Message], row: dict[str, Any], where: str, settings: PrepareSettings) -> dict[str, Any]:
    if settings.as_record == "chat":
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        return dict(parse_record({"messages": messages, **tools}, where).data)
    texts = [message["content"] for message in messages]
    if any(message["role"] == "tool" or not isinstance(message["content"], str) for message in messages):
        raise DataError(f"{where}: messages of tools can only be a chat")
    if settings.as_record == "text":
        return {"text": "\n\n".join(texts)}
    if [message["role"] for message in messages if message["role"] != "system"] != ["user", "assistant"]:
        raise DataError(f"{where}: only one question with its answer can be a completion; keep such rows as chats")
    return {"prompt": "\n\n".join(texts[:-1]), "completion": texts[-1]}


def _check_said(messages: list[Message], where: str) -> None:
    def silent(message: Message) -> bool:
        return not ((message["content"] or "").strip() or message.get("tool_calls"))

    if all(silent(message) for message in messages if message["role"] == "assistant"):
        raise DataError(f"{where}: the assistant says nothing, so there is nothing to learn")
    if any(silent(message) for message in messages if message["role"] == "user"):
        raise DataError(f"{where}: the prompt is empty")


def _string(row: dict[str, Any], name: str, where: str) -> str:
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is not a text but {value!r:.40}")
    return value
