"""Rows to prompts: the token ids that an answer starts from, and what is passed on with the answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from fabric.data.records import Record, read_records
from fabric.errors import DataError, MissingInputError, UsageError
from fabric.files import is_there
from fabric.generation.model import Text
from fabric.generation.settings import GenerateSettings
from fabric.notices import remark
from fabric.text.encode import encode_spans, prompt_ids

ANSWERED = ("reference", "answer", "answer_tokens", "finish", "choice")  # the fields that `generate` adds to rows


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the row as it is passed on: the prompt, the answer it came with as `reference`, other fields."""

    ids: list[int]
    row: dict[str, Any]
    source: str


def read_prompts(settings: GenerateSettings, text: Text, most: int | None = None) -> list[Prompt]:
    """The prompts of the settings in order, or of the first `most` rows. Raises DataError naming the row,
    MissingInputError, UsageError."""
    if (settings.prompt is None) == (settings.data is None):
        raise UsageError("give either rows with prompts or one --prompt")
    if settings.prompt is not None:
        if is_there(settings.prompt):
            remark(f"--prompt {settings.prompt}: this name is the prompt; the rows of the file are answered without it")
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
    if any(map(str.isspace, str(settings.data))) and not is_there(str(settings.data)):
        raise MissingInputError(f"there is no file {str(settings.data)!r}; a prompt as text goes behind --prompt")
    return [prompt_of(record, text) for record in islice(read_records(str(settings.data), prompts=True), most)]


def prompt_of(record: Record, text: Text) -> Prompt:
    """The prompt of a row, as a model sees it. Raises DataError naming the row."""
    row, reference = without_answer(record)
    if record.kind == "chat":
        ids = asked(row, record.source, text)
    elif record.kind == "rendered":
        end = len(row["text"])
        literal = [(a, min(b, end)) for a, b in record.data.get("literal", []) if a < end]
        ids = encode_spans(text.tokenizer, row["text"], [], literal)[0]
    else:
        ids = _plain(row["text" if record.kind == "text" else "prompt"], record.source, text)
    known = {} if reference is None else {"reference": reference}
    return Prompt(ids, {**row, **known, **record.extra}, record.source)


def without_answer(record: Record) -> tuple[dict[str, Any], Any]:
    """What a row asks, and the answer that it came with: the last turn, the completion, the last trained span; None
    where there is none. Raises DataError for a row that asks nothing, and for tokens."""
    data = record.data
    if record.kind == "chat":
        messages, reference = data["messages"], None
        if messages[-1]["role"] == "assistant":
            messages, reference = messages[:-1], messages[-1]["content"]
        if not messages:
            raise DataError(f"{record.source}: the only message is an answer; there is nothing to answer")
        return {"messages": messages, **({"tools": data["tools"]} if "tools" in data else {})}, reference
    if record.kind == "rendered":
        start, end = data["train"][-1] if data["train"] else (len(data["text"]),) * 2
        return {"text": data["text"][:start]}, data["text"][start:end] or None
    if record.kind == "tokens":
        raise DataError(f"{record.source}: token rows have no prompt to show; give the rows they were made from")
    field = "text" if record.kind == "text" else "prompt"
    return {field: data[field]}, data.get("completion")


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
