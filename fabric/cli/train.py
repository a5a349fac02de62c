"""`fabric train`: records and a base model in, a LoRA adapter or (--full) a whole model out."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Setting, declared
from fabric.training.settings import TrainSettings


def command(
    settings: TrainSettings,
    config: Annotated[
        str | None, Setting("flags of `train`, by their long names; see fabric.toml(5)", "TOML", path="in")
    ] = None,
    dry_run: Annotated[bool, Setting("print plan, memory and time; write no files", touches="task")] = False,
) -> None:
    """Fine-tunes a GGUF model on records; writes a stock llama.cpp LoRA adapter, or with --full a new GGUF model.

    Ctrl-C checkpoints and stops; `fabric resume` continues to the same bits.
    """
    from fabric.cli import run

    (run.plan if dry_run else run.train)(_of_target(settings))


def _of_target(settings: TrainSettings) -> TrainSettings:
    """The settings without those of the other kind of training: refused where they were typed, left where they are a
    file's."""
    other = "lora" if settings.full else "full"
    foreign = {one.name: one.default for one in declared(settings) if one.setting.only == other}
    typed = console.given(*foreign)
    if typed and settings.full:
        raise UsageError(f"--full trains whole weights, and {' and '.join(typed)} applies only to LoRA: leave one out")
    return settings if typed else replace(settings, **foreign)
