"""Conversations as chat templates get them: the messages of a row in the one form that templates know, and which of
them train.

Data sets write the same thing in several ways (a call's arguments as JSON text, null for what is not there, content as
a list of parts, a thought under three names). Templates know one or the other, so a row has a few `forms`, the usual
one first, and the first that a template renders without losing anything is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fabric.data.messages import THOUGHTS, is_masked
from fabric.settings import TrainOn

Message = dict[str, Any]

_MASKS = ("train", "weight")  # whether a turn trains; templates do not see them


@dataclass(frozen=True)
class Conversation:
    """messages and tools go to the template; `trains` are the numbers of the messages that train, ascending."""

    messages: list[Message]
    tools: list[Any] | None
    trains: tuple[int, ...]

    @property
    def contents(self) -> list[Any]:
        """What a rendering is made of."""
        return [self.messages, self.tools]

    def until_last(self) -> Conversation:
        """Up to the last message that trains."""
        return replace(self, messages=self.messages[: self.trains[-1] + 1])


def forms(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, train: TrainOn) -> Iterator[Conversation]:
    """The conversation in every form that a template may want, the usual one first."""
    trains = [i for i, m in enumerate(messages) if m["role"] == "assistant" and not is_masked(m)]
    usual = _usual(messages, _object)
    found = Conversation(usual, list(tools) if tools else None, tuple(trains[-1:] if train == "last" else trains))
    ways: list[Callable[[], list[Message]]] = [lambda: _usual(messages, _text), lambda: _developer_as_system(usual)]
    yield found.until_last() if train == "last" and trains else found
    for way in ways:
        if (changed := way()) != usual:
            form = replace(found, messages=changed)
            yield form.until_last() if train == "last" and trains else form
    if train == "all" and trains and trains[-1] < len(messages) - 1:
        yield found.until_last()


def asks_in_vain(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message that is no answer says that it trains."""
    return any(m.get("role") != "assistant" and (m.get("train") is True or m.get("weight") == 1) for m in messages)


def _usual(messages: Sequence[Mapping[str, Any]], arguments: Callable[[Any], Any]) -> list[Message]:
    """Without nulls and what is not for templates; `arguments` says how those of calls are written."""
    return [_message(message, arguments) for message in messages]


def _message(message: Mapping[str, Any], arguments: Callable[[Any], Any]) -> Message:
    found = {key: value for key, value in message.items() if value is not None and key not in _MASKS}
    content = found.get("content", "")
    if isinstance(content, list) and all(isinstance(part, dict) and _is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    found["content"] = content
    if calls := found.pop("tool_calls", None):
        found["tool_calls"] = [_call(call, arguments) for call in calls]
    thoughts = [found[name] for name in THOUGHTS if found.get(name)]
    if thoughts:
        found = {"thinking": thoughts[0], **found, "reasoning_content": thoughts[0]}
    return found


def _is_text(part: Mapping[str, Any]) -> bool:
    return part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _call(call: Any, arguments: Callable[[Any], Any]) -> Any:
    """A tool call without nulls."""
    if not isinstance(call, dict):
        return call
    found = {key: value for key, value in call.items() if value is not None}
    place = found
    if isinstance(found.get("function"), dict):
        found["function"] = place = {key: value for key, value in found["function"].items() if value is not None}
    if "arguments" in place:
        place["arguments"] = arguments(place["arguments"])
    return found


def _object(arguments: Any) -> Any:
    """Arguments in JSON text as the object that it is; what is none stays as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _text(arguments: Any) -> Any:
    """Arguments as JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _developer_as_system(messages: list[Message]) -> list[Message]:
    return [{**message, "role": "system"} if message.get("role") == "developer" else message for message in messages]
