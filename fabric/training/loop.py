"""The loop: optimizer steps over packed rows, with validation, checkpoints and metrics. One run from start or from a
checkpoint; `run.py` sets it up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fabric.core import Cancelled, Feed, Progress, peak_bytes
from fabric.distributed.ranks import Ranks
from fabric.errors import DataError, DivergedError, StoppedError
from fabric.interrupts import Interrupted, held
from fabric.models.recorder import EMBEDDING
from fabric.runs.directory import BEST
from fabric.system import quoted
from fabric.training.checkpoint import (
    Totals,
    checkpoints,
    read_checkpoint,
    write_checkpoint,
    write_snapshot,
)
from fabric.training.dealing import Dealing
from fabric.training.follow import Enlisted
from fabric.training.machine import Batches, Machine, steps_per_epoch
from fabric.training.metrics import MetricsLog
from fabric.training.rows import Rows
from fabric.training.samples import SampleLog
from fabric.training.schedule import learning_rate
from fabric.training.settings import RunSettings, TrainUI
from fabric.training.team import POLL_S, Run, Team

T = TypeVar("T")
WORSE = 1.5  # times its lowest: such a loss, if it is above that of guessing too, has exploded


def total_steps(settings: RunSettings, rows: int) -> int:
    """`steps`, or `epochs` rounded up to whole steps."""
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * steps_per_epoch(rows, settings.batch) - 1e-9))


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
        self, machine: Machine, rows: Rows, directory: Path, ui: TrainUI, start: int,
        totals: Totals, spans: Spans, record: Callable[[bool], bool], ranks: Ranks, enlisted: Enlisted,
    ) -> None:  # fmt: skip
        self.record = record
        self.machine, self.rows, self.directory, self.ui = machine, rows, directory, ui
        self.settings = machine.settings
        self.step, self.totals = start, totals
        self.saved, self.saved_at = start, time.monotonic()
        self.spans, self.last = spans, spans.last
        vocabulary = machine.weights.gguf.tensors[EMBEDDING].shape[0]
        self.guessing = math.log(vocabulary)  # the loss where any token is as likely as another
        self.batches = Batches(machine, rows.train, ranks.rank, ranks.size)
        self.team = Team(ranks, machine, self.batches, rows.val, enlisted.cards)
        self.dealing = Dealing(enlisted.devices, self.settings.rank_shares, totals.shares)
        self.per_epoch = self.batches.per_epoch
        self.samples = SampleLog(directory, start) if rows.samples else None

    def run(self, metrics: MetricsLog) -> None:
        """Until the last step, a stop, or a loss that is no number; or until validation loses patience. Between steps a
        request to stop breaks in anywhere, inside one it is asked for."""
        try:
            with ThreadPoolExecutor(1, "fabric-step") as worker:
                if (
                    self.rows.val
                    and self.step
                    and self._due(self.settings.eval_every)
                    and self.totals.validated != self.step
                ):
                    with held():  # the run was stopped inside this validation
                        metrics.amend(self.step, val_loss=self._validate(worker))
                self._sample()
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
        feeds = self.batches.feeds(self.step + 1, self.dealing.speeds)
        self.record(False)
        with held():
            record = self._step(worker, feeds, began)
            self.ui.step(record)
            try:
                if self._due(s.eval_every) and self.rows.val:
                    record["val_loss"] = self._validate(worker)
            finally:
                metrics.write(record)
            totals, minutes = self.totals, (time.monotonic() - self.saved_at) / 60
            exploded = totals.smooth > max(self.guessing, WORSE * totals.lowest)
            if not exploded and (self._due(s.checkpoint_every) or 0 < s.checkpoint_minutes <= minutes):
                self._checkpoint()
        metrics.stream()
        if exploded:
            what = f"the loss rose from {totals.lowest:.3g} to {totals.smooth:.3g}"
            raise self._diverged(self.step, self.step, what)
        self._sample()

    def _step(self, worker: ThreadPoolExecutor, feeds: list[Feed], began: float) -> dict[str, Any]:
        """An optimizer step; its metrics."""
        s, step = self.settings, self.step + 1
        optimizer = self.machine.optimizer
        optimizer.t, optimizer.lr = step, rate_of(s, step, self.spans)
        self.machine.forget_load()
        result, tokens, speeds = self.team.step(feeds, self._beside(worker, "step"))
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
        if sentence := self.dealing.saw(speeds):
            self.ui.message(sentence)
        totals.shares = self.dealing.kept
        return {
            "step": step, "epoch": step / self.per_epoch, "loss": totals.loss, "lr": optimizer.lr,
            "grad_norm": result.grad_norm, "tokens": tokens, "trained_tokens": result.trained, "seconds": seconds,
            "tokens_per_s": tokens / seconds, "peak_bytes": peak_bytes(), **each,
            **self.machine.expert_load(),
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

    def _beside(self, worker: ThreadPoolExecutor, what: str) -> Run:
        """Runs calls into the core in the worker, while this thread shows how far they are."""

        def run(call: Callable[[Progress], T], n: int = 0, calls: int = 1) -> T:
            progress = Progress()
            future = worker.submit(call, progress)
            return self._wait(future, progress, lambda: self.ui.progress(what, (n + progress.fraction) / calls))

        return run

    def _wait(self, future: Future[T], progress: Progress, show: Callable[[], None]) -> T:
        """What a call into the core comes to. Cancelled where somebody asked to stop, unless it ended before that."""
        try:
            while True:
                if self.ui.interrupted():
                    progress.cancel()
                try:
                    return future.result(timeout=POLL_S)
                except FutureTimeout:
                    show()
        except BaseException:
            progress.cancel()  # or the worker would go on
            raise

    def _stopped(self) -> StoppedError:
        """Checkpoints, and says how to go on."""
        if not self.step and not self.record(False):
            raise Interrupted  # nothing is lost, and what run.json needs may take long
        self._checkpoint()
        return StoppedError(
            f"stopped after step {self.step} of {self.last}; continue with: fabric resume {quoted(self.directory)}"
        )

    def _validate(self, worker: ThreadPoolExecutor) -> float:
        """Mean loss a trained token over the validation rows; with patience, the best parameters are kept."""
        totals = self.totals
        self.team.settle()
        self.ui.progress("validation", 0.0)
        loss = self.team.score(self._beside(worker, "validation"))
        totals.val_loss, totals.validated, totals.stale = loss, self.step, totals.stale + 1
        if totals.best_loss is None or loss < totals.best_loss:
            totals.best_loss, totals.best_step, totals.stale = loss, self.step, 0
            if self.settings.patience:
                self.record(True)
                params = self.machine.snapshot(self.step, totals)
                write_snapshot(self.directory / BEST, params._replace(arrays=params.arrays[:1]))
        self.ui.validated(
            {"step": self.step, "val_loss": loss, "best_loss": totals.best_loss, "best_step": totals.best_step}
        )
        return loss

    def _sample(self) -> None:
        """Answers the samples, where that is due and not done. A request to stop breaks in, and nothing is written."""
        samples, decoder = self.rows.samples, self.machine.decoder
        if samples is None or decoder is None or self.samples is None:
            return
        if self.samples.step == self.step or not self._due(self.settings.sample_every):
            return

        def show(fraction: float) -> None:
            if self.ui.interrupted():
                raise Interrupted
            self.ui.progress("samples", fraction)

        found = samples.answers(decoder, self.step, show)
        with held():
            self.samples.write(found)
        self.ui.sampled(found)

    def _checkpoint(self) -> None:
        if self.saved == self.step and self.step:
            return
        self.record(True)
        self.team.settle()
        write_checkpoint(self.directory, self.machine.snapshot(self.step, self.totals), self.settings.keep)
        self.saved, self.saved_at = self.step, time.monotonic()


def rate_of(settings: RunSettings, step: int, spans: Spans) -> float:
    """The learning rate of a step."""
    s = settings
    return learning_rate(step, spans.total(step), s.lr, s.schedule, s.warmup_ratio, s.warmup_steps, s.lr_min)
