"""Runs from start to result: `train`, `resume`, and `plan_run` (what a run would take, without running it)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from fabric.devices import profile_of
from fabric.errors import DataError, DeviceError, FabricError, OutputError, UsageError
from fabric.files import check_streams, open_output, seekable_input
from fabric.models import architecture_of
from fabric.models.recorder import Weights
from fabric.training.checkpoint import lock_run, newest_checkpoint, read_run, write_run
from fabric.training.loop import Loop, Machine, Totals, capacities, steps_per_epoch, time_a_step, total_steps
from fabric.training.metrics import MetricsLog, peak_bytes
from fabric.training.parameters import fill
from fabric.training.rows import Rows, load_rows
from fabric.training.settings import TrainReport, TrainSettings, TrainUI
from fabric.training.target import Target, target_of
from fabric.weights.gguf import GGUF
from fabric.weights.history import Step, step
from fabric.weights.merge import KEEP
from fabric.weights.mix import parse_mix

MOST_DROPOUT = 0.999  # more would leave an adapter next to nothing to see


@dataclass
class _Setup:
    """What a run stands on, opened and checked."""

    gguf: GGUF
    rows: Rows
    target: Target
    weights: Weights
    machine: Machine


def train(settings: TrainSettings, ui: TrainUI) -> TrainReport:
    """Trains and writes an adapter or a model to `settings.output`. Raises typed errors; leaves a resumable run."""
    check_settings(settings)
    settings = _profiled(settings)
    directory = Path(settings.run_dir or default_run_dir(settings))
    with _new_run(directory, settings.run_dir is not None):
        _check_writable(settings)
        settings = replace(settings, run_dir=str(directory))
        with (
            _keeping(settings, directory) as settings,
            _setup(settings) as setup,
            ThreadPoolExecutor(1, "fabric-identity") as side,
        ):
            if setup.machine.capacity < setup.machine.capacities[0]:  # a resumed run lays its rows out alike
                settings = replace(settings, micro_batch=setup.machine.capacity)
            told = {"settings": _findable(settings).to_json(), "fingerprints": settings.fingerprints()}
            known = side.submit(  # hashing a large base takes as long as a step
                lambda: write_run(directory, {**told, **_identity(settings, setup)})
            )
            return _run(settings, setup, directory, ui, known.result)


@contextlib.contextmanager
def _new_run(directory: Path, named: bool) -> Iterator[None]:
    """Locks a run directory; where the run never gets to its first step, nothing of it stays, nor of .fabric/runs
    where the directory is not one that was `named`."""
    existed = directory.exists()
    with lock_run(directory):
        if (directory / "run.json").exists():
            raise UsageError(f"{directory} holds a run already: fabric resume {directory}, or choose another --run-dir")
        try:
            yield
        finally:
            if not (directory / "run.json").exists():
                for name in [*_KEPT.values(), "lock"]:
                    (directory / name).unlink(missing_ok=True)
                if not existed:
                    with contextlib.suppress(OSError):  # another run may be there, or a user's file
                        for folder in (directory, *([] if named else directory.parents[:2])):
                            folder.rmdir()


def resume(
    run_dir: str, ui: TrainUI, output: str | None = None, metrics: str | None = None, threads: int | None = None
) -> TrainReport:
    """Continues a run from its newest valid checkpoint; what it writes is what an uninterrupted run writes.

    Raises DataError when the base, the rows or the starting adapter are no longer those of the run.
    """
    directory = Path(run_dir)
    kept = read_run(directory)
    try:
        settings = TrainSettings.from_json(kept["settings"])
    except (TypeError, KeyError) as error:
        raise DataError(f"{directory / 'run.json'}: not the settings of a run: {error}") from error
    here = {field: directory / name for field, name in _KEPT.items()}
    settings = replace(settings, **{k: str(path) for k, path in here.items() if path.exists()})  # type: ignore[arg-type]
    changes = {"output": output, "metrics": metrics, "threads": threads}
    settings = replace(settings, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    check_streams(settings.inputs, [settings.output, settings.metrics])
    now, then = settings.fingerprints(), kept.get("fingerprints")
    if now != then:
        names = sorted(k for k in now if not isinstance(then, dict) or now[k] != then.get(k))
        changed = f"the settings have changed since this run began ({', '.join(names)})"
        raise DataError(f"{directory / 'run.json'}: {changed}; restore them")
    with lock_run(directory):
        _check_writable(settings)
        with _setup(settings) as setup:
            for key, value in _identity(settings, setup).items():
                if kept.get(key) != value:
                    what = key.removesuffix("_sha256")
                    raise DataError(
                        f"{directory}: the {what} has changed since this run began; restore it, or train anew"
                    )
            return _run(settings, setup, directory, ui, None)


def plan_run(settings: TrainSettings) -> dict[str, Any]:
    """What a run would do and take: rows, tokens, steps, parameters, bytes, and seconds by one step that is run. Writes
    nothing."""
    check_settings(settings)
    settings = _profiled(settings)
    with tempfile.TemporaryDirectory() as scratch, _keeping(settings, Path(scratch)) as kept, _setup(kept) as setup:
        told = _describe(kept, setup)
        fill(setup.target.layout, setup.machine.params, setup.target.start)
        tokens, seconds = time_a_step(setup.machine, setup.rows.train)
        epochs = told["steps"] / steps_per_epoch(told["rows"], kept.batch)
        return {**told, "tokens_per_s": tokens / seconds, "seconds": epochs * told["tokens"] / tokens * seconds}


def check_settings(s: TrainSettings) -> None:
    """UsageError for values that make no sense."""
    for name in ("alpha", "epochs", "lr", "lr_min", "lora_plus", "neftune", "dropout", "weight_decay", "clip"):
        if not math.isfinite(getattr(s, name)):
            raise UsageError(f"--{name.replace('_', '-')} must be a finite number, not {getattr(s, name)}")
    positive = {"rank": s.rank, "alpha": s.alpha, "lr": s.lr, "batch": s.batch, "accumulate": s.accumulate}
    for name, value in {**positive, "lora-plus": s.lora_plus}.items():
        if not value > 0:
            raise UsageError(f"--{name} must be greater than 0, not {value}")
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
    check_streams(s.inputs, [s.output, s.metrics])


def default_run_dir(settings: TrainSettings) -> str:
    """.fabric/runs/<time>-<hash of the settings and the process>, so that equal runs can start together."""
    told = json.dumps({**settings.to_json(), "process": os.getpid()}, sort_keys=True)
    tag = hashlib.sha256(told.encode()).hexdigest()[:6]
    return str(Path(".fabric") / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{tag}")


_KEPT = {"data": "data.jsonl", "val": "val.jsonl", "adapter": "start.gguf", "template": "template.jinja"}


@contextlib.contextmanager
def _keeping(settings: TrainSettings, directory: Path) -> Iterator[TrainSettings]:
    """The settings with what comes through stdin kept in the run directory, or the run could not be resumed.

    What is wrong with it before the run begins is said of stdin: the copy goes away again.
    """
    for field, name in _KEPT.items():
        if getattr(settings, field) != "-":
            continue
        target = directory / name
        with seekable_input("-") as source, open_output(target) as out:
            while piece := source.read(1 << 20):
                out.write(piece)
        try:
            yield replace(settings, **{field: str(target)})  # type: ignore[arg-type]
        except FabricError as error:
            if (directory / "run.json").exists():
                raise
            raise type(error)(str(error).replace(str(target), "stdin")) from error
        return
    yield settings


def _profiled(settings: TrainSettings) -> TrainSettings:
    """What the settings leave open, as the device's profile says; kept with the run, so that a resumed one stays so."""
    profile = profile_of(settings.device)
    told = {key: profile.get(key) for key in ("checkpointing", "micro_batch") if getattr(settings, key) is None}
    if settings.precision == "auto":
        told["precision"] = profile.get("precision", "auto")
    return replace(settings, **told)


def _findable(settings: TrainSettings) -> TrainSettings:
    """The settings with absolute paths, so that `resume` finds the files from any folder."""
    fraction = settings.val and not Path(settings.val).exists()
    names = ["data", "model", "output", "adapter", "template", "metrics", *([] if fraction else ["val"])]
    told = {name: getattr(settings, name) for name in names}
    return replace(settings, **{k: str(Path(v).absolute()) for k, v in told.items() if v and v != "-"})  # type: ignore[arg-type]


def _check_writable(settings: TrainSettings) -> None:
    """Fails now, not after hours, where the output or the metrics cannot be written."""
    for place in (settings.output, settings.metrics):
        if place is None or place == "-":
            continue
        try:
            if Path(place).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if Path(place).is_file() and not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not Path(place).exists() or Path(place).is_file():
                tempfile.TemporaryFile(dir=Path(place).resolve().parent).close()
        except OSError as error:
            raise OutputError(f"{place} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _setup(settings: TrainSettings) -> Iterator[_Setup]:
    closing: list[Callable[[], None]] = []
    try:
        gguf = GGUF.open(settings.model)
        closing.append(gguf.close)
        architecture_of(gguf)
        device = profile_of(settings.device).open(settings.device, threads=settings.threads)
        closing.append(device.close)
        weights = Weights(gguf, device)
        closing.append(weights.close)
        target = target_of(settings, weights)
        rows = load_rows(settings, gguf)
        lengths = [[len(e.tokens) for e in part] for part in (rows.train, rows.val) if part]
        machine = Machine(settings, weights, target.layout, target.alpha, capacities(settings, *lengths))
        closing.append(machine.close)
        yield _Setup(gguf, rows, target, weights, machine)
    finally:
        for close in reversed(closing):
            close()


def _identity(settings: TrainSettings, setup: _Setup) -> dict[str, str | None]:
    """Hashes that a resumed run must find again."""

    def file_hash(path: str | None) -> str | None:
        if path is None or not Path(path).is_file():
            return None
        with Path(path).open("rb") as source:
            digest = hashlib.sha256()
            while piece := source.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()

    return {
        "model_sha256": setup.gguf.sha256(),
        "data_sha256": file_hash(settings.data),
        "adapter_sha256": file_hash(settings.adapter),
        "val_sha256": file_hash(settings.val),
        "template_sha256": file_hash(settings.template),
    }


def _describe(settings: TrainSettings, setup: _Setup) -> dict[str, Any]:
    machine, rows = setup.machine, setup.rows
    return {
        "architecture": setup.gguf.architecture,
        "rows": len(rows.train),
        "val_rows": len(rows.val),
        "tokens": sum(len(e.tokens) for e in rows.train),
        "trained_tokens": sum(int(e.train.sum()) for e in rows.train),
        "notes": rows.notes + setup.target.notes,
        "steps": total_steps(settings, len(rows.train)),
        "trained_params": setup.target.layout.trained,
        "micro_batch_tokens": machine.capacity,
        "precision": machine.precision,
        "checkpointing": machine.checkpointing,
        "memory": machine.memory(),
        "planned_bytes": machine.planned_bytes(),
        "peak_bytes": peak_bytes() + machine.planned_bytes() + len(setup.gguf.buffer),
        "model_bytes": len(setup.gguf.buffer),
        "device": {**setup.weights.device.info._asdict(), "opened": settings.device},
        "launches": machine.plan.stats.launches,
        "tiled": machine.plan.stats.tiled,
        "flops_per_token": machine.plan.stats.flops_per_token,
        "flops_per_trained": machine.plan.stats.flops_per_trained,
    }


def _run(
    settings: TrainSettings, setup: _Setup, directory: Path, ui: TrainUI, identity: Callable[[], None] | None
) -> TrainReport:
    """Trains on. `identity` waits until run.json is there, which must come before any checkpoint; None: resumed."""
    machine, totals, step = setup.machine, Totals(), 0
    found = None if identity else newest_checkpoint(directory)
    if found:
        machine.restore(found)
        totals, step = Totals(**found.totals), found.step
    else:
        fill(setup.target.layout, machine.params, setup.target.start)
    for note in setup.rows.notes + setup.target.notes:
        ui.message(note)
    ui.start({**_describe(settings, setup), "run_dir": str(directory), "from_step": step})
    loop = Loop(machine, setup.rows.train, setup.rows.val, directory, ui, step, totals, identity)
    try:
        with MetricsLog(directory, settings.metrics, step) as metrics:
            loop.run(metrics)
        size, sha256 = _write(settings, setup, directory)
    except (DeviceError, OutputError) as error:
        told = str(error).rstrip(".")
        raise type(error)(f"{told}; steps up to {loop.saved} are kept: fabric resume {directory}") from error
    return TrainReport(
        steps=loop.step, loss=totals.loss, val_loss=totals.best_loss if settings.patience else totals.val_loss,
        best_step=totals.best_step if settings.patience else None, tokens=totals.tokens,
        trained_tokens=totals.trained_tokens, seconds=totals.seconds,
        tokens_per_s=totals.tokens / totals.seconds if totals.seconds else 0.0, peak_bytes=peak_bytes(),
        kind=setup.target.kind, output_bytes=size, run_dir=str(directory), sha256=sha256,
    )  # fmt: skip


def _write(settings: TrainSettings, setup: _Setup, directory: Path) -> tuple[int, str]:
    """Writes the result; returns its size and SHA-256. An adapter stays in the run directory too, a model only where
    no output was named."""
    made = _step(settings, setup)
    kept = str(directory / f"{setup.target.kind}.gguf")
    places = [settings.output] if settings.output and settings.full else [settings.output, kept]
    size, digest = 0, hashlib.sha256()
    for place in places:
        if place is not None:
            digest = hashlib.sha256()
            with open_output(place) as out:
                size = setup.target.write(cast(BinaryIO, _Hashed(out, digest)), setup.machine.params, made)
    return size, digest.hexdigest()


class _Hashed:
    """An output whose bytes are hashed on their way."""

    def __init__(self, out: BinaryIO, digest: hashlib._Hash) -> None:
        self.out, self.digest = out, digest

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        return self.out.write(data)


def _step(settings: TrainSettings, setup: _Setup) -> Step:
    """The history of what this run writes."""
    known = _RESULT_SETTINGS | set(setup.target.told)
    rare = {k for k in _RARE_SETTINGS if getattr(settings, k) != getattr(TrainSettings, k)}
    told = {k: v for k, v in settings.to_json().items() if k in known | rare}
    told["precision"] = setup.machine.precision
    hashes = {k.removesuffix("_sha256"): v for k, v in _identity(settings, setup).items() if v}
    return step("train", told, hashes, settings.seed)


_RESULT_SETTINGS = {
    "epochs", "steps", "lr", "schedule", "warmup_ratio", "weight_decay", "clip", "optimizer", "batch", "ctx",
    "accumulate", "pack", "shuffle",
}  # fmt: skip
_RARE_SETTINGS = {"warmup_steps", "lr_min", "stride", "patience", "dropout", "rslora", "lora_plus", "neftune"}
