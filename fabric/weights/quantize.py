"""quantize: a GGUF model with its matrices encoded in another block format, by the conventions of llama.cpp."""

from __future__ import annotations

from fabric.files import open_output
from fabric.weights.convert import Rewrite, check_model, is_matrix, result_of, write_model
from fabric.weights.gguf import GGUF
from fabric.weights.history import read_history, step
from fabric.weights.mix import choose_type, parse_mix, parse_type
from fabric.weights.settings import Progress, QuantizeSettings, WriteResult


def quantize(settings: QuantizeSettings, progress: Progress | None = None) -> WriteResult:
    """Encode the matrices of a model; norms, biases and other vectors stay as they are, and so does all metadata.

    A tensor that has the type already is copied bit for bit. Raises DataError (a cut file, values that the type cannot
    hold), MissingInputError, OutputError, UsageError (an unknown type, binary to a terminal).
    """
    wanted = parse_mix(settings.type)
    output_type = parse_type(settings.output_type) if settings.output_type else None
    with open_output(settings.output) as out, GGUF.open(settings.model) as model:
        check_model(model)
        rewrites = []
        for info in model.tensors.values():
            type, fallback = choose_type(model, info, wanted, output_type) if is_matrix(info) else (info.type, None)
            rewrites.append(Rewrite(info, type, fallback=fallback))
        told = {"type": settings.type, "output_type": settings.output_type}
        made = step("quantize", {key: value for key, value in told.items() if value}, {"model": model.sha256()})
        history = [*read_history(model), made]
        file_bytes = write_model(out, model, rewrites, wanted.file_type, history, settings.threads, progress)
    return result_of(settings.output, settings.type, rewrites, file_bytes)
