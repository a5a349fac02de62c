"""The loop: optimizer steps over packed rows, with validation, checkpoints and metrics. One run from start or from a
checkpoint; `run.py` sets it up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fabric.core import Buffer, Cancelled, Device, Feed, Optimizer, Plan, Progress
from fabric.data.pack import build_feed, plan_epoch
from fabric.distributed.ranks import Ranks
from fabric.distributed.team import Run, Team
from fabric.errors import DataError, DeviceError, DivergedError, StoppedError
from fabric.interrupts import Interrupted, held
from fabric.models import architecture_of
from fabric.models.inference import pick_precision
from fabric.models.recorder import EMBEDDING, Recorder, Weights
from fabric.text.encode import Example
from fabric.training.checkpoint import (
    BEST,
    Checkpoint,
    Snapshot,
    Totals,
    checkpoints,
    read_checkpoint,
    write_checkpoint,
    write_snapshot,
)
from fabric.training.metrics import MetricsLog, peak_bytes
from fabric.training.noise import dropout_keys, embedding_noise
from fabric.training.parameters import F32Array, Layout
from fabric.training.schedule import learning_rate
from fabric.training.settings import TrainSettings, TrainUI

T = TypeVar("T")
POLL_S = 0.05
MOST_TOKENS = (1 << 31) - 1  # of a micro-batch
WORSE = 1.5  # times its lowest: such a loss, if it is above that of guessing too, has exploded
_PIECE_BYTES = 1 << 22


def steps_per_epoch(rows: int, batch: int) -> int:
    """The last batch may be smaller."""
    return -(-rows // batch)


def total_steps(settings: TrainSettings, rows: int) -> int:
    """`steps`, or `epochs` rounded up to whole steps."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * steps_per_epoch(rows, settings.batch) - 1e-9))


def capacities(settings: TrainSettings, *lengths: list[int]) -> list[int]:
    """Tokens that a micro-batch may have, best first, for sets of rows of such lengths: room for the longest row and,
    where rows are packed, for as many as `micro_batch` (or `ctx`) holds; then halves of that, down to `ctx`."""
    longest = max(map(max, lengths))
    if not settings.pack:
        return [longest]
    most = max(sum(sorted(rows, reverse=True)[: settings.batch]) for rows in lengths)
    found = [max(longest, min(settings.micro_batch or settings.ctx, most))]
    while found[-1] > settings.ctx:
        found.append(max(settings.ctx, found[-1] // 2))
    return found


@dataclass
class Machine:
    """The device side of a run: parameters, optimizer state, and the plans that train and validate. Of `capacities`,
    the tokens that a micro-batch may have, the first is taken that leaves room on the device; where none does,
    activations are recomputed, if the settings leave that open. Frozen weights are decoded to 16 bits only where that
    leaves room too."""

    settings: TrainSettings
    weights: Weights
    layout: Layout
    alpha: float
    capacities: list[int]
    arrays: int = field(init=False)

    def __post_init__(self) -> None:
        device: Device = self.weights.device
        s = self.settings
        self.precision = pick_precision(device, s.precision)
        self.arrays = 3 if s.optimizer == "adamw" else 1
        self._check_fits(self._least_bytes())
        flat = self.layout.size * 4
        self.state = [Buffer(device, flat, seams=self.layout.seams) for _ in range(self.arrays)]
        self.params = self.state[0]
        self.grads = Buffer(device, flat, seams=self.layout.seams)
        ways = (False, True) if s.checkpointing is None else (s.checkpointing,)
        choices = [
            (n, checkpointing, kept) for checkpointing in ways for n in self.capacities for kept in self._kinds()
        ]
        for choice in choices:
            self._plan(*choice)
            if choice == choices[-1] or self._leaves_room():
                break
            self._close_plans()
        self.check_fits()
        self.optimizer = Optimizer(
            m=self.state[1] if self.arrays > 1 else None, v=self.state[2] if self.arrays > 1 else None,
            ranges=self.layout.ranges(s.lora_plus), kind=s.optimizer, weight_decay=s.weight_decay, clip=s.clip,
        )  # fmt: skip

    def _kinds(self) -> tuple[str, ...]:
        """How frozen weights may be kept, best first."""
        info = self.weights.device.info
        if self.settings.weights != "auto":
            return (self.settings.weights,)
        return ("16bit", "blocks") if info.decode_pays and info.own_memory and self.precision == "bf16" else ("blocks",)

    def _plan(self, capacity: int, checkpointing: bool, kept: str) -> None:
        """Plans for micro-batches of at most `capacity` tokens; nothing is allocated."""
        s, arch = self.settings, architecture_of(self.weights.gguf)
        self.capacity, self.checkpointing, decode = capacity, checkpointing, kept == "16bit"
        recorder = Recorder(
            self.weights, capacity, capacity, self.precision, self.layout.sources(self.params),
            alpha=self.alpha, dropout=s.dropout, noise=s.neftune > 0,
        )  # fmt: skip
        self.nll = recorder.loss(arch.build(recorder, arch.read_config(self.weights.gguf)))
        recorder.check()
        self.names = {tensor: name for name, tensor in recorder.leaves.items()}
        self.inputs = recorder.inputs
        self.plan = Plan(recorder.graph, self.params, self.grads, checkpoint=checkpointing, decode=decode)
        self.scorer = Plan(recorder.graph, decode=decode) if s.val else None
        self.weights_kept = kept if self.plan.stats.constant_bytes else "blocks"  # where nothing is to be decoded
        recorder.graph.close()

    def _close_plans(self) -> None:
        for plan in (self.plan, self.scorer):
            if plan is not None:
                plan.close()

    def _leaves_room(self) -> bool:
        """Whether a quarter of a device's own memory stays free; of memory that it shares, activations take at most an
        eighth."""
        info = self.weights.device.info
        if info.own_memory:
            return self._taken_bytes() <= info.memory_bytes * 3 // 4
        return self.plan.stats.arena_bytes <= info.memory_bytes // 8

    def feed(self, rows: list[Example], numbers: list[int] | None = None, step: int = 0) -> Feed:
        """One micro-batch as the graph's inputs. `numbers`: those of the rows, in training; without, no noise."""
        s, packed = self.settings, build_feed(rows)
        lengths = [len(row.tokens) for row in rows]
        inputs: dict[str, Any] = packed._asdict()
        width = self.weights.gguf.tensors[EMBEDDING].shape[-1]
        if s.dropout:
            calm = np.zeros(sum(lengths), np.int32)
            inputs["keys"] = dropout_keys(s.seed, step, numbers, lengths) if numbers else calm
        if s.neftune:
            still = np.zeros((sum(lengths), width), np.float32)
            inputs["noise"] = embedding_noise(s.seed, step, numbers, lengths, width, s.neftune) if numbers else still
        return self.inputs.feed(**inputs)

    def memory(self) -> dict[str, int]:
        """Bytes of the device by what they are for; what it reads or copies of the mapped base comes on top."""
        flat = self.layout.size * 4
        stats = [plan.stats for plan in (self.plan, self.scorer) if plan]
        return {
            "trained_weights": flat, "gradients": flat, "optimizer_state": (self.arrays - 1) * flat,
            "activations": sum(s.arena_bytes for s in stats), "scratch": sum(s.scratch_bytes for s in stats),
            "inputs": sum(s.input_bytes for s in stats), "decoded_weights": self.plan.stats.constant_bytes,
        }  # fmt: skip

    def planned_bytes(self) -> int:
        """All of it."""
        return sum(self.memory().values())

    def _taken_bytes(self) -> int:
        """That, and what the device copies of the base; the plan that validates reads nothing else."""
        return self.planned_bytes() + self.plan.stats.weight_bytes

    def _least_bytes(self) -> int:
        """What any plan takes: the base, the flat space, and for each token its inputs and a row of activations."""
        row = self.weights.gguf.tensors[EMBEDDING].shape[-1] * 2 + 16
        base = 0 if self.weights.device.info.in_place else self.weights.gguf.file_bytes
        return base + (self.arrays + 1) * self.layout.size * 4 + self.capacities[-1] * row

    def check_fits(self, feeds_bytes: int = 0) -> None:
        """DeviceError where what is planned, and feeds of so many bytes, are more than the device has."""
        self._check_fits(self._taken_bytes() + feeds_bytes)

    def _check_fits(self, needed: int) -> None:
        there = self.weights.device.info.memory_bytes
        if (there and needed > there) or self.capacities[-1] > MOST_TOKENS:
            way = "train LoRA pairs, without --full" if self.settings.full else "lower --rank"
            raise DeviceError(
                f"this run needs {needed / 2**30:.1f} GiB of memory and the device has {there / 2**30:.1f}: "
                f"lower --ctx, leave --checkpointing on, or {way}"
            )

    def snapshot(self, step: int, totals: Totals) -> Snapshot:
        """Everything that another process needs to go on."""
        return Snapshot(step, totals.to_json(), self.layout.size, [_pieces(b) for b in self.state])

    def restore(self, checkpoint: Checkpoint, arrays: int | None = None) -> None:
        """Takes a snapshot's place, or that of its first `arrays`. DataError for one of another run."""
        arrays = arrays or self.arrays
        if (checkpoint.size, checkpoint.arrays) != (self.layout.size, arrays):
            what = f"{checkpoint.arrays} times {checkpoint.size} numbers, where the run has {arrays} times"
            raise checkpoint.false(f"it holds {what} {self.layout.size}")
        for i in range(arrays):
            at = 0
            for piece in checkpoint.pieces(i):
                self.state[i].write(piece, at)
                at += piece.nbytes

    def close(self) -> None:
        """Frees everything but the weights."""
        self._close_plans()
        for buffer in (self.grads, *self.state):
            buffer.close()


def _pieces(buffer: Buffer) -> Iterator[F32Array]:
    for at in range(0, buffer.nbytes, _PIECE_BYTES):
        yield buffer.read(at, min(_PIECE_BYTES, buffer.nbytes - at))


class Batches:
    """The feeds of each step that one of several ranks runs; they follow from the settings and the rows alone."""

    def __init__(self, machine: Machine, rows: list[Example], rank: int = 0, ranks: int = 1) -> None:
        self.machine, self.rows, self.rank, self.ranks = machine, rows, rank, ranks
        self.per_epoch = steps_per_epoch(len(rows), machine.settings.batch)
        self.epoch, self.steps = -1, list[list[list[int]]]()

    def feeds(self, step: int) -> list[Feed]:
        """The micro-batches of a step, counted from 1."""
        epoch, within = divmod(step - 1, self.per_epoch)
        if self.epoch != epoch:
            s, lengths = self.machine.settings, [len(row.tokens) for row in self.rows]
            self.steps = plan_epoch(
                lengths, batch=s.batch, capacity=self.machine.capacity, accumulate=s.accumulate, pack=s.pack,
                shuffle=s.shuffle, seed=s.seed, epoch=epoch, rank=self.rank, ranks=self.ranks,
            )  # fmt: skip
            self.epoch = epoch
        return [self.machine.feed([self.rows[i] for i in micro], micro, step) for micro in self.steps[within]]


def time_a_step(machine: Machine, rows: list[Example]) -> tuple[int, float]:
    """Tokens and seconds of the first optimizer step, at rate 0, after a micro-batch that allocates and warms up."""
    feeds = Batches(machine, rows).feeds(1)
    machine.optimizer.t, began, progress = 1, 0.0, Progress()
    with ThreadPoolExecutor(1, "fabric-step") as worker:
        try:
            for part in (feeds[:1], feeds):
                began = time.perf_counter()
                worker.submit(machine.plan.step, part, machine.optimizer, progress).result()
        except BaseException:
            progress.cancel()
            raise
    return sum(feed.tokens for feed in feeds), time.perf_counter() - began


@dataclass(frozen=True)
class Spans:
    """How far a run goes: `ends` are the steps at which it ended, or was to end, and was told to go on, each with the
    steps that its schedule had until then; the last one is its end now."""

    ends: Sequence[tuple[int, int]]

    @property
    def last(self) -> int:
        """The last step."""
        return self.ends[-1][0]

    def total(self, step: int) -> int:
        """The steps of the schedule that a step belongs to."""
        return next((total for end, total in self.ends if step <= end), self.last)

    def ends_at(self, step: int) -> bool:
        """Whether the run ended there, or does."""
        return any(step == end == total for end, total in self.ends)


class Loop:
    """Runs the steps after `start` and leaves the trained parameters in the machine. `record` writes run.json, which
    must be there before any checkpoint: as soon as it can, or (True) after waiting for that; whether it is there."""

    def __init__(
        self, machine: Machine, train: list[Example], val: list[Example], directory: Path, ui: TrainUI, start: int,
        totals: Totals, spans: Spans, record: Callable[[bool], bool], ranks: Ranks,
    ) -> None:  # fmt: skip
        self.record = record
        self.machine, self.train, self.val, self.directory, self.ui = machine, train, val, directory, ui
        self.settings = machine.settings
        self.step, self.totals = start, totals
        self.saved, self.saved_at = start, time.monotonic()
        self.spans, self.last = spans, spans.last
        vocabulary = machine.weights.gguf.tensors[EMBEDDING].shape[0]
        self.guessing = math.log(vocabulary)  # the loss where any token is as likely as another
        self.batches = Batches(machine, train, ranks.rank, ranks.size)
        self.team = Team(ranks, machine, self.batches, val)
        self.per_epoch = self.batches.per_epoch

    def run(self, metrics: MetricsLog) -> None:
        """Until the last step, a stop, or a loss that is no number; or until validation loses patience. Between steps a
        request to stop breaks in anywhere, inside one it is asked for."""
        try:
            with ThreadPoolExecutor(1, "fabric-step") as worker:
                if (
                    self.val
                    and self.step
                    and self._due(self.settings.eval_every)
                    and self.totals.validated != self.step
                ):
                    with held():  # the run was stopped inside this validation
                        metrics.amend(self.step, val_loss=self._validate(worker))
                while self.step < self.last and not self._out_of_patience():
                    if self.ui.interrupted():
                        raise Interrupted
                    self._one(worker, metrics)
        except (Interrupted, Cancelled):
            with held():
                raise self._stopped() from None
        with held():
            self._checkpoint()
        if self.settings.patience:
            self._take_best()

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.totals.stale

    def _take_best(self) -> None:
        """The parameters of the best validation, for what is written at the end."""
        best, totals = read_checkpoint(self.directory / BEST), self.totals
        if best is None or best.step != totals.best_step:
            raise DataError(f"{self.directory / BEST} is damaged: train anew")
        self.machine.restore(best, 1)
        if self._out_of_patience():
            self.ui.message(
                f"stopped after step {self.step} of {self.last}: {totals.stale} validations were no better than "
                f"{totals.best_loss:.4f}, that of step {totals.best_step}, which is written"
            )

    def _one(self, worker: ThreadPoolExecutor, metrics: MetricsLog) -> None:
        """A step with its validation and checkpoint, and the record of it."""
        s, began = self.settings, time.perf_counter()
        feeds = self.batches.feeds(self.step + 1)
        self.record(False)
        with held():
            record = self._step(worker, feeds, began)
            try:
                if self._due(s.eval_every) and self.val:
                    record["val_loss"] = self._validate(worker)
            finally:
                metrics.write(record)
            self.ui.step({**record, "steps": self.last})
            totals, minutes = self.totals, (time.monotonic() - self.saved_at) / 60
            exploded = totals.smooth > max(self.guessing, WORSE * totals.lowest)
            if not exploded and (self._due(s.checkpoint_every) or 0 < s.checkpoint_minutes <= minutes):
                self._checkpoint()
        metrics.stream()
        if exploded:
            what = f"the loss rose from {totals.lowest:.3g} to {totals.smooth:.3g}"
            raise self._diverged(self.step, self.step, what)

    def _step(self, worker: ThreadPoolExecutor, feeds: list[Feed], began: float) -> dict[str, Any]:
        """An optimizer step; its metrics."""
        s, step = self.settings, self.step + 1
        optimizer = self.machine.optimizer
        optimizer.t, optimizer.lr = step, rate_of(s, step, self.spans)
        result, tokens, speeds = self.team.step(feeds, self._beside(worker))
        if not result.finite and step == 1:
            name = self.machine.weights.gguf.name
            raise DataError(f"{name}: the loss is not a number before any step; the model or an adapter is damaged")
        if not math.isfinite(result.loss_sum):  # already with the parameters of the step before
            raise self._diverged(step, self.step, "the loss is no longer a number")
        if not result.finite:
            self._checkpoint()
            raise self._diverged(step, step, "the gradient is no longer a number")
        self.step = step
        seconds = time.perf_counter() - began
        totals = self.totals
        totals.loss = result.loss_sum / result.trained
        totals.smooth = totals.loss if step == 1 else 0.9 * totals.smooth + 0.1 * totals.loss
        totals.lowest = min(totals.lowest, totals.smooth)
        totals.tokens += tokens
        totals.trained_tokens += result.trained
        totals.seconds += seconds
        each = {"rank_tokens_per_s": speeds} if len(speeds) > 1 else {}
        return {
            "step": step, "epoch": step / self.per_epoch, "loss": totals.loss, "lr": optimizer.lr,
            "grad_norm": result.grad_norm, "tokens": tokens, "trained_tokens": result.trained, "seconds": seconds,
            "tokens_per_s": tokens / seconds, "peak_bytes": peak_bytes(), **each,
        }  # fmt: skip

    def _diverged(self, step: int, before: int, what: str) -> DivergedError:
        """Names the newest checkpoint of a step `before` which the loss had not risen."""
        good = "no checkpoint before it is good"
        for path in checkpoints(self.directory):
            found = read_checkpoint(path)
            totals = found.checked_totals() if found and found.step < before else None
            if totals and totals.smooth <= 1.1 * totals.lowest:
                good = f"the last good checkpoint is {path}"
                break
        return DivergedError(f"step {step}: {what}; {good}; start again with a lower --lr")

    def _due(self, every: int) -> bool:
        """Every so many steps, or (0) at the end of each epoch; and always at the end."""
        return self.spans.ends_at(self.step) or self.step % (every or self.per_epoch) == 0

    def _beside(self, worker: ThreadPoolExecutor) -> Run:
        """Runs calls into the core in the worker, while this thread shows how far they are."""

        def run(call: Callable[[Progress], T]) -> T:
            progress = Progress()
            return self._wait(worker.submit(call, progress), progress)

        return run

    def _wait(self, future: Future[T], progress: Progress) -> T:
        """What a call into the core comes to. Cancelled where somebody asked to stop, unless it ended before that."""
        try:
            while True:
                if self.ui.interrupted():
                    progress.cancel()
                try:
                    return future.result(timeout=POLL_S)
                except FutureTimeout:
                    self.ui.progress(progress.fraction)
        except BaseException:
            progress.cancel()  # or the worker would go on
            raise

    def _stopped(self) -> StoppedError:
        """Checkpoints, and says how to go on."""
        if not self.step and not self.record(False):
            raise Interrupted  # nothing is lost, and what run.json needs may take long
        self._checkpoint()
        return StoppedError(
            f"stopped after step {self.step} of {self.last}; continue with: fabric resume {self.directory}"
        )

    def _validate(self, worker: ThreadPoolExecutor) -> float:
        """Mean loss a trained token over the validation rows; with patience, the best parameters are kept."""
        totals = self.totals
        loss = self.team.score(self._beside(worker))
        totals.val_loss, totals.validated, totals.stale = loss, self.step, totals.stale + 1
        if self.settings.patience and (totals.best_loss is None or loss < totals.best_loss):
            totals.best_loss, totals.best_step, totals.stale = loss, self.step, 0
            self.record(True)
            params = self.machine.snapshot(self.step, totals)
            write_snapshot(self.directory / BEST, params._replace(arrays=params.arrays[:1]))
        return loss

    def _checkpoint(self) -> None:
        if self.saved == self.step and self.step:
            return
        self.record(True)
        write_checkpoint(self.directory, self.machine.snapshot(self.step, self.totals), self.settings.keep)
        self.saved, self.saved_at = self.step, time.monotonic()


def rate_of(settings: TrainSettings, step: int, spans: Spans) -> float:
    """The learning rate of a step."""
    s = settings
    return learning_rate(step, spans.total(step), s.lr, s.schedule, s.warmup_ratio, s.warmup_steps, s.lr_min)
