"""Runs from start to result: `train`, and `plan_run` (what a run would take, without running it)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fabric import __version__
from fabric.core import peak_bytes
from fabric.devices.opening import opened
from fabric.distributed.ranks import Alone, Ranks
from fabric.errors import DeviceError, FabricError, OutputError, StoppedError, UsageError
from fabric.files import STDIO, is_stream, is_terminal, open_output, read_input, shown
from fabric.interrupts import Interrupted
from fabric.models import architecture_of
from fabric.models.recorder import Weights
from fabric.notices import notice
from fabric.runs.directory import KEPT, RUN, RUNS, lock_run, place_of, remove_new, write_run
from fabric.runs.state import recorded
from fabric.system import quoted
from fabric.tracking.tracking import tracking
from fabric.training.check import check_settings
from fabric.training.checkpoint import Checkpoint, Totals
from fabric.training.defaults import derived
from fabric.training.follow import Job, enlist, sketch
from fabric.training.identity import Inputs, beside
from fabric.training.loop import Loop, Spans, total_steps
from fabric.training.machine import Machine, capacities, steps_per_epoch, time_a_step
from fabric.training.metrics import MetricsLog
from fabric.training.parameters import fill
from fabric.training.result import write_result
from fabric.training.rows import Rows, load_rows
from fabric.training.settings import SILENT, RunSettings, TrainReport, TrainSettings, TrainUI
from fabric.training.target import Target, target_of
from fabric.training.tracked import tracked
from fabric.weights.gguf import GGUF


@dataclass
class Setup:
    """What a run stands on, opened and checked."""

    settings: RunSettings
    """With the device that was opened, what its profile says, and what the model and the rows decide."""
    gguf: GGUF
    rows: Rows
    target: Target
    weights: Weights
    machine: Machine
    notes: list[str]
    asked: str
    """The device that was asked for: each rank finds its own by it."""


def train(settings: TrainSettings, ui: TrainUI = SILENT, ranks: Ranks | None = None) -> TrainReport:
    """Trains and writes an adapter or a model to `settings.output`. Raises typed errors; leaves a resumable run. With
    `ranks` this is the first of them, and the others `follow`."""
    check_settings(settings)
    if settings.name is not None and settings.run_dir is not None:
        raise UsageError("--name names a folder in .fabric/runs, and --run-dir another place: leave one out")
    directory = Path(settings.run_dir or default_run_dir(settings))
    with _new_run(directory, settings.run_dir is not None):
        check_writable(settings)
        with _keeping(replace(settings, run_dir=str(directory)), directory) as settings:
            inputs = Inputs(settings)
            with set_up(settings, local=ranks.local if ranks else 0) as setup:
                settings = setup.settings
                if ranks and ranks.size > 1:
                    settings = replace(settings, device=setup.asked)
                if setup.machine.capacity < setup.machine.capacities[0]:  # a resumed run lays its rows out alike
                    settings = replace(settings, micro_batch=setup.machine.capacity)
                spans = Spans([(total_steps(settings, len(setup.rows.train)),) * 2])
                record = _Record(directory, settings, beside(lambda: inputs.hashes(setup.gguf)))
                return run_on(settings, setup, directory, ui, inputs, spans, record, ranks=ranks)


@contextlib.contextmanager
def _new_run(directory: Path, named: bool) -> Iterator[None]:
    """Locks a run directory; where the run never gets to its first step, nothing of it stays, nor of .fabric/runs
    where the directory is not one that was `named`."""
    existed = directory.exists()
    with lock_run(directory, new=True) as lock:
        if (directory / RUN).exists():
            other = "--run-dir" if named else "--name"
            raise UsageError(
                f"{directory} holds a run already: fabric resume {quoted(directory)}, or choose another {other}"
            )
        try:
            yield
        finally:
            if not (directory / RUN).exists():
                remove_new(directory, lock)
                if not existed:
                    with contextlib.suppress(OSError):  # another run may be there, or a user's file
                        for folder in (directory, *([] if named else directory.parents[:2])):
                            folder.rmdir()


class _Record:
    """run.json, which is written as soon as the hashes are known; hashing a large base takes as long as a step."""

    def __init__(self, directory: Path, settings: RunSettings, hashes: Future[dict[str, str | None]]) -> None:
        self.directory, self.hashes, self.there = directory, hashes, False
        settings = _findable(settings)
        self.told = {"settings": settings.to_json(), "fingerprints": settings.fingerprints(), "extended": []}

    def describe(self, about: dict[str, Any]) -> None:
        """For people and reports; nothing that a resumed run depends on."""
        began = datetime.now().astimezone().isoformat(timespec="seconds")
        self.told["about"] = {"version": __version__, "began": began, **about}

    def write(self, wait: bool) -> bool:
        """Whether it is there; `wait` until it is."""
        if not self.there and (wait or self.hashes.done()):
            write_run(self.directory, {**self.told, **self.hashes.result(), "place": place_of(self.directory)})
            self.there = True
        return self.there


def kind_of(settings: TrainSettings) -> str:
    """What a run writes."""
    return "model" if settings.full else "adapter"


def place_of_result(settings: TrainSettings, directory: Path) -> str:
    """Where the result goes, in words."""
    return shown(settings.output or directory / f"{kind_of(settings)}.gguf", "stdout")


def plan_run(settings: TrainSettings) -> dict[str, Any]:
    """What a run would do and take: rows, tokens, steps, parameters, bytes, and seconds by one step that is run. Writes
    nothing."""
    check_settings(settings)
    with tempfile.TemporaryDirectory() as scratch, _keeping(settings, Path(scratch)) as found, set_up(found) as setup:
        kept = setup.settings
        told = _describe(kept, setup)
        fill(setup.target.layout, setup.machine.params, setup.target.start)
        tokens, seconds = time_a_step(setup.machine, setup.rows.train)
        epochs = told["steps"] / steps_per_epoch(told["rows"], kept.batch)
        return {**told, "tokens_per_s": tokens / seconds, "seconds": epochs * told["tokens"] / tokens * seconds}


def default_run_dir(settings: TrainSettings) -> str:
    """.fabric/runs/<name>, or <time>-<hash of the settings and the process>, so that equal runs can start together."""
    if settings.name is not None:
        return str(RUNS / settings.name)
    told = json.dumps({**settings.to_json(), "process": os.getpid()}, sort_keys=True)
    tag = hashlib.sha256(told.encode()).hexdigest()[:6]
    return str(RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{tag}")


@contextlib.contextmanager
def _keeping(settings: TrainSettings, directory: Path) -> Iterator[TrainSettings]:
    """The settings with what comes through pipes kept in the run directory, or the run could not be resumed.

    What is wrong with it before the run begins is said of the pipe: the copy goes away again.
    """
    kept = {name: path for name, path in settings.files.items() if name in KEPT and is_stream(path)}
    for name, path in kept.items():
        with read_input(path) as source, open_output(directory / KEPT[name]) as out:
            while piece := source.read(1 << 20):
                out.write(piece)
    here = {name: str(directory / KEPT[name]) for name in kept}
    try:
        yield replace(settings, **here)  # type: ignore[arg-type]
    except FabricError as error:
        if (directory / RUN).exists():
            raise
        text = str(error)
        for name, path in here.items():
            text = text.replace(path, shown(kept[name]))
        raise type(error)(text) from error


def _findable(settings: RunSettings) -> RunSettings:
    """The settings with absolute paths, so that `resume` finds the files from any folder. A base that came through a
    pipe has to come through stdin again."""
    places = {**settings.files, "output": settings.output, "metrics": settings.metrics}
    if is_stream(settings.model):
        places["model"] = STDIO
    found = {name: str(Path(path).absolute()) for name, path in places.items() if path and path != STDIO}
    return replace(settings, **{**{"model": STDIO}, **found})  # type: ignore[arg-type]


def check_writable(settings: TrainSettings) -> None:
    """Fails now, not after hours, where the output or the metrics cannot be written."""
    if settings.output is not None and is_terminal(settings.output):
        raise UsageError(
            f"the {kind_of(settings)} would go to {place_of_result(settings, Path())}, which is a terminal: "
            "name a file with -o, or send it into a pipe"
        )
    for place in (settings.output, settings.metrics):
        if place is None or place == STDIO:
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
def set_up(settings: TrainSettings, profiled: bool = True, local: int = 0) -> Iterator[Setup]:
    """Opens the base and a device, reads the rows and plans. `profiled`: the device's profile says what the settings
    leave open. `local`: the number of this process among those of its host."""
    read: list[Rows] = []

    @contextlib.contextmanager
    def planned(settings: TrainSettings, weights: Weights) -> Iterator[tuple[RunSettings, list[str], Target, Machine]]:
        target = target_of(settings, weights)
        if not read:
            read.append(load_rows(settings, gguf, target.chat))
        lengths = [[len(e.tokens) for e in part] for part in (read[0].train, read[0].val) if part]
        chosen, why = derived(settings, gguf, len(read[0].train), max(map(max, lengths)))
        room = capacities(chosen, *lengths)
        machine = Machine(chosen, weights, target.layout, target.alpha, room, read[0].samples)
        with contextlib.closing(machine):
            yield chosen, why, target, machine

    with contextlib.closing(GGUF.open(settings.model)) as gguf:
        architecture_of(gguf)
        with opened(settings, gguf, planned, profiled, local=local) as found:
            chosen, why, target, machine = found.made
            notes = [*([found.taken] if found.taken else []), *why, *read[0].notes, *target.notes]
            yield Setup(chosen, gguf, read[0], target, found.weights, machine, notes, settings.device)


def _describe(settings: RunSettings, setup: Setup, spans: Spans | None = None) -> dict[str, Any]:
    machine, rows = setup.machine, setup.rows
    return {
        "architecture": setup.gguf.architecture,
        "settings": {"lr": settings.lr, "epochs": settings.epochs, "batch": settings.batch, "ctx": settings.ctx}
        | ({} if settings.full else {"rank": settings.rank, "alpha": settings.alpha}),
        "rows": len(rows.train),
        "val_rows": len(rows.val),
        "tokens": sum(len(e.tokens) for e in rows.train),
        "trained_tokens": sum(int(e.train.sum()) for e in rows.train),
        "notes": setup.notes,
        "steps": spans.last if spans else total_steps(settings, len(rows.train)),
        "trained_params": setup.target.layout.trained,
        "micro_batch_tokens": machine.capacity,
        "precision": machine.precision,
        "weights": machine.weights_kept,
        "checkpointing": machine.checkpointing,
        "memory": machine.memory(),
        "planned_bytes": machine.planned_bytes(),
        "peak_bytes": peak_bytes() + machine.planned_bytes() + setup.gguf.file_bytes,
        "model_bytes": setup.gguf.file_bytes,
        "uploaded_bytes": machine.plan.stats.weight_bytes,
        "device": {**setup.weights.device.info._asdict(), "opened": setup.settings.device},
        "launches": machine.plan.stats.launches,
        "tiled": machine.plan.stats.tiled,
        "flops_per_token": machine.plan.stats.flops_per_token,
        "flops_per_trained": machine.plan.stats.flops_per_trained,
    }


def run_on(
    settings: RunSettings, setup: Setup, directory: Path, ui: TrainUI, inputs: Inputs, spans: Spans,
    record: _Record | None, found: Checkpoint | None = None, ranks: Ranks | None = None,
) -> TrainReport:  # fmt: skip
    """Trains on from a checkpoint. `record` writes run.json; None: it is there."""
    machine, totals, step, ranks = setup.machine, Totals(), 0, ranks or Alone()
    if found:
        totals, step = found.checked_totals(), found.step
        if step > spans.last:
            raise found.false(f"it is of step {step}, and the run ends after {spans.last}")
        machine.restore(found)
        if any(step == end != spans.last for end, _ in spans.ends):
            totals.stale = 0  # the run was told to go on, for all that its patience was at an end
    else:
        fill(setup.target.layout, machine.params, setup.target.start)
    for note in setup.notes:
        ui.message(note)
    about = _describe(settings, setup, spans)
    if record:
        record.describe({**about, "ranks": ranks.size})
    ui.start({**about, "run_dir": str(directory), "from_step": step})
    write_record = record.write if record else lambda wait: True
    rows = setup.rows
    kept = f"go on from the last checkpoint with: fabric resume {quoted(directory)}"
    job = Job(settings, setup.target.layout, setup.target.alpha, rows.train, rows.val, sketch(setup.gguf), kept)
    enlisted = enlist(ranks, job, machine)
    if ranks.size > 1:
        hosts = len(set(ranks.hosts))
        names = ", ".join(f"{count} on {name}" for name, count in Counter(enlisted.devices).items())
        by = ", gradients by NCCL" if enlisted.cards else ""
        ui.message(f"{ranks.size} ranks on {hosts} host{'s' * (hosts > 1)} train together: {names}{by}")
        if enlisted.reason:
            ui.message(enlisted.reason)
    elif settings.sync_every > 1:
        notice("--sync-every has no effect with one rank: it averages the parameters of several")
    loop = Loop(machine, rows, directory, ui, step, totals, spans, write_record, ranks, enlisted)
    watched = tracking(settings.track, tracked(settings, directory, step, about), ui.message)
    with watched as trackers, recorded(directory, spans.last):
        try:
            with MetricsLog(directory, settings.metrics, step, trackers.log) as metrics:
                loop.run(metrics)
            for sentence in inputs.changed():
                notice(sentence)
            size, sha256 = write_result(settings, setup.target, machine, rows.chat, directory, inputs, spans)
        except (DeviceError, OutputError) as error:
            if record and not record.there:
                raise  # nothing is kept that could go on
            told = str(error).rstrip(".")
            raise type(error)(
                f"{told}; steps up to {loop.saved} are kept: fabric resume {quoted(directory)}"
            ) from error
        except Interrupted:
            if not write_record(False):
                raise
            raise StoppedError(
                f"stopped before the {setup.target.kind} was written; continue with: fabric resume {quoted(directory)}"
            ) from None
    return TrainReport(
        steps=loop.step, loss=totals.loss, val_loss=totals.best_loss if settings.patience else totals.val_loss,
        best_step=totals.best_step if settings.patience else None, tokens=totals.tokens,
        trained_tokens=totals.trained_tokens, seconds=totals.seconds,
        tokens_per_s=totals.tokens / totals.seconds if totals.seconds else 0.0, peak_bytes=peak_bytes(),
        kind=setup.target.kind, model=settings.model, chat=bool(setup.rows.chat), device=setup.settings.device,
        output_bytes=size, run_dir=str(directory),
        output=settings.output or str(directory / f"{setup.target.kind}.gguf"), metrics=settings.metrics,
        sha256=sha256,
    )  # fmt: skip
