"""Learning rates by optimizer step."""

from __future__ import annotations

import math

from fabric.training.settings import Schedule


def learning_rate(step: int, total: int, lr: float, schedule: Schedule, warmup_ratio: float) -> float:
    """The rate of step 1 .. total: a linear rise over the first `warmup_ratio`, then the schedule down to 0.

    The first step of a warm-up of W is lr / W; without one it is lr.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step <= warmup:
        return lr * step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return lr * (1 - done)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * done))
    return lr
