"""Learning rates by optimizer step."""

from __future__ import annotations

import math

from fabric.training.settings import Schedule


def learning_rate(
    step: int,
    total: int,
    lr: float,
    schedule: Schedule,
    warmup_ratio: float,
    warmup_steps: int | None = None,
    lr_min: float = 0.0,
) -> float:
    """The rate of step 1 .. total: a linear rise over the warm-up, then the schedule from lr towards lr_min.

    The first step of a warm-up of W is lr / W; without one it is lr. The exponential schedule falls by the same factor
    each step, to lr / 100 where lr_min is 0.
    """
    warmup = math.ceil(total * warmup_ratio) if warmup_steps is None else warmup_steps
    if step <= warmup:
        return lr * step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    if schedule == "constant":
        return lr
    if schedule == "exponential":
        return lr * math.pow((lr_min or lr / 100) / lr, done)
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lr_min + (lr - lr_min) * left
