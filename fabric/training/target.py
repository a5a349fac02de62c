"""What a run trains and what becomes of it: LoRA pairs that become an adapter, or whole weights that become a model.
The loop knows neither; both are slots of the flat parameters, and both are written as a stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from fabric.core import Buffer
from fabric.errors import UsageError
from fabric.models.recorder import Weights
from fabric.training.parameters import (
    F32Array,
    Layout,
    Slot,
    Start,
    adapter_layout,
    drawn,
    full_layout,
    lora_layout,
    of_adapter,
    of_base,
)
from fabric.training.settings import TrainSettings
from fabric.weights.adapter import Adapter, LoraPair, check_adapter, other_base, read_adapter, write_adapter
from fabric.weights.chat import Chat
from fabric.weights.formats import FORMATS, encodable, is_block_format, type_name
from fabric.weights.gguf import GGUF, TensorInfo
from fabric.weights.history import Step, join_histories, read_history
from fabric.weights.merge import KEEP
from fabric.weights.mix import choose_type, parse_mix
from fabric.weights.rewrite import Rewrite, check_model, is_matrix, write_model


@dataclass(frozen=True)
class Target:
    """`layout` trains from `start` on; `write(out, params, made, chat)` writes the file whose last step is `made`, with
    the chat template that its rows were rendered with. `chat`: that of the adapter it starts from.
    """

    kind: str  # "adapter" or "model"
    layout: Layout
    alpha: float
    start: Start
    notes: list[str]
    write: Callable[[BinaryIO, Buffer, Step, Chat], int]
    chat: Chat = field(default_factory=dict)


def target_of(settings: TrainSettings, weights: Weights) -> Target:
    """What the settings ask for, checked against the base. Raises DataError, UsageError."""
    return _model(settings, weights) if settings.full else _adapter(settings, weights.gguf)


def _adapter(settings: TrainSettings, gguf: GGUF) -> Target:
    notes: list[str] = []
    carried: Chat = {}
    if settings.adapter:
        first = read_adapter(settings.adapter)
        check_adapter(first, gguf)
        notes += other_base(first, gguf, settings.adapter)
        layout, alpha, start, earlier = adapter_layout(gguf, first), first.alpha, of_adapter(first), first.history
        carried = first.chat
    else:
        layout, alpha = lora_layout(gguf, settings.modules, settings.rank), settings.alpha
        if settings.rslora:  # readers of the file divide by the rank
            alpha *= math.sqrt(settings.rank)
        start, earlier = drawn(settings.seed), []

    def write(out: BinaryIO, params: Buffer, made: Step, chat: Chat) -> int:
        history = join_histories(read_history(gguf), earlier, [made])
        arrays = {slot.name: _matrices(params, slot) for slot in layout.slots}
        names = [slot.name.removesuffix(".lora_a") for slot in layout.slots[::2]]
        pairs = {name: LoraPair(arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"]) for name in names}
        made_adapter = Adapter(gguf.architecture, alpha, pairs, "", gguf.sha256(), history, chat)
        return write_adapter(out, made_adapter)

    return Target("adapter", layout, alpha, start, notes, write, carried)


def _model(settings: TrainSettings, weights: Weights) -> Target:
    gguf = weights.gguf
    check_model(gguf)
    layout = full_layout(weights)
    if settings.type == KEEP:
        file_type: int | None = gguf.get("general.file_type", int, 0)
    else:
        file_type = parse_mix(settings.type).file_type if settings.type else None
    slots = {slot.name: slot for slot in layout.slots}
    types = {name: written_type(gguf, info, settings.type, name in slots) for name, info in gguf.tensors.items()}

    def write(out: BinaryIO, params: Buffer, made: Step, chat: Chat) -> int:
        lock = threading.Lock()  # rows are encoded by several threads, but a device is read by one at a time

        def trained(slot: Slot) -> Callable[[int, int], F32Array]:
            def rows(first: int, last: int) -> F32Array:
                with lock:
                    return _rows(params, slot, first, last)

            return rows

        rewrites = [
            Rewrite(info, types[name][0], values=trained(slots[name]) if name in slots else None)
            for name, info in gguf.tensors.items()
        ]
        history = [*read_history(gguf), made]
        return write_model(out, gguf, rewrites, file_type, history, settings.threads, None, chat)

    notes = [f"{name}: {type_name(type)}, because {why}" for name, (type, why) in types.items() if why]
    return Target("model", layout, 0.0, of_base(gguf), notes, write)


def written_type(gguf: GGUF, info: TensorInfo, wanted: str | None, trained: bool) -> tuple[int, str | None]:
    """The type a tensor gets in the trained model, and why where it is not the one asked for.

    Unless told: a matrix in a block format becomes BF16, so that quantizing happens once and knowingly, and all others
    keep their type. Vectors always keep theirs. UsageError for a type that cannot be written.
    """
    if is_matrix(info) and wanted is not None and wanted != KEEP:
        return choose_type(gguf, info, parse_mix(wanted))
    if is_matrix(info) and wanted is None and trained and is_block_format(info.type):
        return choose_type(gguf, info, parse_mix("bf16"))
    if trained and FORMATS[info.type] not in encodable():
        raise UsageError(f"{info.name} is {info.type_name}, which cannot be written; choose another --type than keep")
    return info.type, None


def _matrices(params: Buffer, slot: Slot) -> F32Array:
    """A whole slot; that of experts (experts, rows, cols)."""
    rows = _rows(params, slot, 0, slot.rows)
    return rows if slot.experts == 1 else rows.reshape(slot.experts, -1, slot.cols)


def _rows(params: Buffer, slot: Slot, first: int, last: int) -> F32Array:
    at, n_bytes = (slot.first + first * slot.cols) * 4, (last - first) * slot.cols * 4
    return np.reshape(params.read(at, n_bytes), (last - first, slot.cols))
