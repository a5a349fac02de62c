"""LoRA adapters as stock llama.cpp reads them: for a base tensor W (N, K) the tensors W.lora_a (r, K) and W.lora_b
(N, r), added as scale * B A with scale = alpha / r; for experts W (E, N, K), one pair each. Read, write, and check
against a base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fabric.core.blocks import Floats
from fabric.errors import DataError
from fabric.fields import named
from fabric.notices import notice
from fabric.weights.chat import CHAT_TEMPLATE, Chat, chat_in
from fabric.weights.formats import F32
from fabric.weights.gguf import GGUF, TensorSpec, decode_tensor, write_gguf
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import Step, encode_history, read_history

BASE_SHA256 = "fabric.base.sha256"
_A, _B = ".lora_a", ".lora_b"
_SETTINGS = "adapter."
_KNOWN = ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name")  # the last one is a name, no more


@dataclass(frozen=True)
class LoraPair:
    """One low-rank change: a (r, K), b (N, r), float32; of experts (E, r, K) and (E, N, r)."""

    a: Floats
    b: Floats

    @property
    def rank(self) -> int:
        """The r between them."""
        return int(self.a.shape[-2])

    def change(self, first: int, last: int) -> Floats:
        """Rows of B A; those of experts one after the other."""
        b, rows = self.b.reshape(-1, self.rank), self.b.shape[-2]
        a, parts = self.a.reshape(-1, self.rank, self.a.shape[-1]), []
        while first < last:
            end = min(last, (first // rows + 1) * rows)
            # einsum, not a BLAS product: its sums run in one order whatever the number of threads
            parts.append(np.einsum("nr,rk->nk", b[first:end], a[first // rows]))
            first = end
        return np.concatenate(parts)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter; `pairs` by name of the base tensor ("blk.0.attn_q.weight")."""

    architecture: str
    alpha: float
    pairs: Mapping[str, LoraPair]
    name: str = ""
    base_sha256: str | None = None
    history: list[Step] = field(default_factory=list)
    chat: Chat = field(default_factory=dict)
    """Metadata of the chat template that it was trained with, and of the tokens that end answers."""

    @property
    def rank(self) -> int:
        """The rank of the pairs, the largest where they differ."""
        return max(pair.rank for pair in self.pairs.values())

    def scale(self, tensor: str) -> float:
        """Return what B A is multiplied by: alpha / rank, and 1 where alpha is 0, as llama.cpp has it."""
        return self.alpha / self.pairs[tensor].rank if self.alpha else 1.0


def read_adapter(source: str | Path) -> Adapter:
    """Read an adapter of any tensor type from a file or `-`. Raises DataError, MissingInputError, UsageError."""
    with GGUF.open(source) as gguf:
        return adapter_of(gguf)


def adapter_of(gguf: GGUF) -> Adapter:
    """Read the adapter in an open file; its arrays do not refer to the file. Raises DataError."""
    if gguf.get("general.type", str, "model") != "adapter" or gguf.get("adapter.type", str, "lora") != "lora":
        is_model = gguf.get("general.type", str, "model") == "model"
        what = "but a model: it goes after -m, and an adapter after -a" if is_model else "of a kind that is known"
        raise DataError(f"{gguf.name}: not a LoRA adapter {what}")
    if "adapter.alora.invocation_tokens" in gguf.metadata:
        raise DataError(f"{gguf.name}: an activated LoRA, which acts after certain tokens only, is not supported")
    alpha = gguf.get("adapter.lora.alpha", float, 0.0)
    if not np.isfinite(alpha):
        raise DataError(f"{gguf.name}: adapter.lora.alpha is {alpha}")
    others = sorted(key for key in gguf.metadata if key.startswith(_SETTINGS) and key not in _KNOWN)
    others += sorted(key for key in gguf.metadata if key.startswith(f"{gguf.architecture}."))
    if others:
        count = f"{len(others)} metadata keys are" if len(others) > 1 else "1 metadata key is"
        notice(f"{gguf.name}: {count} not used: {named(others)}")
    return Adapter(
        architecture=gguf.architecture,
        alpha=alpha,
        pairs=_read_pairs(gguf),
        name=gguf.get("general.name", str, ""),
        base_sha256=gguf.get(BASE_SHA256, str, "") or None,
        history=read_history(gguf),
        chat=chat_in(gguf.metadata),
    )


def write_adapter(out: BinaryIO, adapter: Adapter) -> int:
    """Write an adapter in float32 that stock llama.cpp loads; return its size in bytes. `out` may be a pipe."""
    metadata: dict[str, object] = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(adapter.alpha),
    }
    if adapter.name:
        metadata["general.name"] = adapter.name
    if adapter.base_sha256:
        metadata[BASE_SHA256] = adapter.base_sha256
    metadata |= adapter.chat
    if adapter.history:
        metadata[HISTORY] = encode_history(adapter.history)
    arrays = {}
    for name, pair in adapter.pairs.items():
        arrays[name + _A] = np.ascontiguousarray(pair.a, "<f4")
        arrays[name + _B] = np.ascontiguousarray(pair.b, "<f4")
    specs = [TensorSpec(name, F32, array.shape) for name, array in arrays.items()]
    return write_gguf(out, metadata, specs, (array.data for array in arrays.values()))


def check_adapter(adapter: Adapter, base: GGUF, name: str = "the adapter") -> None:
    """Raise DataError when an adapter belongs to another base: architecture, tensor names or shapes differ."""
    if adapter.architecture != base.architecture:
        raise DataError(f"{name} is for {adapter.architecture} models, but {base.name} is a {base.architecture} model")
    for tensor, pair in adapter.pairs.items():
        if tensor not in base.tensors:
            hint = "; its output head is tied to token_embd.weight" if tensor == "output.weight" else ""
            raise DataError(f"{name} changes {tensor}, which {base.name} does not have{hint}")
        if tensor == "token_embd.weight":
            raise DataError(f"{name} changes token_embd.weight: adapters of the embedding are not supported")
        shape = (*pair.b.shape[:-1], pair.a.shape[-1])
        if base.tensors[tensor].shape != shape:
            theirs = " x ".join(map(str, base.tensors[tensor].shape))
            raise DataError(
                f"{name} is of another base: {tensor} is {theirs} in {base.name}, {' x '.join(map(str, shape))} here"
            )


def other_base(adapter: Adapter, base: GGUF, name: str) -> list[str]:
    """A sentence where an adapter that fits was trained beside another file; none where it does not tell which."""
    if adapter.base_sha256 in (None, base.sha256()):
        return []
    return [f"{name} was trained on another file than {base.name}: it helps only where both hold the same model"]


def carried_chat(names: Sequence[str], adapters: Sequence[Adapter], result: str) -> tuple[str, Chat]:
    """The last adapter that carries a chat template, and its template and end tokens; a notice where others differ."""
    carried = [(name, adapter.chat) for name, adapter in zip(names, adapters, strict=True) if adapter.chat]
    if not carried:
        return "", {}
    last, chat = carried[-1]
    others = [name for name, theirs in carried if theirs[CHAT_TEMPLATE] != chat[CHAT_TEMPLATE]]
    if others:
        notice(f"{result} has the chat template of {last}, not the one that {', '.join(others)} was trained with")
    return last, chat


def _read_pairs(gguf: GGUF) -> dict[str, LoraPair]:
    names = dict.fromkeys(name.removesuffix(_A).removesuffix(_B) for name in gguf.tensors)
    if not names:
        raise DataError(f"{gguf.name}: an adapter without tensors")
    for name in gguf.tensors:
        if not name.endswith((_A, _B)):
            raise DataError(f"{gguf.name}: the tensor {name} is neither {_A[1:]} nor {_B[1:]} of a LoRA pair")
    return {name: _read_pair(gguf, name) for name in names}


def _read_pair(gguf: GGUF, name: str) -> LoraPair:
    for part in (name + _A, name + _B):
        if part not in gguf.tensors:
            raise DataError(f"{gguf.name}: the LoRA pair of {name} lacks {part}")
    pair = LoraPair(decode_tensor(gguf, name + _A), decode_tensor(gguf, name + _B))
    fits = pair.a.ndim == pair.b.ndim and pair.a.ndim in (2, 3) and pair.a.shape[:-2] == pair.b.shape[:-2]
    if not fits or (name != "token_embd.weight" and pair.a.shape[-2] != pair.b.shape[-1]):
        raise DataError(
            f"{gguf.name}: lora_a {pair.a.shape} and lora_b {pair.b.shape} of {name} are not (r, K) and (N, r)"
        )
    if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
        raise DataError(f"{gguf.name}: the LoRA pair of {name} holds NaN or infinite values")
    return pair
