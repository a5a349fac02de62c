"""One file an architecture, named as GGUF names it, written as graph-building code over a Recorder.

An architecture module has two functions: `read_config(gguf) -> Config` and
`build(recorder, config) -> Tensor`, the normed hidden states (T, width) that the head reads.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from fabric.errors import DataError

if TYPE_CHECKING:
    from fabric.weights.gguf import GGUF

PLUMBING = {"config", "inference", "keys", "recorder"}


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
