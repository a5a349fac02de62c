"""`generate`: answers to prompts, several rows at a time over one cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fabric.evaluation.settings import GenerateSettings


def generate(settings: GenerateSettings) -> Iterator[dict[str, Any]]:
    """The rows with their answers, in input order: `answer`, `answer_tokens`, `finish` ("stop" or "length").

    The row's other fields are passed on. A trailing assistant turn, or a completion, is not shown to the model; it is
    passed on as `reference`.
    """
    raise NotImplementedError
