"""What settings of a run have to be, wherever they come from."""

from __future__ import annotations

import math
from dataclasses import fields

from fabric.errors import UsageError
from fabric.files import check_streams
from fabric.training.settings import MODULES, TrainSettings
from fabric.weights.merge import KEEP
from fabric.weights.mix import parse_mix

MOST_DROPOUT = 0.999  # more would leave an adapter next to nothing to see
MOST_THREADS = 512
SMALLEST_ALPHA = 1e-37  # that a 32-bit number holds with all its digits


def check_settings(s: TrainSettings) -> None:
    """UsageError for values that make no sense."""
    limits = {"seed": (1 << 64) - 1, "threads": MOST_THREADS}
    for field in fields(s):
        value, most = getattr(s, field.name), limits.get(field.name, (1 << 31) - 1)
        if type(value) in (int, float) and (abs(value) > most or (type(value) is int and value < 0)):
            raise UsageError(f"--{field.name.replace('_', '-')} must lie between 0 and {most}, not {value}")
    if unknown := set(s.modules) - set(MODULES):
        raise UsageError(f"--modules: there is no module {min(unknown)!r}; there are {', '.join(MODULES)}")
    for name in ("alpha", "epochs", "lr", "lr_min", "lora_plus", "neftune", "dropout", "weight_decay", "clip"):
        if not math.isfinite(getattr(s, name)):
            raise UsageError(f"--{name.replace('_', '-')} must be a finite number, not {getattr(s, name)}")
    positive = {"rank": s.rank, "alpha": s.alpha, "lr": s.lr, "batch": s.batch, "accumulate": s.accumulate}
    for name, value in {**positive, "lora-plus": s.lora_plus}.items():
        if not value > 0:
            raise UsageError(f"--{name} must be greater than 0, not {value}")
    if s.alpha < SMALLEST_ALPHA:
        raise UsageError(
            f"--alpha {s.alpha} is too small: an adapter's file would hold 0; give {SMALLEST_ALPHA} or more"
        )
    if s.ctx < 2:
        raise UsageError(f"--ctx must be at least 2 tokens, not {s.ctx}")
    if s.steps is not None and s.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {s.steps}")
    if not s.epochs > 0:
        raise UsageError(f"--epochs must be greater than 0, not {s.epochs}")
    if not 0 <= s.dropout <= MOST_DROPOUT:
        raise UsageError(f"--dropout must lie between 0 and {MOST_DROPOUT}, not {s.dropout}")
    never = {"clip": s.clip, "weight-decay": s.weight_decay, "neftune": s.neftune}
    for name, value in {**never, "checkpoint-minutes": s.checkpoint_minutes}.items():
        if value < 0:
            raise UsageError(f"--{name} must not be negative")
    if not 0 <= s.warmup_ratio <= 1:
        raise UsageError(f"--warmup-ratio must lie between 0 and 1, not {s.warmup_ratio}")
    if not 0 <= s.lr_min <= s.lr:
        raise UsageError(f"--lr-min must lie between 0 and --lr {s.lr}, not {s.lr_min}")
    if s.warmup_steps is not None and s.warmup_steps < 0:
        raise UsageError(f"--warmup-steps must not be negative, not {s.warmup_steps}")
    if s.stride is not None and not 0 < s.stride < s.ctx:
        raise UsageError(f"--stride must lie between 0 and --ctx {s.ctx}, not {s.stride}")
    if s.keep < 1:
        raise UsageError(f"--keep must be at least 1, not {s.keep}")
    if s.patience < 0 or (s.patience and not s.val):
        raise UsageError("--patience waits for a better validation loss, so it needs --val and a number from 1 on")
    if s.full and (s.dropout or s.rslora or s.lora_plus != 1):
        raise UsageError("--full trains whole weights, and --dropout, --rslora and --lora-plus are of LoRA pairs")
    if s.adapter and s.rslora:
        raise UsageError("--rslora sets the scale of new pairs, and those of --adapter have theirs: leave one out")
    if s.full and s.adapter:
        raise UsageError("--full trains whole weights, and --adapter starts LoRA pairs: leave one out")
    if s.type is not None and not s.full:
        raise UsageError("--type is of a whole model, so it needs --full; adapters are F32")
    if s.type not in (None, KEEP):
        parse_mix(str(s.type))
    check_streams(s.files.values(), [s.output, s.metrics])
