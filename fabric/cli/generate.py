"""`fabric generate`: answers to prompts, or a conversation, from a model and adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.generation.settings import GenerateSettings
from fabric.settings import Output, Setting


def command(
    settings: GenerateSettings,
    output: Output = "-",
    chat: Annotated[
        bool,
        Setting("chat: one message per line, from the terminal or stdin; Ctrl-C stops an answer", touches="task"),
    ] = False,
) -> None:
    """Answers prompts: a row of JSONL in, the row with its answer out. Greedy unless --temperature is set.

    With --chat, the history stays in the cache, and only new tokens are computed.
    """
    from fabric.cli import conversation
    from fabric.files import check_streams

    if (settings.data is not None) + (settings.prompt is not None) + chat > 1:
        raise UsageError("give prompts as a file, with --prompt or with --chat: one of the three")
    if chat and (others := console.given("raw", "choices", "batch")):
        raise UsageError(f"--chat is one conversation, and {' and '.join(others)} is not for it: leave it out")
    if settings.prompt is None and not chat:
        settings = replace(settings, data=console.stdin_source(settings.data))
    check_streams(["-" if chat else settings.data, *(a.path for a in settings.adapters)], [output])
    (conversation.converse if chat else conversation.answer)(settings, output)
