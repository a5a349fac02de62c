"""The messages of a conversation, made one way of the ways that data sets spell them: roles and speakers, contents that
are lists of parts, calls of tools. Further fields of a message, such as `reasoning_content` or `weight`, stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric.data.jsonl import parse_line
from fabric.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_SAME_ROLES = {role: role for role in ROLES}
# What the roles of data sets are in records.
SPEAKERS = {
    **_SAME_ROLES,
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "function_call": "call", "tool_call": "call",
}  # fmt: skip
# What messages are known to hold. Templates may read others.
KNOWN_FIELDS = frozenset((
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking", "weight",
    "train",
))  # fmt: skip
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of one field; the first is the usual one
_TEXT_PARTS = ("text", "input_text", "output_text")


def read_messages(turns: Any, field: str, where: str, *, raw: bool = False) -> list[Message]:
    """Messages as records have them: a known role, a text for a content, no field that is null.

    raw: roles may be called as in data sets, and messages be spelled `from` and `value`. Raises DataError that names
    the row and the message.
    """
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: {field!r} is {kind_of(turns)}; it must be a list of at least one message")
    place = where if field == "messages" else f"{where}: {field!r}"
    return [_message(turn, f"{place}: message {number}", raw) for number, turn in enumerate(turns, 1)]


def two_sides(prompt: Any, answer: Any, fields: tuple[str, str], where: str, *, raw: bool = False) -> list[Message]:
    """A prompt and an answer, each a text or a list of messages, as one conversation of which the answer trains."""
    sides: list[list[Message]] = [
        [{"role": role, "content": side}] if isinstance(side, str) else read_messages(side, field, where, raw=raw)
        for role, side, field in (("user", prompt, fields[0]), ("assistant", answer, fields[1]))
    ]
    for message in sides[0]:
        if message["role"] == "assistant" and not {"train", "weight"} & message.keys():
            message["train"] = False
    return [*sides[0], *sides[1]]


def read_tools(tools: Any, where: str) -> list[dict[str, Any]]:
    """The descriptions of tools, also where they came as JSON in a string; none where that is null or empty."""
    place = f"{where}: 'tools'"
    tools = unpacked(tools, place) if tools else []
    found = [unpacked(tool, place) for tool in tools] if isinstance(tools, list) else [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"{place} is not a list of objects")
    return found


def is_masked(message: Mapping[str, Any]) -> bool:
    """Whether a message says that it does not train."""
    return message.get("train") is False or message.get("weight") == 0


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "missing or null"
    if isinstance(value, (list, dict, str)) and not value:
        return "an empty " + ("string" if isinstance(value, str) else "list" if isinstance(value, list) else "object")
    if isinstance(value, bool):
        return "a truth value"
    names = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return next(name for type, name in names.items() if isinstance(value, type))


def other_fields(turns: Any) -> set[str]:
    """Fields of messages that no format is known to have, as far as they hold anything."""
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return {name for turn in turns for name, value in turn.items() if value and name not in KNOWN_FIELDS}


def other_parts(turns: Any) -> set[str]:
    """Fields of parts of contents that are left out, as the parts become one text."""
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    lists = [turn[name] for turn in turns for name in ("content", "value") if isinstance(turn.get(name), list)]
    parts = [part for parts in lists for part in parts if isinstance(part, dict)]
    return {name for part in parts for name in part.keys() - {"type", "text"} if part[name]}


def _message(turn: Any, place: str, raw: bool) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place} is {kind_of(turn)}; it must be an object with 'role' and 'content'")
    turn = {name: value for name, value in turn.items() if value is not None}
    speakers = SPEAKERS if raw else _SAME_ROLES
    turn = _respelled(turn) if raw else turn
    speaker = turn.pop("role", None)
    if not isinstance(speaker, str) or speaker not in speakers:
        raise DataError(f"{place} has the role {speaker!r:.60}; roles are {', '.join(speakers)}")
    content = _content(turn.pop("content", None), place)
    role = speakers[speaker]
    _check_fields(turn, place)
    if role == "call":
        return _call(content, turn, place)
    calls = turn.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise DataError(f"{place}: 'tool_calls' is not a list of objects")
    if content is None and not calls:
        raise DataError(f"{place}: 'content' is missing or null; it must be a string")
    return {"role": role, "content": content, **turn}


def _check_fields(turn: Message, place: str) -> None:
    """What is said twice, or says no clear thing of whether the turn trains."""
    train, weight = turn.get("train"), turn.get("weight")
    if train is not None and not isinstance(train, bool):
        raise DataError(f"{place}: 'train' is {train!r:.40}; it must be true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{place}: 'weight' is {weight!r:.40}; only 0 and 1 can be trained")
    thoughts = [turn[name] for name in THOUGHTS if turn.get(name)]
    if any(thought != thoughts[0] for thought in thoughts):
        raise DataError(f"{place} has different thoughts under different names ({', '.join(THOUGHTS)})")


def _respelled(turn: Message) -> Message:
    """`from` and `value` as `role` and `content`, and the call of old OpenAI rows as the call of a tool."""
    for name, other in (("role", "from"), ("content", "value")):
        if other in turn and name not in turn:
            turn[name] = turn.pop(other)
    if "function_call" in turn and "tool_calls" not in turn:
        turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
    return turn


def _content(content: Any, place: str) -> str | None:
    """A text, of one that is given in parts all of them."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{place}: 'content' is {kind_of(content)}; it must be a string")
    return "".join(_part(part, place) for part in content)


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise DataError(f"{place}: a part of 'content' is {kind_of(part)}; only parts that are text can train")
    kind, text = part.get("type", "text"), part.get("text")
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise DataError(f"{place}: a part of 'content' has the type {kind!r:.60}; only parts that are text can train")
    return text


def _call(content: str | None, others: Message, place: str) -> Message:
    """A turn whose text is a call of a tool, or a list of calls, in JSON."""
    calls = unpacked(content, place)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f"{place} is a call of a tool, but its text is no JSON object with a 'name'")
    made = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": "", **others, "tool_calls": made}


def unpacked(value: Any, place: str) -> Any:
    """A value, of one that is JSON in a string what it says. Raises DataError naming `place`."""
    if not isinstance(value, str):
        return value
    try:
        return parse_line(value.encode(), place)
    except DataError:
        raise DataError(f"{place} is a string, and not JSON") from None
