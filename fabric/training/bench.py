"""How fast a model trains here: tokens/s of whole optimizer steps, share of the measured peak, memory, time by op; and
how fast it decodes, one token at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from fabric.core import Device, Feed, Plan, peak_bytes
from fabric.devices.opening import opened
from fabric.models import architecture_of
from fabric.models.inference import Decoder
from fabric.models.recorder import Inputs, Weights
from fabric.settings import check
from fabric.training.machine import Machine
from fabric.training.parameters import drawn, fill, lora_layout
from fabric.training.settings import BenchSettings, RunSettings
from fabric.weights.gguf import GGUF, TensorInfo

TOKEN_BYTES, ROW_BYTES = 32, 1024  # of feeds, at most
DECODED = 48  # tokens of one sequence, of which the first third warms up


@dataclass(frozen=True)
class BenchReport:
    """Rates of the median step; `flops` are those of the plan's products, `nominal_flops` 4 a weight and token."""

    model: str
    device: str
    isa: str
    precision: str
    tokens: int
    step_s: float
    first_step_s: float
    tokens_per_s: float
    flops_per_s: float
    nominal_flops_per_s: float
    peak_flops_per_s: dict[str, float]
    read_bytes_per_s: float
    planned_bytes: int
    weights: str
    decoded_bytes: int
    uploaded_bytes: int
    peak_bytes: int
    model_bytes: int
    decode_token_s: float
    decode_bytes_per_s: float  # weights that multiply, read once a token
    ops: list[dict[str, Any]] = field(default_factory=list)
    decode_ops: list[dict[str, Any]] = field(default_factory=list)
    chosen: str | None = None  # where the device was chosen here: which, and why not those before it

    @property
    def share_of_peak(self) -> float:
        """Nominal operations over the measured peak of the precision that ran."""
        return self.nominal_flops_per_s / self.peak_flops_per_s[self.precision]

    def to_json(self) -> dict[str, Any]:
        """All fields and the share."""
        return {**asdict(self), "share_of_peak": self.share_of_peak}


@dataclass
class Steps:
    """Optimizer steps over the same random tokens, ready to run."""

    settings: BenchSettings  # with the device that was opened
    chosen: str | None  # where the device was chosen here: which
    device: Device
    machine: Machine
    feeds: list[Feed]
    nominal_flops: float  # of a step: 4 a weight that multiplies and token
    taken: int = 0

    @property
    def tokens(self) -> int:
        """Of a step."""
        return sum(feed.tokens for feed in self.feeds)

    def run(self) -> float:
        """One more step; its seconds."""
        began = time.perf_counter()
        self.taken += 1
        self.machine.optimizer.t = self.taken
        self.machine.plan.step(self.feeds, self.machine.optimizer)
        return time.perf_counter() - began


@contextlib.contextmanager
def steps_of(settings: BenchSettings, gguf: GGUF, profile: bool = False) -> Iterator[Steps]:
    """What `settings` ask for, on a device of its own. Raises UsageError, DataError or DeviceError."""
    check(settings)
    layout = lora_layout(gguf, settings.modules, settings.rank)
    at_once = min(settings.rows_at_once or settings.batch, settings.batch)

    @contextlib.contextmanager
    def planned(settings: BenchSettings, weights: Weights) -> Iterator[tuple[RunSettings, Machine]]:
        train = RunSettings(
            data="", model=settings.model, rank=settings.rank, precision=settings.precision, epochs=1, lr=1e-4,
            batch=settings.batch, ctx=settings.ctx, weights=settings.weights, checkpointing=settings.checkpointing,
        )  # fmt: skip
        with contextlib.closing(Machine(train, weights, layout, train.alpha, [at_once * settings.ctx])) as machine:
            machine.check_fits(settings.batch * (settings.ctx * TOKEN_BYTES + ROW_BYTES))
            yield train, machine

    with opened(settings, gguf, planned, timed=profile) as found:
        train, machine = found.made
        feeds = _feeds(settings, architecture_of(gguf).read_config(gguf).vocab_size, machine.inputs)
        fill(layout, machine.params, drawn(train.seed))
        machine.optimizer.lr = train.lr
        factors = sum(t.n_elements * share for t, share in _factors(gguf))
        flops = 4.0 * factors * settings.batch * settings.ctx
        yield Steps(found.settings, found.taken, found.weights.device, machine, feeds, flops)


def bench(settings: BenchSettings, progress: Callable[[int, int], None] | None = None) -> BenchReport:
    """Runs a warm-up and `steps` timed steps, then two more of which the second is timed by op."""
    with contextlib.ExitStack() as stack:
        gguf = GGUF.open(settings.model)
        architecture_of(gguf)
        stack.callback(gguf.close)
        times = []
        with steps_of(settings, gguf) as steps:
            settings, chosen = steps.settings, steps.chosen
            peaks = {kind: steps.device.peak(kind) for kind in ("f32", "bf16")}
            info, plan = steps.device.info, steps.machine.plan
            for step in range(settings.steps + 1):
                times.append(steps.run())
                if progress:
                    progress(step + 1, settings.steps + 3)
            stats, planned, precision = plan.stats, steps.machine.planned_bytes(), steps.machine.precision
            kept = steps.machine.weights_kept
            resident, nominal, tokens = peak_bytes(), steps.nominal_flops, steps.tokens
            trained = sum(feed.trained for feed in steps.feeds)
        with steps_of(settings, gguf, profile=True) as steps:
            ops = _by_op(steps.machine.plan, steps.run)
        step_s = median(times[1:])
        with _decoding(settings, precision, gguf) as (device, _, token):
            token_s = median([token(at) for at in range(DECODED)][DECODED // 3 :])
            read = device.peak("read")
        with _decoding(settings, precision, gguf, profile=True) as (_, plan, token):
            decode_ops = _by_op(plan, lambda: token(DECODED - 1))
        return BenchReport(
            model=gguf.name, device=info.name, isa=info.isa, precision=precision, tokens=tokens,
            step_s=step_s, first_step_s=times[0], tokens_per_s=tokens / step_s,
            flops_per_s=(stats.flops_per_token * tokens + stats.flops_per_trained * trained) / step_s,
            nominal_flops_per_s=nominal / step_s, peak_flops_per_s=peaks,
            read_bytes_per_s=read, planned_bytes=planned, weights=kept, decoded_bytes=stats.constant_bytes,
            uploaded_bytes=stats.weight_bytes, peak_bytes=resident,
            model_bytes=sum(t.nbytes for t in gguf.tensors.values()), decode_token_s=token_s,
            decode_bytes_per_s=sum(t.nbytes * share for t, share in _factors(gguf)) / token_s,
            ops=ops, decode_ops=decode_ops, chosen=chosen,
        )  # fmt: skip


def _by_op(plan: Plan, run: Callable[[], object]) -> list[dict[str, Any]]:
    """Times of the second run: in the first one, the system still finds the memory."""
    run()
    first = {op["op"]: op for op in plan.op_stats()}
    run()
    numbers = ("launches", "seconds", "flops", "bytes")
    ops = [{"op": op["op"], **{name: op[name] - first[op["op"]][name] for name in numbers}} for op in plan.op_stats()]
    return sorted(ops, key=lambda op: -op["seconds"])


@contextlib.contextmanager
def _decoding(
    settings: BenchSettings, precision: str, gguf: GGUF, profile: bool = False
) -> Iterator[tuple[Device, Plan, Callable[[int], float]]]:
    """A decoder of one sequence: its device, its plan, and what decodes the token at a position, in seconds."""
    vocab = architecture_of(gguf).read_config(gguf).vocab_size

    @contextlib.contextmanager
    def decoding(settings: BenchSettings, weights: Weights) -> Iterator[Decoder]:
        with contextlib.closing(Decoder(weights, DECODED, 1, 1, precision, context=DECODED)) as decoder:
            yield decoder

    with opened(settings, gguf, decoding, timed=profile) as found:
        decoder = found.made
        zero = np.zeros(1, np.int32)

        def token(at: int) -> float:
            began, slot = time.perf_counter(), np.array([at], np.int32)
            decoder.logits(slot * 7919 % vocab, slot, zero, slot + 1, slot, zero)
            return time.perf_counter() - began

        yield found.weights.device, decoder.plan, token


def _factors(gguf: GGUF) -> list[tuple[TensorInfo, float]]:
    """Matrices that multiply, and the share of them that a token meets, which of experts are those it has. The
    embedding is one only where it is the head too."""
    used = gguf.get(f"{gguf.architecture}.expert_used_count", int, 1)
    head = "token_embd.weight" if "output.weight" not in gguf.tensors else "output.weight"
    return [
        (t, used / t.shape[0] if len(t.shape) == 3 else 1.0) for name, t in gguf.tensors.items()
        if name.endswith(".weight") and len(t.shape) in (2, 3) and (name != "token_embd.weight" or name == head)
    ]  # fmt: skip


def _feeds(settings: BenchSettings, vocab: int, inputs: Inputs) -> list[Feed]:
    n, random = settings.ctx, np.random.default_rng(0)
    at_once = settings.rows_at_once or settings.batch
    feeds = []
    for first in range(0, settings.batch, at_once):
        rows = min(at_once, settings.batch - first)
        tokens = random.integers(0, vocab, (rows, n + 1), dtype=np.int32)
        at, start = np.tile(np.arange(n, dtype=np.int32), rows), np.repeat(np.arange(rows, dtype=np.int32) * n, n)
        index = np.flatnonzero((at + 1) % settings.trained_every == 0).astype(np.int32)
        targets = tokens[:, 1:].reshape(-1)[index]
        seen = np.stack((start, start + at + 1), axis=1)
        flat = np.ascontiguousarray(tokens[:, :-1]).reshape(-1)
        feeds.append(inputs.feed(tokens=flat, positions=at, seen=seen, index=index, targets=targets))
    return feeds
