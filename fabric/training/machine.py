"""The machine: a model's plans, parameters and optimizer on a device, and the micro-batches that it is fed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fabric.core import Buffer, Device, Feed, Optimizer, Plan, Progress
from fabric.data.pack import build_feed, plan_epoch
from fabric.errors import DeviceError
from fabric.models import architecture_of
from fabric.models.inference import pick_precision
from fabric.models.recorder import EMBEDDING, Recorder, Weights
from fabric.text.encode import Example
from fabric.training.checkpoint import Checkpoint, Snapshot, Totals
from fabric.training.noise import dropout_keys, embedding_noise
from fabric.training.parameters import F32Array, Layout
from fabric.training.samples import Samples
from fabric.training.settings import RunSettings

MOST_TOKENS = (1 << 31) - 1  # of a micro-batch
_PIECE_BYTES = 1 << 22


def steps_per_epoch(rows: int, batch: int) -> int:
    """The last batch may be smaller."""
    return -(-rows // batch)


def capacities(settings: RunSettings, *lengths: list[int]) -> list[int]:
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

    settings: RunSettings
    weights: Weights
    layout: Layout
    alpha: float
    capacities: list[int]
    samples: Samples | None = None
    arrays: int = field(init=False)

    def __post_init__(self) -> None:
        device: Device = self.weights.device
        s = self.settings
        self.precision = pick_precision(device, s.precision)
        self.arrays = 3 if s.optimizer == "adamw" else 1
        self._check_fits(self._least_bytes(), "at least ")
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
            alpha=self.alpha, dropout=s.dropout, noise=s.neftune > 0, context=s.ctx, counted=True,
        )  # fmt: skip
        self.nll = recorder.loss(arch.build(recorder, arch.read_config(self.weights.gguf)))
        recorder.check()
        self.names = {tensor: name for name, tensor in recorder.leaves.items()}
        self.inputs = recorder.inputs
        self.load, self.routers = recorder.load, recorder.routers
        self.plan = Plan(recorder.graph, self.params, self.grads, checkpoint=checkpointing, decode=decode)
        self.scorer = Plan(recorder.graph, decode=decode) if s.val else None
        self.decoder, self.samples_bytes = None, 0
        if self.samples:
            sources = self.layout.sources(self.params)
            self.decoder = self.samples.decoder(self.weights, self.precision, sources, self.alpha, decode, s.ctx)
            self.samples_bytes = self.decoder.plan_all()
        self.weights_kept = kept if self.plan.stats.constant_bytes else "blocks"  # where nothing is to be decoded
        recorder.graph.close()

    def _close_plans(self) -> None:
        for plan in (self.plan, self.scorer, self.decoder):
            if plan is not None:
                plan.close()
        if self.load:
            self.load.close()

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

    def forget_load(self) -> None:
        """What comes is counted anew."""
        if self.load:
            self.load.write(np.zeros(self.load.nbytes // 4, np.float32))

    def expert_load(self) -> dict[str, float]:
        """Of a mixture of experts, how evenly they were chosen since then: `load_balance`, experts times the sum of the
        squares of their shares, 1 where all have the same, in the mean of all layers; and `busiest_expert`, how many
        times an even share it had, of all layers."""
        if not self.load:
            return {}
        counts = self.load.read().reshape(self.routers, -1).astype(np.float64)
        shares = counts * counts.shape[1] / counts.sum(1, keepdims=True)
        return {"load_balance": float(np.square(shares).mean()), "busiest_expert": float(shares.max())}

    def memory(self) -> dict[str, int]:
        """Bytes of the device by what they are for; what it reads or copies of the mapped base comes on top."""
        flat = self.layout.size * 4
        stats = [plan.stats for plan in (self.plan, self.scorer) if plan]
        return {
            "trained_weights": flat, "gradients": flat, "optimizer_state": (self.arrays - 1) * flat,
            "activations": sum(s.arena_bytes for s in stats), "scratch": sum(s.scratch_bytes for s in stats),
            "inputs": sum(s.input_bytes for s in stats), "decoded_weights": self.plan.stats.constant_bytes,
            **({"samples": self.samples_bytes} if self.decoder else {}),
        }  # fmt: skip

    def planned_bytes(self) -> int:
        """All of it."""
        return sum(self.memory().values())

    def _taken_bytes(self) -> int:
        """That, and what the device copies of the base; the plan that validates reads nothing else."""
        return self.planned_bytes() + self.plan.stats.weight_bytes

    def _least_bytes(self) -> int:
        """What any plan takes: the base, the flat space, and for each token its inputs and the input of each block."""
        gguf = self.weights.gguf
        blocks = len({name.split(".")[1] for name in gguf.tensors if name.startswith("blk.")})
        row = gguf.tensors[EMBEDDING].shape[-1] * 2 * blocks + 16
        base = 0 if self.weights.device.info.in_place else gguf.file_bytes
        return base + (self.arrays + 1) * self.layout.size * 4 + self.capacities[-1] * row

    def check_fits(self, feeds_bytes: int = 0) -> None:
        """DeviceError where what is planned, and feeds of so many bytes, are more than the device has."""
        self._check_fits(self._taken_bytes() + feeds_bytes)

    def _check_fits(self, needed: int, bound: str = "") -> None:
        there = self.weights.device.info.memory_bytes
        if (there and needed > there) or self.capacities[-1] > MOST_TOKENS:
            way = "train LoRA pairs, without --full" if self.settings.full else "lower --rank"
            raise DeviceError(
                f"this run needs {bound}{needed / 2**30:.1f} GiB of memory and the device has {there / 2**30:.1f}: "
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

    speeds: tuple[int, ...]

    def __init__(self, machine: Machine, rows: list[Example], rank: int = 0, ranks: int = 1) -> None:
        self.machine, self.rows, self.rank, self.ranks = machine, rows, rank, ranks
        self.per_epoch = steps_per_epoch(len(rows), machine.settings.batch)
        self.epoch, self.speeds, self.steps = -1, (), list[list[list[int]]]()

    def feeds(self, step: int, speeds: tuple[int, ...] = ()) -> list[Feed]:
        """The micro-batches of a step, counted from 1. `speeds`: of the ranks."""
        epoch, within = divmod(step - 1, self.per_epoch)
        if (self.epoch, self.speeds) != (epoch, speeds):
            s, lengths = self.machine.settings, [len(row.tokens) for row in self.rows]
            self.steps = plan_epoch(
                lengths, batch=s.batch, capacity=self.machine.capacity, accumulate=s.accumulate, pack=s.pack,
                shuffle=s.shuffle, seed=s.seed, epoch=epoch, rank=self.rank, ranks=self.ranks,
                speeds=speeds,
            )  # fmt: skip
            self.epoch, self.speeds = epoch, speeds
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
