"""Settings of `generate`. Leans on fabric.settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from fabric.settings import RECORDS, Context, Device, MaxTokens, Model, Precision, Seed, Setting, Template, Threads
from fabric.weights.settings import Adapters


@dataclass(frozen=True)
class GenerateSettings:
    """`fabric generate PROMPTS -m MODEL`. Lengths in tokens."""

    model: Model
    data: Annotated[str | None, replace(RECORDS, metavar="PROMPTS", stdin=False)] = None
    """Either this or `prompt`."""
    prompt: Annotated[str | None, Setting("one prompt; the answer comes as text", "TEXT", touches="task")] = None
    raw: Annotated[bool, Setting("continue --prompt as plain text, not as a user's turn")] = False
    system: Annotated[str | None, Setting("system message before --prompt or --chat", "TEXT")] = None
    adapters: Adapters = ()
    max_tokens: MaxTokens = 128
    temperature: Annotated[
        float, Setting("sampling temperature; 0: always the likeliest token", "X", low=0.0, group="Sampling")
    ] = 0.0
    top_k: Annotated[int, Setting("sample among the N likeliest tokens; 0: all", "N", low=0, group="Sampling")] = 0
    top_p: Annotated[
        float,
        Setting(
            "sample among the likeliest tokens that together have this probability",
            "X",
            low=0.0,
            high=1.0,
            group="Sampling",
        ),
    ] = 1.0
    min_p: Annotated[
        float, Setting("drop tokens below X times the top probability", "X", low=0.0, high=1.0, group="Sampling")
    ] = 0.0
    repeat_penalty: Annotated[float, Setting("make recent tokens less likely; 1: off", "X", group="Sampling")] = 1.0
    """Logits above 0 are divided by this, others multiplied."""
    repeat_window: Annotated[
        int, Setting("number of tokens that --repeat-penalty looks back", "TOKENS", low=0, group="Sampling")
    ] = 64
    """Those of the prompt too."""
    choices: Annotated[int, Setting("number of sampled answers per prompt", "N", low=1, group="Sampling")] = 1
    seed: Seed = 42
    stop: Annotated[
        tuple[str, ...], Setting("an answer ends before this text; may be given again", "TEXT", many=True)
    ] = ()
    ctx: Context = 2048
    """A prompt and its answer are no longer than this."""
    batch: Annotated[int, Setting("rows that are decoded together", "ROWS", low=1, touches="layout")] = 8
    template: Template = None
    precision: Precision = "auto"
    threads: Threads = 0
    device: Device = "auto"
