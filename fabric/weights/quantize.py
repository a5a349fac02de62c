"""quantize: a GGUF model with its matrices encoded in another block format, by the conventions of llama.cpp."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from fabric.core.blocks import Floats
from fabric.errors import UsageError
from fabric.files import open_output
from fabric.weights.formats import Format
from fabric.weights.gguf import GGUF, TensorInfo
from fabric.weights.history import read_history, step
from fabric.weights.mix import choose_type, parse_mix, parse_type
from fabric.weights.rewrite import Rewrite, check_model, is_matrix, result_of, write_model
from fabric.weights.settings import Progress, QuantizeSettings, WriteResult

# Weights of the squared error of each column of a matrix, by its name; None where nothing is known of it.
Importance = Callable[[str], Floats | None]


def quantize(
    settings: QuantizeSettings,
    progress: Progress | None = None,
    importance_in: Callable[[GGUF], Importance] | None = None,
) -> WriteResult:
    """Encode the matrices of a model; norms, biases and other vectors stay as they are, and so does all metadata.

    A tensor that has the type already is copied bit for bit. `importance_in` finds the importance of columns in the
    opened model. Raises DataError (a cut file, values that the type cannot hold), MissingInputError, OutputError,
    UsageError (an unknown type, a pattern that no matrix has, binary to a terminal).
    """
    wanted = parse_mix(settings.type)
    output_type = parse_type(settings.output_type) if settings.output_type else None
    chosen = [(pattern, parse_type(type)) for pattern, type in settings.tensors]
    with open_output(settings.output) as out, GGUF.open(settings.model) as model:
        check_model(model)
        matrices = [info for info in model.tensors.values() if is_matrix(info)]
        _check_patterns(chosen, matrices)
        of = importance_in(model) if importance_in else None
        rewrites = []
        for info in model.tensors.values():
            type, fallback = info.type, None
            if is_matrix(info):
                row = next((type for pattern, type in reversed(chosen) if fnmatchcase(info.name, pattern)), None)
                type, fallback = choose_type(model, info, wanted, output_type, row)
            rewrites.append(Rewrite(info, type, fallback=fallback, importance=of(info.name) if of else None))
        inputs: dict[str, str | list[str]] = {"model": model.sha256()}
        if of:
            inputs["importance"] = _hash(rewrite.importance for rewrite in rewrites)
        told = {"type": settings.type, "output_type": settings.output_type, "tensors": settings.tensors}
        made = step("quantize", {key: value for key, value in told.items() if value}, inputs)
        history = [*read_history(model), made]
        file_bytes = write_model(out, model, rewrites, wanted.file_type, history, settings.threads, progress)
    return result_of(settings.output, settings.type, rewrites, file_bytes)


def _check_patterns(chosen: list[tuple[str, Format]], matrices: list[TensorInfo]) -> None:
    for pattern, type in chosen:
        found = [info for info in matrices if fnmatchcase(info.name, pattern)]
        if not found:
            raise UsageError(f"--tensor {pattern}: no matrix of this model is called so")
        for info in found:
            if info.shape[-1] % type.block:
                raise UsageError(
                    f"--tensor {pattern}: rows of {info.name}, {info.shape[-1]}, are no {type.name} blocks"
                )


def _hash(arrays: Iterable[Floats | None]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()
