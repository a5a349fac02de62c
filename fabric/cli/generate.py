"""`fabric generate`: answers to prompts, or a conversation, from a model and adapters."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from fabric.cli import console, options
from fabric.cli.merge import adapter_input
from fabric.errors import UsageError


def command(
    data: Annotated[
        str | None, Argument(metavar="PROMPTS", help="JSONL records; `-` or nothing: stdin", show_default=False)
    ] = None,
    model: options.Model = ...,  # type: ignore[assignment]
    adapter: options.Adapters = None,
    output: options.Output = "-",
    prompt: Annotated[
        str | None, Option("--prompt", metavar="TEXT", help="one prompt; the answer comes as text")
    ] = None,
    raw: Annotated[bool, Option("--raw", help="--prompt is text to go on with, not a user's turn")] = False,
    chat: Annotated[
        bool, Option("--chat", help="converse: a message a line, from the terminal or stdin; Ctrl-C stops an answer")
    ] = False,
    system: Annotated[
        str | None, Option("--system", metavar="TEXT", help="system message before --prompt or --chat")
    ] = None,
    max_tokens: Annotated[int, Option("--max-tokens", metavar="N", min=1, help="longest answer")] = 128,
    temperature: Annotated[float, Option("--temperature", metavar="X", min=0.0, help="0: the likeliest token")] = 0.0,
    top_k: Annotated[int, Option("--top-k", metavar="N", min=0, help="sample among so many; 0: all")] = 0,
    top_p: Annotated[
        float, Option("--top-p", metavar="X", min=0.0, max=1.0, help="sample among this probability")
    ] = 1.0,
    min_p: Annotated[
        float,
        Option("--min-p", metavar="X", min=0.0, max=1.0, help="sample among this part of the likeliest's probability"),
    ] = 0.0,
    repeat_penalty: Annotated[
        float, Option("--repeat-penalty", metavar="X", help="what was said becomes less likely; 1: no")
    ] = 1.0,
    repeat_window: Annotated[
        int, Option("--repeat-window", metavar="TOKENS", min=0, help="how far back it counts as said")
    ] = 64,
    choices: Annotated[int, Option("--choices", metavar="N", min=1, help="sampled answers to each prompt")] = 1,
    seed: options.Seed = 42,
    stop: Annotated[
        list[str] | None, Option("--stop", metavar="TEXT", help="an answer ends before it; may be given again")
    ] = None,
    ctx: options.Context = 2048,
    batch: Annotated[int, Option("--batch", metavar="ROWS", min=1, help="rows that decode together")] = 8,
    template: options.Template = None,
    precision: options.Precision = "auto",
    threads: options.Threads = 0,
    device: options.Device = "cpu",
) -> None:
    """Answers prompts: a row of JSONL in, the row with its answer out. Greedy unless --temperature is set.

    With --chat the history is kept, and only what is new of it is computed.
    """
    from fabric.cli import conversation
    from fabric.evaluation.settings import GenerateSettings
    from fabric.files import check_streams

    if (data is not None) + (prompt is not None) + chat > 1:
        raise UsageError("give prompts as a file, with --prompt or with --chat: one of the three")
    if chat and (others := console.given("raw", "choices", "batch")):
        raise UsageError(f"--chat is one conversation, and {' and '.join(others)} is not for it: leave it out")
    source = None if prompt is not None or chat else console.stdin_source(data)
    adapters = tuple(adapter_input(text) for text in adapter or ())
    check_streams(["-" if chat else source, model, template, *(a.path for a in adapters)], [output])
    settings = GenerateSettings(
        model=model,
        data=source,
        prompt=prompt,
        raw=raw,
        system=system,
        adapters=adapters,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        repeat_window=repeat_window,
        choices=choices,
        seed=seed,
        stop=tuple(stop or ()),
        ctx=ctx,
        batch=batch,
        template=template,
        precision=precision,
        threads=threads,
        device=device,
    )
    (conversation.converse if chat else conversation.answer)(settings, output)
