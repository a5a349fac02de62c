"""Plans: a graph made ready to run, its feeds, its optimizer, and what comes back.

Leans on `objects.py`; the lock of the interpreter is released while the core works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric import interrupts
from fabric.core._native import ffi, lib
from fabric.core.handles import check, closed, there
from fabric.core.objects import I32, Buffer, F32Array, Graph, Tensor


class Feed(NamedTuple):
    """One micro-batch: rows in use, and one array an input of the graph, in order."""

    tokens: int
    trained: int
    inputs: Sequence[npt.NDArray[Any]]


class Progress:
    """How far a running call is; safe to read, and to cancel, from another thread."""

    def __init__(self) -> None:
        self.c = ffi.new("fb_progress *")

    @property
    def fraction(self) -> float:
        """0 .. 1."""
        return float(min(1.0, self.c.done / self.c.total)) if self.c.total else 0.0

    def cancel(self) -> None:
        """The running call soon raises Cancelled."""
        self.c.cancel = 1


class Range(NamedTuple):
    """Elements of the flat parameters, from `first` on, with their own learning rate and decay."""

    first: int
    n: int
    lr_scale: float = 1.0
    decay_scale: float = 1.0


@dataclass
class Optimizer:
    """AdamW (m and v) or SGD over the flat parameters; `lr` and `t` change from step to step."""

    m: Buffer | None
    v: Buffer | None
    ranges: Sequence[Range]
    kind: str = "adamw"
    lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip: float = 0.0
    t: int = 0

    def as_c(self) -> tuple[Any, Any]:
        """The C structure, and what it points to."""
        ranges = ffi.new("fb_range[]", [tuple(r) for r in self.ranges])
        values = {name: getattr(self, name) for name in
                  ("lr", "beta1", "beta2", "eps", "weight_decay", "momentum", "clip", "t")}  # fmt: skip
        values["kind"] = {"adamw": lib.FB_ADAMW, "sgd": lib.FB_SGD}[self.kind]
        values["m"] = self.m.c if self.m else ffi.NULL
        values["v"] = self.v.c if self.v else ffi.NULL
        return ffi.new("fb_optimizer *", {**values, "ranges": ranges, "n_ranges": len(self.ranges)}), ranges


class StepResult(NamedTuple):
    """Sums of a step; `finite` False: something was NaN or infinite, and nothing was updated."""

    loss_sum: float
    trained: int
    grad_norm: float
    finite: bool

    @classmethod
    def of(cls, c: Any) -> StepResult:
        """From the C structure."""
        return cls(c.loss_sum, c.trained, c.grad_norm, bool(c.finite))


class PlanStats(NamedTuple):
    """What a plan needs and does; bytes of the device, operations of products."""

    arena_bytes: int
    scratch_bytes: int
    input_bytes: int
    allocated_bytes: int
    constant_bytes: int
    weight_bytes: int
    launches: int
    tiled: int
    flops_per_token: float
    flops_per_trained: float


class Tiling(NamedTuple):
    """An op that was cut into `tiles` because an operand (rows, cols) is too large: its `bytes` are more than the
    `limit` of a "binding" or an "allocation", or its rows more than one launch sums ("reduction"). `of`: "activation",
    or the "weight" or "gradient" of the leaf `tensor`."""

    op: str
    of: str
    tensor: Tensor
    rows: int
    cols: int
    bytes: int
    limit: int
    which: str
    tiles: int


class Plan:
    """A graph made ready to run; with `grads`, its backward pass too. With `decode` its products read frozen weights
    decoded to 16 bits, once."""

    def __init__(
        self,
        graph: Graph,
        params: Buffer | None = None,
        grads: Buffer | None = None,
        checkpoint: bool = True,
        logits_bytes: int = 0,
        decode: bool = False,
    ) -> None:
        options = ffi.new("fb_plan_options *")
        options.decode = int(decode)
        options.train, options.checkpoint, options.logits_bytes = int(grads is not None), int(checkpoint), logits_bytes
        flat = [buffer.c if buffer else ffi.NULL for buffer in (params, grads)]
        options.params, options.grads = flat
        self.kinds = [(dtype, cols) for _, dtype, cols in graph.inputs]
        self.trained_bytes = grads.nbytes if grads else 0
        self.turns = graph.device.turns
        with self.turns:
            made = lib.fb_plan_new(graph.c, options)
            self.c = self.turns.owned(made, lib.fb_plan_free, *graph.needed, *flat)

    @property
    def stats(self) -> PlanStats:
        """Sizes and counts."""
        c = ffi.new("fb_plan_stats *")
        check(lib.fb_plan_get_stats(self.c, c))
        return PlanStats(*(getattr(c, name) for name in PlanStats._fields))

    def tilings(self) -> list[Tiling]:
        """The ops that were cut, in the order in which they run."""
        count = lib.fb_plan_tilings(self.c, ffi.NULL, 0)
        rows = ffi.new("fb_tiling[]", count)
        lib.fb_plan_tilings(self.c, rows, count)
        of = {lib.FB_OF_ACTIVATION: "activation", lib.FB_OF_WEIGHT: "weight", lib.FB_OF_GRADIENT: "gradient"}
        return [
            Tiling(ffi.string(r.op).decode(), of[r.what], r.tensor, r.rows, r.cols, r.bytes, r.limit,
                   ("binding", "allocation", "reduction")[r.limit_of], r.tiles)
            for r in rows
        ]  # fmt: skip

    def describe(self) -> str:
        """The launches, a line each."""
        return str(ffi.string(there(lib.fb_plan_describe(self.c))).decode())

    def op_stats(self) -> list[dict[str, Any]]:
        """Time, operations and bytes by op, for a device opened with `profile`."""
        rows = ffi.new("fb_op_stats[]", 64)
        names = ("launches", "seconds", "flops", "bytes")
        count = lib.fb_plan_op_stats(self.c, rows, 64)
        return [{"op": ffi.string(r.name).decode(), **{n: getattr(r, n) for n in names}} for r in rows[0:count]]

    def _feeds(self, feeds: Sequence[Feed]) -> tuple[Any, list[Any]]:
        alive: list[Any] = []
        c = ffi.new("fb_feed[]", len(feeds))
        for i, feed in enumerate(feeds):
            arrays = [
                np.ascontiguousarray(array, np.int32 if dtype == I32 else np.float32)
                for (dtype, _), array in zip(self.kinds, feed.inputs, strict=True)
            ]
            pointers = [ffi.from_buffer(data) if data.size else ffi.NULL for data in arrays]
            inputs, sizes = ffi.new("void *[]", pointers), ffi.new("uint64_t[]", [data.nbytes for data in arrays])
            alive += [arrays, pointers, inputs, sizes]
            c[i].tokens, c[i].trained, c[i].n_inputs = feed.tokens, feed.trained, len(arrays)
            c[i].inputs, c[i].bytes = inputs, sizes
        return c, alive

    def run(self, feed: Feed, progress: Progress | None = None) -> None:
        """One feed, forward; in a training plan backward too, its gradients added to those already there."""
        c, alive = self._feeds([feed])
        progress = progress or Progress()
        with self.turns, interrupts.cancelled_by(progress.cancel):
            check(lib.fb_plan_run(self.c, c, progress.c))
        del alive

    def read(self, t: Tensor, rows: int, cols: int, first: int = 0) -> F32Array:
        """(rows, cols) of a kept tensor."""
        out = np.empty((rows, cols), np.float32)
        if out.size:
            room = ffi.from_buffer("float *", out, require_writable=True)
            with self.turns:
                check(lib.fb_plan_read(self.c, t, first, rows, room, out.nbytes))
        return out

    def step(self, feeds: Sequence[Feed], optimizer: Optimizer, progress: Progress | None = None) -> StepResult:
        """A whole optimizer step over all feeds."""
        c, alive = self._feeds(feeds)
        settings, ranges = optimizer.as_c()
        result = ffi.new("fb_result *")
        progress = progress or Progress()
        with self.turns, interrupts.cancelled_by(progress.cancel):
            check(lib.fb_plan_step(self.c, c, len(feeds), settings, result, progress.c))
        del alive, ranges
        return StepResult.of(result)

    def accumulate(self, feeds: Sequence[Feed], progress: Progress | None = None, sum: bool = False) -> None:
        """The first part of a step: the gradients of all feeds, and the sums. With `sum` those that are final begin to
        be added up over the devices that joined."""
        c, alive = self._feeds(feeds)
        progress = progress or Progress()
        with self.turns, interrupts.cancelled_by(progress.cancel):
            check(lib.fb_plan_accumulate(self.c, c, len(feeds), int(sum), progress.c))
        del alive

    def sum(self, more: Buffer) -> None:
        """Begins to add up what is left of the gradients, and `more` (`Device.summed`)."""
        with self.turns:
            check(lib.fb_plan_sum(self.c, more.c))

    def sums(self) -> F32Array:
        """Losses and trained tokens, which `accumulate` leaves: over devices they add up, as gradients do."""
        out = np.empty(lib.FB_RECORD_SUMS, np.float32)
        with self.turns:
            record = there(lib.fb_plan_record(self.c))
            check(lib.fb_buffer_read(record, 0, ffi.from_buffer(out, require_writable=True), out.nbytes))
        return out

    def set_sums(self, sums: F32Array) -> None:
        """Their totals over all devices, for `update`."""
        with self.turns:
            record = there(lib.fb_plan_record(self.c))
            check(lib.fb_buffer_write(record, 0, ffi.from_buffer(sums), 4 * lib.FB_RECORD_SUMS))

    def update(self, optimizer: Optimizer, progress: Progress | None = None) -> StepResult:
        """The second part: divides the gradients by the trained tokens of the sums, clips and updates."""
        settings, ranges = optimizer.as_c()
        result = ffi.new("fb_result *")
        with self.turns:
            check(lib.fb_plan_update(self.c, settings, result, progress.c if progress else ffi.NULL))
        del ranges
        return StepResult.of(result)

    def close(self) -> None:
        """Frees the plan's memory."""
        self.c = closed(self.c)
