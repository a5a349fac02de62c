"""One file an architecture, named as GGUF names it, written as graph-building code over a Recorder.

An architecture module has two functions: `read_config(gguf) -> Config` and
`build(recorder, config) -> Tensor`, the normed hidden states (T, width) that the head reads. `MODULES` names its linear
layers where they are not the usual ones, `USUAL` the groups of those that train where nobody says which, and
`inert(gguf)` the tensors that it has no use for.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from fabric.errors import DataError

if TYPE_CHECKING:
    from fabric.weights.gguf import GGUF

MODULES = {"attn": ("attn_q", "attn_k", "attn_v", "attn_output"), "ffn": ("ffn_gate", "ffn_up", "ffn_down")}
"""Linear layers of a block by group, of an architecture whose file does not say otherwise in a MODULES of its own."""

PLUMBING = {"config", "inference", "keys", "recorder", "states"}


def architectures() -> list[str]:
    """Those that can be trained: the files of this folder, less its plumbing."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in PLUMBING)


def architecture_of(gguf: GGUF) -> ModuleType:
    """The module for a model's architecture; DataError when there is none, and for an adapter."""
    from fabric.weights.rewrite import check_kind

    check_kind(gguf)
    name = gguf.architecture
    if name not in architectures():
        raise DataError(
            f"{gguf.path}: architecture '{name}' is not supported; use one of: {', '.join(architectures())}"
        )
    return importlib.import_module(f"fabric.models.{name}")


def inert_of(gguf: GGUF) -> set[str]:
    """Tensors that files of a model's architecture may hold and that nothing computes with."""
    find = getattr(architecture_of(gguf), "inert", None)
    return find(gguf) if find else set()


def modules_of(gguf: GGUF) -> dict[str, tuple[str, ...]]:
    """Linear layers of a model's blocks by group: what LoRA pairs can stand beside."""
    return dict(getattr(architecture_of(gguf), "MODULES", MODULES))


def usual_modules_of(gguf: GGUF) -> tuple[str, ...]:
    """Groups of them that pairs stand beside where nobody says which: the architecture's USUAL, or all."""
    return tuple(getattr(architecture_of(gguf), "USUAL", modules_of(gguf)))
