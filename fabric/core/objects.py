"""One Python object a handle of `native/include/fabric.h`, closed by its owner.

Shapes are (rows, cols). A failure of the core becomes a DeviceError (memory, device, limits), or a FabricError where it
is our own mistake. The lock of the interpreter is released while the core works.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric import interrupts, paths
from fabric.core._native import ffi, lib
from fabric.errors import DataError, DeviceError, FabricError

Tensor = int
F32, BF16, I32 = lib.FB_F32, lib.FB_BF16, lib.FB_I32
TOKENS, TRAINED = lib.FB_ROWS_TOKENS, lib.FB_ROWS_TRAINED
FROZEN, PARAM, STATE = lib.FB_FROZEN, lib.FB_PARAM, lib.FB_STATE
SILU, GELU_TANH = lib.FB_SILU, lib.FB_GELU_TANH
PAIRS, HALVES = lib.FB_ROPE_PAIRS, lib.FB_ROPE_HALVES
PEAKS = {"f32": lib.FB_PEAK_F32, "bf16": lib.FB_PEAK_BF16, "read": lib.FB_PEAK_READ}
F32Array = npt.NDArray[np.float32]


class Cancelled(FabricError):
    """A run stopped because its progress was told to cancel."""


def _error() -> str:
    return str(ffi.string(lib.fb_error()).decode("utf-8", "replace"))


def _check(code: int) -> None:
    if code == lib.FB_OK:
        return
    if code == lib.FB_E_CANCELLED:
        raise Cancelled(_error())
    if code in (lib.FB_E_MEMORY, lib.FB_E_DEVICE, lib.FB_E_LIMIT):
        raise DeviceError(_error())
    raise FabricError(_error())


def _handle(pointer: Any) -> Any:
    if pointer == ffi.NULL:
        raise DeviceError(_error())
    return pointer


class DeviceInfo(NamedTuple):
    """What a device is, in bytes of the device. Where there is no such limit, those of bindings and allocations are
    2^64 - 1 and the others are 0."""

    backend: str
    name: str
    isa: str
    cores: int
    threads: int
    bf16: bool
    own_memory: bool
    memory_bytes: int
    max_binding_bytes: int
    max_allocation_bytes: int
    max_reduction: int
    driver: str
    workgroup_bytes: int
    workgroup_threads: int
    workgroups: int


def _info(c: Any) -> DeviceInfo:
    def text(field: Any) -> str:
        return str(ffi.string(field).decode("utf-8", "replace"))

    return DeviceInfo(
        text(c.backend), text(c.name), text(c.isa), c.cores, c.threads, bool(c.bf16),
        bool(c.own_memory), c.memory_bytes, c.max_binding_bytes, c.max_allocation_bytes, c.max_reduction,
        text(c.driver), c.workgroup_bytes, c.workgroup_threads, c.workgroups,
    )  # fmt: skip


def missing_devices() -> list[str]:
    """A sentence for every kind of device that is not here."""
    found: list[str] = []
    while (text := lib.fb_device_missing(len(found))) != ffi.NULL:
        found.append(str(ffi.string(text).decode("utf-8", "replace")))
    return found


def devices() -> list[DeviceInfo]:
    """Every device that could be opened here."""
    return [describe_device(index) for index in range(lib.fb_device_count())]


def describe_device(index: int) -> DeviceInfo:
    """One of them; the processor is number 0, and no driver is asked for it. DeviceError beyond the last one."""
    info = ffi.new("fb_device_info *")
    _check(lib.fb_device_describe(index, info))
    return _info(info)


class Device:
    """An open device. `isa` lowers what the processor offers; `limits` are further fields of fb_device_options, by
    name: those that lower what the driver says, and those that shape and pace the work."""

    def __init__(
        self, name: str = "cpu", threads: int = 0, isa: str | None = None, profile: bool = False, **limits: float
    ) -> None:
        options = ffi.new("fb_device_options *")
        isa_text = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        options.threads, options.isa, options.profile = threads, isa_text, int(profile)
        for field, value in limits.items():
            setattr(options, field, value)
        cache = ffi.new("char[]", os.fsencode(paths.kernel_cache)) if paths.kernel_cache else ffi.NULL
        options.cache_path = cache
        if paths.kernel_cache and name != "cpu":
            with contextlib.suppress(OSError):
                paths.kernel_cache.parent.mkdir(parents=True, exist_ok=True)
        self.c = _handle(lib.fb_device_open(os.fsencode(name), options))

    @property
    def info(self) -> DeviceInfo:
        """What was opened."""
        info = ffi.new("fb_device_info *")
        _check(lib.fb_device_get_info(self.c, info))
        return _info(info)

    def peak(self, kind: str, seconds: float = 0.3) -> float:
        """Measured operations/s (`f32`, `bf16`) or bytes/s (`read`)."""
        value = ffi.new("double *")
        _check(lib.fb_device_peak(self.c, PEAKS[kind], seconds, value))
        return float(value[0])

    def close(self) -> None:
        """Buffers and plans of the device must be closed before."""
        lib.fb_device_close(self.c)
        self.c = ffi.NULL


class Buffer:
    """Memory of a device: zeroed, or (wrap) read-only memory of the caller, which is kept alive. Where it is
    larger than one allocation it is parted at some of the `seams`, offsets in ascending order that it asks for by the
    device's largest allocation."""

    def __init__(
        self,
        device: Device,
        n_bytes: int = 0,
        wrap: Any = None,
        seams: Callable[[int], npt.NDArray[np.uint64]] | None = None,
    ) -> None:
        self.keep = ffi.from_buffer(wrap) if wrap is not None else None
        n_bytes = n_bytes if self.keep is None else len(self.keep)
        most = device.info.max_allocation_bytes
        at = seams(most) if seams is not None and n_bytes > most else np.empty(0, np.uint64)
        told = ffi.from_buffer("uint64_t *", at) if len(at) else ffi.NULL
        if self.keep is None:
            self.c = _handle(lib.fb_buffer_new(device.c, n_bytes, told, len(at)))
        else:
            self.c = _handle(lib.fb_buffer_wrap(device.c, self.keep, n_bytes, told, len(at)))
        self.nbytes = n_bytes

    def write(self, array: npt.NDArray[Any], offset: int = 0) -> None:
        """Copies a contiguous array to byte `offset`."""
        _check(lib.fb_buffer_write(self.c, offset, ffi.from_buffer(array), array.nbytes))

    def read(self, offset: int = 0, n_bytes: int | None = None) -> F32Array:
        """Floats from byte `offset` on."""
        out = np.empty((self.nbytes - offset if n_bytes is None else n_bytes) // 4, np.float32)
        _check(lib.fb_buffer_read(self.c, offset, ffi.from_buffer(out, require_writable=True), out.nbytes))
        return out

    def close(self) -> None:
        """Frees the memory, or lets go of the caller's."""
        lib.fb_buffer_free(self.c)
        self.c, self.keep = ffi.NULL, None


class Lora(NamedTuple):
    """A LoRA pair beside a linear layer: a (r, K), b (N, r), both tensors of the graph; `keys` (T, 1) of dropout."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0
    keys: Tensor = -1


NO_LORA = Lora(-1, -1, 0.0)


class Graph:
    """Records a forward pass. Ops are those of fabric.h, by the same names, and return tensors. `source`: the file
    that shapes come from, to be named in the DataError of an op that they do not fit."""

    def __init__(self, device: Device, tokens: int, trained: int, precision: int, source: str = "the graph") -> None:
        self.source = source
        self.device, self.tokens, self.trained, self.precision = device, tokens, trained, precision
        self.c = _handle(lib.fb_graph_new(device.c, tokens, trained, precision))
        self.inputs: list[tuple[Tensor, int, int]] = []

    def _tensor(self, t: int) -> Tensor:
        if t < 0:
            raise DataError(f"{self.source}: its shapes and sizes do not fit together: {_error()}")
        return t

    def leaf(self, kind: int, buffer: Buffer, offset: int, dtype: int, rows: int, cols: int) -> Tensor:
        """A matrix of a buffer: FROZEN, PARAM or STATE."""
        return self._tensor(lib.fb_leaf(self.c, kind, buffer.c, offset, dtype, rows, cols))

    def input(self, dtype: int, rows: int, cols: int = 1) -> Tensor:
        """Data of each feed, in the order of these calls."""
        t = self._tensor(lib.fb_input(self.c, dtype, rows, cols))
        self.inputs.append((t, dtype, cols))
        return t

    def mark(self) -> None:
        """The next block begins: the unit of activation checkpointing."""
        lib.fb_mark(self.c)

    def keep(self, t: Tensor) -> Tensor:
        """Makes a tensor readable after a run."""
        _check(lib.fb_keep(self.c, t))
        return t

    def embed(self, weight: Tensor, ids: Tensor, scale: float = 1.0) -> Tensor:
        """(T, D) = scale * weight[ids]."""
        return self._tensor(lib.fb_embed(self.c, weight, ids, scale))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Over groups as wide as the weight: whole rows, or heads."""
        return self._tensor(lib.fb_rms_norm(self.c, x, weight, eps))

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor = -1, lora: Lora = NO_LORA, residual: Tensor = -1
    ) -> Tensor:
        """(T, N) = x W^T + bias + lora + residual."""
        return self._tensor(lib.fb_linear(self.c, x, weight, bias, lora, residual))

    def rope_table(self, positions: Tensor, inv_freq: Tensor, magnitude: float = 1.0) -> Tensor:
        """Cosines and sines of positions, shared by all layers."""
        return self._tensor(lib.fb_rope_table(self.c, positions, inv_freq, magnitude))

    def rope(self, x: Tensor, table: Tensor, head_dim: int, layout: int) -> Tensor:
        """Rotary position embedding of each head."""
        return self._tensor(lib.fb_rope(self.c, x, table, head_dim, layout))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, *, n_head: int, n_kv_head: int, head_dim: int,
        scale: float, window: int = 0, softcap: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Query t sees keys[t, 0] <= s < keys[t, 1]."""
        shape = {"n_head": n_head, "n_kv_head": n_kv_head, "head_dim": head_dim, "window": window, "scale": scale,
                 "softcap": softcap}  # fmt: skip
        return self._tensor(lib.fb_attention(self.c, q, k, v, keys, shape))

    def append(self, cache: Tensor, x: Tensor, slots: Tensor) -> Tensor:
        """cache[slots[t]] = x[t]."""
        return self._tensor(lib.fb_append(self.c, cache, x, slots))

    def glu(self, gate: Tensor, up: Tensor, kind: int) -> Tensor:
        """act(gate) * up."""
        return self._tensor(lib.fb_glu(self.c, gate, up, kind))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b."""
        return self._tensor(lib.fb_add(self.c, a, b))

    def scale(self, x: Tensor, scale: float) -> Tensor:
        """scale * x."""
        return self._tensor(lib.fb_scale(self.c, x, scale))

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap)."""
        return self._tensor(lib.fb_softcap(self.c, x, cap))

    def gather(self, x: Tensor, index: Tensor) -> Tensor:
        """x[index]."""
        return self._tensor(lib.fb_gather(self.c, x, index))

    def logits(self, x: Tensor, weight: Tensor, index: Tensor, lora: Lora = NO_LORA, softcap: float = 0.0) -> Tensor:
        """Logits (len(index), V) in F32, readable after the run."""
        return self._tensor(lib.fb_logits(self.c, x, weight, lora, index, softcap))

    def loss(
        self, x: Tensor, weight: Tensor, index: Tensor, targets: Tensor, lora: Lora = NO_LORA, softcap: float = 0.0
    ) -> Tensor:
        """Negative log likelihoods (trained, 1) of the targets at the trained positions."""
        return self._tensor(lib.fb_loss(self.c, x, weight, lora, index, targets, softcap))

    def close(self) -> None:
        """Frees the recording; plans made from it live on."""
        lib.fb_graph_free(self.c)
        self.c = ffi.NULL


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


class PlanStats(NamedTuple):
    """What a plan needs and does; bytes of the device, operations of products."""

    arena_bytes: int
    scratch_bytes: int
    input_bytes: int
    allocated_bytes: int
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
    """A graph made ready to run; with `train`, its backward pass too."""

    def __init__(
        self,
        graph: Graph,
        params: Buffer | None = None,
        grads: Buffer | None = None,
        checkpoint: bool = True,
        logits_bytes: int = 0,
    ) -> None:
        options = ffi.new("fb_plan_options *")
        options.train, options.checkpoint, options.logits_bytes = int(grads is not None), int(checkpoint), logits_bytes
        options.params = params.c if params else ffi.NULL
        options.grads = grads.c if grads else ffi.NULL
        self.kinds = [(dtype, cols) for _, dtype, cols in graph.inputs]
        self.c = _handle(lib.fb_plan_new(graph.c, options))

    @property
    def stats(self) -> PlanStats:
        """Sizes and counts."""
        c = ffi.new("fb_plan_stats *")
        _check(lib.fb_plan_get_stats(self.c, c))
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
        return str(ffi.string(_handle(lib.fb_plan_describe(self.c))).decode())

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
        with interrupts.cancelled_by(progress.cancel):
            _check(lib.fb_plan_run(self.c, c, progress.c))
        del alive

    def read(self, t: Tensor, rows: int, cols: int, first: int = 0) -> F32Array:
        """(rows, cols) of a kept tensor."""
        out = np.empty((rows, cols), np.float32)
        if out.size:
            room = ffi.from_buffer("float *", out, require_writable=True)
            _check(lib.fb_plan_read(self.c, t, first, rows, room, out.nbytes))
        return out

    def step(self, feeds: Sequence[Feed], optimizer: Optimizer, progress: Progress | None = None) -> StepResult:
        """A whole optimizer step over all feeds."""
        c, alive = self._feeds(feeds)
        settings, ranges = optimizer.as_c()
        result = ffi.new("fb_result *")
        progress = progress or Progress()
        with interrupts.cancelled_by(progress.cancel):
            _check(lib.fb_plan_step(self.c, c, len(feeds), settings, result, progress.c))
        del alive, ranges
        return StepResult(result.loss_sum, result.trained, result.grad_norm, bool(result.finite))

    def close(self) -> None:
        """Frees the plan's memory."""
        lib.fb_plan_free(self.c)
        self.c = ffi.NULL
