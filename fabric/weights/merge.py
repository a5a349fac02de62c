"""merge: a base model and adapters become one stock GGUF model, streamed tensor by tensor."""

from __future__ import annotations

from fabric.weights.settings import MergeSettings, Progress, WriteResult


def merge(settings: MergeSettings, progress: Progress | None = None) -> WriteResult:
    """Write base + scale * alpha / rank * (B A) for every adapter.

    Raises DataError (cut or foreign files), MissingInputError, OutputError, UsageError (two `-` inputs, binary to a
    terminal).
    """
    raise NotImplementedError
