"""`fabric generate`: answers to prompts, from a model and adapters."""

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
    max_tokens: Annotated[int, Option("--max-tokens", metavar="N", min=1, help="longest answer")] = 128,
    temperature: Annotated[float, Option("--temperature", metavar="X", min=0.0, help="0: the likeliest token")] = 0.0,
    top_k: Annotated[int, Option("--top-k", metavar="N", min=0, help="sample among so many; 0: all")] = 0,
    top_p: Annotated[
        float, Option("--top-p", metavar="X", min=0.0, max=1.0, help="sample among this probability")
    ] = 1.0,
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
    """Answers prompts: a row of JSONL in, the row with its answer out. Greedy unless --temperature is set."""
    from fabric.data.jsonl import dumps
    from fabric.evaluation.generate import generate
    from fabric.evaluation.settings import GenerateSettings
    from fabric.files import check_streams, open_output

    if data is not None and prompt is not None:
        raise UsageError("give prompts as a file or with --prompt, not both")
    source = None if prompt is not None else console.stdin_source(data)
    adapters = tuple(adapter_input(text) for text in adapter or ())
    check_streams([source, model, template, *(a.path for a in adapters)], [output])
    settings = GenerateSettings(
        model=model,
        data=source,
        prompt=prompt,
        raw=raw,
        adapters=adapters,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        ctx=ctx,
        batch=batch,
        template=template,
        precision=precision,
        threads=threads,
        device=device,
    )
    as_text = prompt is not None and not console.flag("json")
    with open_output(output, text=True) as file:
        for row in generate(settings):
            file.write((row["answer"].encode() if as_text else dumps(row)) + b"\n")
            file.flush()
