"""The rate, epochs, batch and ctx that `train` takes where the settings leave them open. They follow from the model and
the rows alone, so that the same run is the same everywhere. docs/choosing-settings.md has the evidence.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fabric.training.check import check_settings
from fabric.training.settings import RunSettings, TrainSettings
from fabric.weights.gguf import GGUF

RATES = (  # below so many parameters: of LoRA, of whole weights
    (500_000_000, 1e-3, 5e-5),
    (2_000_000_000, 5e-4, 3e-5),
    (10_000_000_000, 3e-4, 2e-5),
    (math.inf, 2e-4, 1e-5),
)
EPOCHS = ((500, 3), (2000, 2), (math.inf, 1))  # below so many rows
BATCHES = ((500, 4), (2000, 8), (math.inf, 16))  # below so many rows
SHORTEST, LONGEST = 512, 2048  # ctx: the longest row's tokens, within these


def derived(settings: TrainSettings, gguf: GGUF, rows: int, longest: int) -> tuple[RunSettings, list[str]]:
    """The settings with a value for each that was left open, and lines on what was chosen and why. `rows` train; the
    `longest` has so many tokens, or one that validates. Raises UsageError where what was given and what was chosen do
    not go together.
    """
    found: dict[str, Any] = {}
    lines = []

    def choose(name: str, value: float, shown: str, why: str) -> None:
        if getattr(settings, name) is None:
            found[name] = value
            lines.append(f"{name} {shown}: {why}")

    what, counted = "all weights" if settings.full else "LoRA", f"{rows:,} row{'s' * (rows != 1)}"
    parameters = sum(info.n_elements for info in gguf.tensors.values())
    rate, epochs, batch = rate_of(parameters, settings.full), epochs_of(rows), batch_of(rows)
    choose("lr", rate, f"{rate:.0e}".replace("e-0", "e-"), f"{what}, {rounded(parameters)} parameters")
    choose("epochs", epochs, f"{epochs:g}", counted)
    choose("batch", batch, str(batch), counted)
    most = most_tokens(settings, gguf)
    ctx = min(most, max(SHORTEST, longest))
    choose(
        "ctx", ctx, str(ctx), f"the longest row has {longest:,} tokens" if longest < most else "the most without --ctx"
    )
    if settings.steps is not None:
        lines = [line for line in lines if not line.startswith("epochs")]
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    chosen = RunSettings(**{**values, **found})
    check_settings(chosen)
    return chosen, lines


def most_tokens(settings: TrainSettings, gguf: GGUF) -> int:
    """The tokens beyond which rows are cut: `ctx`, else what the model was trained with, at most LONGEST."""
    known = gguf.get(f"{gguf.architecture}.context_length", int, LONGEST)
    return settings.ctx or max(2, min(LONGEST, known))


def rate_of(parameters: int, full: bool) -> float:
    """The peak learning rate for a model of so many parameters."""
    return next(whole if full else lora for below, lora, whole in RATES if parameters < below)


def epochs_of(rows: int) -> float:
    """Passes over so many rows."""
    return float(next(epochs for below, epochs in EPOCHS if rows < below))


def batch_of(rows: int) -> int:
    """Rows of an optimizer step, out of so many."""
    return next(batch for below, batch in BATCHES if rows < below)


def rounded(parameters: int) -> str:
    """135M"""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return f"{parameters:,}"
