"""What settings of a run have to be, wherever they come from."""

from __future__ import annotations

from pathlib import Path

from fabric.errors import UsageError
from fabric.files import check_streams
from fabric.settings import check
from fabric.tracking.trackers import check_trackers
from fabric.training.settings import TRACKERS, TrainSettings
from fabric.weights.merge import KEEP
from fabric.weights.mix import parse_mix


def check_settings(s: TrainSettings) -> None:
    """UsageError for values that make no sense, each by itself or together."""
    check(s)
    if s.lr is not None and not 0 <= s.lr_min <= s.lr:
        raise UsageError(f"--lr-min must lie between 0 and --lr {s.lr}, not {s.lr_min}")
    if s.stride is not None and s.ctx is not None and not 0 < s.stride < s.ctx:
        raise UsageError(f"--stride must lie between 0 and --ctx {s.ctx}, not {s.stride}")
    if s.name is not None and (not s.name or Path(s.name).name != s.name or s.name.startswith((".", "-"))):
        raise UsageError(f"--name {s.name}: a run's name is that of a folder: no slashes, no dot or dash at its start")
    if s.patience and not s.val:
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
    if unknown := set(s.track) - set(TRACKERS):
        raise UsageError(f"--track: there is no tracker {min(unknown)!r}; there are {', '.join(TRACKERS)}")
    check_trackers(s.track)
    check_streams(s.files.values(), [s.output, s.metrics])
