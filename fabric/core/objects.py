"""One Python object a handle of `native/include/fabric.h`, closed by its owner, or freed with it (`handles.py`).

Shapes are (rows, cols). A failure of the core becomes a DeviceError (memory, device, limits), or a FabricError where it
is our own mistake. The lock of the interpreter is released while the core works.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.core._native import ffi, lib
from fabric.core.cuda import nccl, nvrtc
from fabric.core.handles import Turns, check, closed, error
from fabric.core.sycl import find_sycl
from fabric.errors import DataError

Tensor = int
F32, BF16, I32 = lib.FB_F32, lib.FB_BF16, lib.FB_I32
TOKENS, TRAINED = lib.FB_ROWS_TOKENS, lib.FB_ROWS_TRAINED
FROZEN, PARAM, STATE = lib.FB_FROZEN, lib.FB_PARAM, lib.FB_STATE
SILU, GELU_TANH, RELU2 = lib.FB_SILU, lib.FB_GELU_TANH, lib.FB_RELU2
BILINEAR, SIGMOID = lib.FB_BILINEAR, lib.FB_SIGMOID
PAIRS, HALVES = lib.FB_ROPE_PAIRS, lib.FB_ROPE_HALVES
PEAKS = {"f32": lib.FB_PEAK_F32, "bf16": lib.FB_PEAK_BF16, "read": lib.FB_PEAK_READ}
F32Array = npt.NDArray[np.float32]


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
    in_place: bool
    decode_pays: bool
    memory_bytes: int
    max_binding_bytes: int
    max_allocation_bytes: int
    max_reduction: int
    driver: str
    workgroup_bytes: int
    workgroup_threads: int
    workgroups: int
    software: bool = False


def _info(c: Any) -> DeviceInfo:
    def text(field: Any) -> str:
        return str(ffi.string(field).decode("utf-8", "replace"))

    return DeviceInfo(
        text(c.backend), text(c.name), text(c.isa), c.cores, c.threads, bool(c.bf16),
        bool(c.own_memory), bool(c.in_place), bool(c.decode_pays),
        c.memory_bytes, c.max_binding_bytes, c.max_allocation_bytes, c.max_reduction,
        text(c.driver), c.workgroup_bytes, c.workgroup_threads, c.workgroups,
        bool(c.software),
    )  # fmt: skip


def missing_devices() -> list[str]:
    """A sentence for every kind of device that is not here; of SYCL, once find_sycl has looked."""
    found: list[str] = []
    while (text := lib.fb_device_missing(len(found))) != ffi.NULL:
        found.append(str(ffi.string(text).decode("utf-8", "replace")))
    return found


def devices() -> list[DeviceInfo]:
    """Every device that could be opened here; those of SYCL, once find_sycl has looked."""
    return [describe_device(index) for index in range(lib.fb_device_count())]


def describe_device(index: int) -> DeviceInfo:
    """One of them; the processor is number 0, and no driver is asked for it. DeviceError beyond the last one."""
    info = ffi.new("fb_device_info *")
    check(lib.fb_device_describe(index, info))
    return _info(info)


def peak_bytes() -> int:
    """The most memory this process ever had resident, mapped file pages included; 0 where the system does not say."""
    return int(lib.fb_peak_bytes())


def _path(path: Path | None) -> Any:
    return ffi.new("char[]", os.fsencode(path)) if path else ffi.NULL


class Device:
    """An open device. `isa` lowers what the processor offers; built kernels are kept in files whose names begin with
    `cache`; `toolkit` is the CUDA toolkit to use, `oneapi` the folder of the oneAPI compiler; `limits` are further
    fields of fb_device_options, by name: those that lower what the driver says, and those that shape and pace the
    work."""

    def __init__(
        self, name: str = "cpu", threads: int = 0, isa: str | None = None, profile: bool = False,
        cache: Path | None = None, toolkit: Path | None = None, oneapi: Path | None = None, **limits: float,
    ) -> None:  # fmt: skip
        options = ffi.new("fb_device_options *")
        isa_text = ffi.new("char[]", isa.encode()) if isa else ffi.NULL
        options.threads, options.isa, options.profile = threads, isa_text, int(profile)
        for field, value in limits.items():
            setattr(options, field, value)
        cache_text = ffi.new("char[]", os.fsencode(cache)) if cache else ffi.NULL
        options.cache_path = cache_text
        if name.startswith("sycl"):
            find_sycl(cache, oneapi)
        compiler = _path(nvrtc(toolkit) if name.startswith("cuda") else None)
        options.compiler_path = compiler
        if cache and name != "cpu":
            with contextlib.suppress(OSError):
                cache.parent.mkdir(parents=True, exist_ok=True)
        self.turns = Turns()
        self.toolkit = toolkit
        self.c = self.turns.owned(lib.fb_device_open(os.fsencode(name), options), lib.fb_device_close)

    @property
    def info(self) -> DeviceInfo:
        """What was opened."""
        info = ffi.new("fb_device_info *")
        check(lib.fb_device_get_info(self.c, info))
        return _info(info)

    def peak(self, kind: str, seconds: float = 0.3) -> float:
        """Measured operations/s (`f32`, `bf16`) or bytes/s (`read`)."""
        value = ffi.new("double *")
        with self.turns:
            check(lib.fb_device_peak(self.c, PEAKS[kind], seconds, value))
        return float(value[0])

    def card(self) -> str:
        """A name of the device that is the same in every process; empty where it has none."""
        name = ffi.new("char[]", lib.FB_CARD)
        with self.turns:
            check(lib.fb_device_card(self.c, name))
        return str(ffi.string(name).decode())

    def peers_id(self, make: bool = True) -> bytes:
        """What one process makes, for all to join by (FB_PEERS_ID bytes). Without `make`, DeviceError is all that it
        can come to: where the library for it is not there."""
        made = ffi.new("char[]", lib.FB_PEERS_ID) if make else ffi.NULL
        backend = ffi.new("char[]", self.info.backend.encode())
        check(lib.fb_peers_id(backend, _path(nccl(self.toolkit)), made))
        return bytes(ffi.buffer(made)) if make else b""

    def join(self, peers_id: bytes, rank: int, size: int) -> None:
        """The devices of `size` processes from then on add up by themselves: Buffer.sum, Plan.sum."""
        with self.turns:
            check(lib.fb_device_join(self.c, _path(nccl(self.toolkit)), peers_id, rank, size))

    def summed(self) -> bool:
        """Whether all sums that were begun are done."""
        done = ffi.new("int32_t *")
        with self.turns:
            check(lib.fb_device_summed(self.c, done))
        return bool(done[0])

    def leave(self) -> None:
        """Leaves the others at once."""
        with self.turns:
            lib.fb_device_leave(self.c)

    def close(self) -> None:
        """Nothing more can be made on the device; it is given back once its buffers, graphs and plans are gone too."""
        self.c = closed(self.c)


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
        self.turns = device.turns
        keep = ffi.from_buffer(wrap) if wrap is not None else None
        n_bytes = n_bytes if keep is None else len(keep)
        most = device.info.max_allocation_bytes
        at = seams(most) if seams is not None and n_bytes > most else np.empty(0, np.uint64)
        told = ffi.from_buffer("uint64_t *", at) if len(at) else ffi.NULL
        with self.turns:
            if keep is None:
                made = lib.fb_buffer_new(device.c, n_bytes, told, len(at))
            else:
                made = lib.fb_buffer_wrap(device.c, keep, n_bytes, told, len(at))
            self.c = self.turns.owned(made, lib.fb_buffer_free, device.c, keep)
        self.nbytes = n_bytes

    def write(self, array: npt.NDArray[Any], offset: int = 0) -> None:
        """Copies a contiguous array to byte `offset`."""
        with self.turns:
            check(lib.fb_buffer_write(self.c, offset, ffi.from_buffer(array), array.nbytes))

    def read(self, offset: int = 0, n_bytes: int | None = None) -> F32Array:
        """Floats from byte `offset` on."""
        return self.read_into(np.empty((self.nbytes - offset if n_bytes is None else n_bytes) // 4, np.float32), offset)

    def read_into(self, out: F32Array, offset: int = 0) -> F32Array:
        """Fills a contiguous array from byte `offset` on, and returns it."""
        with self.turns:
            check(lib.fb_buffer_read(self.c, offset, ffi.from_buffer(out, require_writable=True), out.nbytes))
        return out

    def sum(self, mean: bool = False) -> None:
        """Begins to replace it by the sum, or mean, over the devices that joined (`Device.summed`)."""
        with self.turns:
            check(lib.fb_buffer_sum(self.c, int(mean)))

    def in_place(self) -> bool:
        """Whether the device reads the caller's memory itself, not a copy."""
        return bool(lib.fb_buffer_in_place(self.c))

    def close(self) -> None:
        """Frees the memory, or lets go of the caller's."""
        self.c = closed(self.c)


class Lora(NamedTuple):
    """A LoRA pair beside a linear layer: a (r, K), b (N, r), both tensors of the graph; `keys` (T, 1) of dropout."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0
    keys: Tensor = -1


NO_LORA = Lora(-1, -1, 0.0)


class Routing(NamedTuple):
    """What tokens chose of a mixture of experts: tensors of the graph, and how many experts there are and are used."""

    weights: Tensor
    order: Tensor
    experts: int
    used: int


class Graph:
    """Records a forward pass. Ops are those of fabric.h, by the same names, and return tensors. `source`: the file
    that shapes come from, to be named in the DataError of an op that they do not fit."""

    def __init__(self, device: Device, tokens: int, trained: int, precision: int, source: str = "the graph") -> None:
        self.source = source
        self.device, self.tokens, self.trained, self.precision = device, tokens, trained, precision
        with device.turns:
            made = lib.fb_graph_new(device.c, tokens, trained, precision)
            self.c = device.turns.owned(made, lib.fb_graph_free, device.c)
        self.inputs: list[tuple[Tensor, int, int]] = []
        self.needed = [device.c]  # handles that plans of the graph keep alive

    def _tensor(self, t: int) -> Tensor:
        if t < 0:
            raise DataError(f"{self.source}: its shapes and sizes do not fit together: {error()}")
        return t

    def leaf(self, kind: int, buffer: Buffer, offset: int, dtype: int, rows: int, cols: int) -> Tensor:
        """A matrix of a buffer: FROZEN, PARAM or STATE."""
        self.needed.append(buffer.c)
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
        check(lib.fb_keep(self.c, t))
        return t

    def embed(self, weight: Tensor, ids: Tensor, scale: float = 1.0, parts: int = 1, part: int = 0) -> Tensor:
        """(T, D) = scale * weight[ids * parts + part]."""
        return self._tensor(lib.fb_embed(self.c, weight, ids, scale, parts, part))

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

    def conv(self, x: Tensor, weight: Tensor, keys: Tensor, bias: Tensor = -1) -> Tensor:
        """Each column of x (S, D) with its row of weight (D, L), over the last L keys that a query sees."""
        return self._tensor(lib.fb_conv(self.c, x, weight, bias, keys))

    def delta_gates(self, b: Tensor, a: Tensor, rate: Tensor, keys: Tensor) -> Tensor:
        """What tokens write to a delta net's state by, and what they fade it by."""
        return self._tensor(lib.fb_delta_gates(self.c, b, a, rate, keys))

    def delta(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, key_heads: int, cache: Tensor = -1, at: Tensor = -1
    ) -> Tensor:
        """The gated delta rule; `cache` and `at`: states of sequences, and those that a row begins from and leaves."""
        return self._tensor(lib.fb_delta(self.c, q, k, v, gates, key_heads, cache, at))

    def part(self, x: Tensor, head_dim: int, first: int, width: int) -> Tensor:
        """Columns first .. first + width of each `head_dim` of x."""
        return self._tensor(lib.fb_part(self.c, x, head_dim, first, width))

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

    def route(
        self, x: Tensor, weight: Tensor, used: int, bias: Tensor = -1, lora: Lora = NO_LORA, load: Tensor = -1
    ) -> Routing:
        """The experts of the `used` largest logits x weight^T, and the softmax of those; `load` (1, experts) counts."""
        out = ffi.new("fb_routing *")
        code = lib.fb_route(self.c, x, weight, bias, lora, used, load, out)
        self._tensor(-code)
        return Routing(out.weights, out.order, out.experts, out.used)

    def experts(self, x: Tensor, weight: Tensor, routing: Routing, bias: Tensor = -1, lora: Lora = NO_LORA) -> Tensor:
        """(T, used * N): a linear layer of each expert, weight (experts * N, K); x (T, K) or (T, used * K)."""
        return self._tensor(lib.fb_experts(self.c, x, weight, bias, lora, routing))

    def combine(self, x: Tensor, routing: Routing, residual: Tensor) -> Tensor:
        """residual + the weighted sum of the slots of a token."""
        return self._tensor(lib.fb_combine(self.c, x, routing, residual))

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
        self.c = closed(self.c)
