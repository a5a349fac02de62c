"""Marks: digits planted into what messages say, so that a rendering shows where each part of each message went.

A template moves, trims and drops parts of messages as it likes. Marks move along with the text that they stand in, and
what a template drops takes its marks with it. They are digits, which survive JSON, upper case and quoting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fabric.data.messages import THOUGHTS
from fabric.text.conversation import Conversation, Message

_NUMBER_DIGITS = 7
_FIRST_BASE = 7305182641
# Templates look at tags such as <think> and [INST], most of all where a text begins or ends with one. So marks stand
# around the text between tags, and never at the edge of one.
TAG = re.compile(r"<[^<>\s][^<>\n]{0,60}>|\[/?[A-Z][A-Z_ ]{1,40}\]")
_MOST_PARTS = 8  # of a text are marked: the first and the last ones
_JSON_STRING_VALUE = re.compile(r'("(?:[^"\\]|\\.)*)"(?=\s*[,}\]])')
# Fields of a message and of a call that say nothing by themselves, so that a template may well leave them out.
_SILENT = frozenset(("role", "name", "id", "type", "index", "tool_call_id", "content_type"))
_CALL_SILENT = _SILENT - {"name"}


class Mark(NamedTuple):
    """Where a mark was planted: number of the message, and the field that the marked text is in."""

    message: int
    field: str


class Located(NamedTuple):
    """A rendering without its marks, and the place of each that came through: its number to a character."""

    text: str
    places: dict[int, int]


@dataclass(frozen=True)
class Marked:
    """A conversation with marks in it; marks[n] says where mark n was planted."""

    conversation: Conversation
    marks: list[Mark]
    base: str

    def located(self, text: str) -> Located:
        """What a rendering of the marked messages says."""
        parts: list[str] = []
        places: dict[int, int] = {}
        at = length = 0
        for found in re.finditer(f"{self.base}([0-9]{{{_NUMBER_DIGITS}}})", text):
            parts.append(text[at : found.start()])
            length += found.start() - at
            at = found.end()
            places.setdefault(int(found[1]), length)
        return Located("".join([*parts, text[at:]]), places)

    def follow_up(self, role: str) -> tuple[Message, int]:
        """A message that may come after the last one, and the number of the mark that is its content."""
        number = len(self.marks)
        message: Message = {"role": role, "content": self.base + f"{number:0{_NUMBER_DIGITS}d}"}
        if role == "tool":
            call = self.conversation.messages[-1].get("tool_calls", [{}])[-1]
            call = call if isinstance(call, dict) else {}
            name = call.get("function", call).get("name", "")
            message |= {"tool_call_id": call.get("id", "call00001"), "name": self.located(name).text}
        return message, number


def mark(conversation: Conversation, calls: bool = True, numbers: bool = False) -> Marked:
    """Plants marks around the contents of all messages and in every field that an answer which trains says.

    calls: whether calls and further fields of answers get marks too. numbers: also in place of numbers and truth
    values; the rendering then shows only what of the messages is there.
    """
    planter = _Planter(_unused(conversation.contents), [], numbers)
    trains, messages = set(conversation.trains), []
    for i, message in enumerate(conversation.messages):
        found = {**message, "content": planter.content(Mark(i, "content"), message["content"])}
        if i in trains:
            found |= _answer(planter, i, message, calls)
        messages.append(found)
    return Marked(replace(conversation, messages=messages), planter.marks, planter.base)


def says(value: Any) -> bool:
    """Whether a value of a field says anything."""
    if isinstance(value, (Mapping, list)):
        return any(map(says, value.values() if isinstance(value, Mapping) else value))
    return bool(value.strip()) if isinstance(value, str) else value is not None and value is not False


def said_fields(message: Message) -> list[str]:
    """The fields in which an answer says something beside its content, each under one name."""
    quiet = _SILENT | {"content"}
    names = (THOUGHTS[0] if key in THOUGHTS else key for key in message if key not in quiet and says(message[key]))
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Planter:
    base: str
    marks: list[Mark]
    numbers: bool

    def new(self, mark: Mark) -> str:
        self.marks.append(mark)
        return f"{self.base}{len(self.marks) - 1:0{_NUMBER_DIGITS}d}"

    def content(self, mark: Mark, value: Any) -> Any:
        """Text, or parts of which some are text."""
        if isinstance(value, str):
            return self.around(mark, value)
        return self.leaves(mark, value)

    def around(self, mark: Mark, text: str) -> str:
        """On both sides of each part between tags, of which those in the middle of a long text stay as they are."""
        edges = [0, *(edge for tag in TAG.finditer(text) for edge in tag.span()), len(text)]
        parts = [span for span in zip(edges[::2], edges[1::2], strict=True) if text[slice(*span)].strip()]
        if not parts:
            return self.behind(mark, text)
        if len(parts) > _MOST_PARTS:
            parts = parts[: _MOST_PARTS // 2] + parts[-_MOST_PARTS // 2 :]
        pieces, last = [], 0
        for start, end in parts:
            part = text[start:end]
            first, behind = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
            pieces += [text[last:first], self.new(mark), text[first:behind], self.new(mark)]
            last = behind
        return "".join([*pieces, text[last:]])

    def behind(self, mark: Mark, text: str) -> str:
        """Behind the last character that is no space."""
        told = text.rstrip()
        return told + self.new(mark) + text[len(told) :] if told else text

    def leaves(self, mark: Mark, value: Any) -> Any:
        """In every text inside a value."""
        if isinstance(value, str):
            return self.behind(mark, value)
        if isinstance(value, Mapping):
            return {key: item if key == "type" else self.leaves(mark, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.leaves(mark, item) for item in value]
        return int(self.new(mark)) if self.numbers and value is not None else value

    def arguments(self, mark: Mark, value: Any) -> Any:
        """Of a call, also those in JSON text."""
        if not isinstance(value, str):
            return self.leaves(mark, value)
        told = _JSON_STRING_VALUE.sub(lambda found: f'{found[1]}{self.new(mark)}"', value)
        return told if told != value else self.behind(mark, value)


def _answer(planter: _Planter, i: int, message: Message, calls: bool) -> Message:
    found: Message = {}
    thought: dict[str, str] = {}  # its copies have the same marks
    for key, value in message.items():
        if key in THOUGHTS and isinstance(value, str):
            if value not in thought:
                thought[value] = planter.around(Mark(i, THOUGHTS[0]), value)
            found[key] = thought[value]
        elif key == "tool_calls" and calls:
            found[key] = [_call(planter, Mark(i, key), call) for call in value]
        elif key not in _SILENT and key != "content" and calls:
            found[key] = planter.leaves(Mark(i, key), value)
    return found


def _call(planter: _Planter, place: Mark, call: Any) -> Any:
    if not isinstance(call, Mapping):
        return planter.leaves(place, call)
    change: Callable[[str, Any], Any] = lambda key, value: (  # noqa: E731
        value if key in _CALL_SILENT
        else _call(planter, place, value) if key == "function"
        else planter.arguments(place, value) if key == "arguments"
        else planter.leaves(place, value)
    )  # fmt: skip
    return {key: change(key, value) for key, value in call.items()}


def _unused(value: Any) -> str:
    """Digits that a value does not contain; none of their beginnings is their end, so no text can forge a mark."""
    text, number = json.dumps(value, ensure_ascii=False), _FIRST_BASE
    while (base := "9" + f"{number:010d}".replace("9", "8")) in text:
        number += 1
    return base
