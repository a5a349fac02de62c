"""quantize: a GGUF model with its matrices encoded in another block format, by the conventions of llama.cpp."""

from __future__ import annotations

from fabric.weights.settings import Progress, QuantizeSettings, WriteResult


def type_names() -> list[str]:
    """The values of `--type`, lower case: f32, f16, bf16, q8_0 ..."""
    raise NotImplementedError


def quantize(settings: QuantizeSettings, progress: Progress | None = None) -> WriteResult:
    """Encode the matrices of a model; norms, biases and other vectors stay as they are.

    Raises DataError (a cut file, values that the type cannot hold), MissingInputError, OutputError, UsageError.
    """
    raise NotImplementedError
