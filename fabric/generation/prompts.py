"""Rows to prompts: the token ids that an answer starts from, and what is passed on with the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fabric.data.records import Record, read_records
from fabric.errors import DataError, UsageError
from fabric.generation.model import Text
from fabric.generation.settings import GenerateSettings
from fabric.text.encode import encode_spans, prompt_ids


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the row as it is passed on: the prompt, the answer it came with as `reference`, other fields."""

    ids: list[int]
    row: dict[str, Any]
    source: str


def read_prompts(settings: GenerateSettings, text: Text) -> list[Prompt]:
    """The prompts of the settings, in order. Raises DataError naming the row, MissingInputError, UsageError."""
    if (settings.prompt is None) == (settings.data is None):
        raise UsageError("give either rows with prompts or one --prompt")
    if settings.prompt is not None:
        data = {"prompt": settings.prompt}
        if settings.raw and settings.system is not None:
            raise UsageError("--system belongs to a conversation, and --raw text is none: leave one out")
        if settings.raw:
            return [Prompt(_plain(settings.prompt, "--prompt", text), data, "--prompt")]
        messages = [*system_turn(settings), {"role": "user", "content": settings.prompt}]
        return [Prompt(asked({"messages": messages}, "--prompt", text), data, "--prompt")]
    if settings.system is not None:
        raise UsageError("--system is for --prompt and --chat; rows bring their own system message")
    if settings.raw:
        raise UsageError("--raw is for --prompt; rows are continued as they are when they have the field 'text'")
    return [_prompt(record, text) for record in read_records(str(settings.data), prompts=True)]


def _prompt(record: Record, text: Text) -> Prompt:
    data, source, reference = record.data, record.source, None
    row: dict[str, Any]
    if record.kind == "chat":
        messages = data["messages"]
        if messages[-1]["role"] == "assistant":
            messages, reference = messages[:-1], messages[-1]["content"]
        if not messages:
            raise DataError(f"{source}: the only message is an answer; there is nothing to answer")
        row = {"messages": messages, **({"tools": data["tools"]} if "tools" in data else {})}
        ids = asked(row, source, text)
    elif record.kind == "rendered":
        start, end = data["train"][-1] if data["train"] else (len(data["text"]),) * 2
        row, reference = {"text": data["text"][:start]}, data["text"][start:end] or None
        literal = [(a, min(b, start)) for a, b in data.get("literal", []) if a < start]
        ids = encode_spans(text.tokenizer, row["text"], [], literal)[0]
    elif record.kind == "tokens":
        raise DataError(f"{source}: token rows have no prompt to show; give the rows they were made from")
    else:
        field = "text" if record.kind == "text" else "prompt"
        row, reference = {field: data[field]}, data.get("completion")
        ids = _plain(data[field], source, text)
    return Prompt(ids, {**row, **({} if reference is None else {"reference": reference}), **record.extra}, source)


def system_turn(settings: GenerateSettings) -> list[dict[str, Any]]:
    """What a conversation begins with."""
    return [] if settings.system is None else [{"role": "system", "content": settings.system}]


def asked(row: dict[str, Any], source: str, text: Text) -> list[int]:
    """What an answer to a row's messages starts from. Raises DataError that names the source."""
    try:
        rendered = text.template.prompt(row["messages"], row.get("tools"))
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return encode_spans(text.tokenizer, rendered.text, [], rendered.literal)[0]


def _plain(prompt: str, source: str, text: Text) -> list[int]:
    ids = prompt_ids(text.tokenizer, prompt)
    if not ids:
        raise DataError(f"{source}: the prompt is empty, and this model has no token that begins a text")
    return ids
