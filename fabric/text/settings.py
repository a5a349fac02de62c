"""Settings of `template`. Leans on fabric.settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fabric.settings import CONTEXT, STRIDE, Model, OnError, Records, Setting, Template, Train


@dataclass(frozen=True)
class RenderSettings:
    """`fabric template DATA -m MODEL`: records as the model's template renders them, or as tokens."""

    data: Records
    model: Model
    template: Template = None
    tokens: Annotated[bool, Setting("write token records instead of text")] = False
    check: Annotated[bool, Setting("write nothing; show lengths and what trains", touches="task")] = False
    ctx: Annotated[int | None, CONTEXT] = None
    """With `tokens` or `check`: rows longer than this are cut, texts split into windows."""
    stride: Annotated[int | None, STRIDE] = None
    """None: windows that train every token once."""
    train: Train = "all"
    on_error: OnError = "stop"
