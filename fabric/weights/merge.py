"""merge: a base model and adapters become one stock GGUF model, streamed tensor by tensor; or several adapters one."""

from __future__ import annotations

import contextlib

from fabric.errors import UsageError
from fabric.files import check_streams, open_output
from fabric.weights.adapter import Adapter, adapter_of, carried_chat, check_adapter, other_base
from fabric.weights.average import average
from fabric.weights.chat import CHAT_TEMPLATE
from fabric.weights.formats import FORMATS, encodable, is_block_format
from fabric.weights.gguf import GGUF, TensorInfo, pair_divisor
from fabric.weights.history import Step, join_histories, read_history, step
from fabric.weights.mix import Mix, choose_type, parse_mix
from fabric.weights.rewrite import Rewrite, check_model, is_matrix, result_of, write_model
from fabric.weights.settings import MergeSettings, Progress, WriteResult

KEEP = "keep"


def merge(settings: MergeSettings, progress: Progress | None = None) -> WriteResult:
    """Write base + scale * alpha / rank * (B A) for every adapter, with the base's metadata and a longer history.

    The type asked for is that of the matrices that must be encoded anew: those that an adapter changes and those in
    block formats; a block format is for all matrices. F32, F16 and BF16 ones that nothing changes are copied.
    Raises DataError (cut or foreign files), MissingInputError, OutputError, UsageError (an unknown type, no adapter,
    two `-` inputs, binary to a terminal).
    """
    if settings.average:
        return average(settings)
    if settings.model is None:
        raise UsageError("no model to merge into: give one with -m, or --average to make one adapter of several")
    if not settings.adapters:
        raise UsageError("nothing to merge: give at least one adapter with -a")
    wanted = None if settings.type == KEEP else parse_mix(settings.type)
    check_streams([settings.model, *(given.path for given in settings.adapters)], [settings.output])
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open_output(settings.output))
        base = stack.enter_context(GGUF.open(settings.model))
        check_model(base)
        files = [stack.enter_context(GGUF.open(given.path)) for given in settings.adapters]
        adapters = [adapter_of(file) for file in files]
        notes: list[str] = []
        for adapter, file in zip(adapters, files, strict=True):
            check_adapter(adapter, base, file.name)
            notes += other_base(adapter, base, file.name)
        last, chat = carried_chat([file.name for file in files], adapters, "the merged model")
        if chat and base.get(CHAT_TEMPLATE, str, "") != chat[CHAT_TEMPLATE]:
            notes.append(f"the merged model has the chat template that {last} was trained with")
        rewrites = [_rewrite(base, info, adapters, settings, wanted) for info in base.tensors.values()]
        made = _history(settings, base, files, adapters)
        file_type = wanted.file_type if wanted else base.get("general.file_type", int, 0)
        file_bytes = write_model(out, base, rewrites, file_type, made, settings.threads, progress, chat)
    return result_of(settings.output, settings.type, rewrites, file_bytes, notes)


def _rewrite(
    base: GGUF, info: TensorInfo, adapters: list[Adapter], settings: MergeSettings, wanted: Mix | None
) -> Rewrite:
    changes = [
        (adapter.pairs[info.name], given.scale * adapter.scale(info.name) / pair_divisor(base, info.name))
        for adapter, given in zip(adapters, settings.adapters, strict=True)
        if info.name in adapter.pairs
    ]
    if wanted and is_matrix(info) and (changes or is_block_format(info.type) or wanted.base.block > 1):
        type, fallback = choose_type(base, info, wanted)
        return Rewrite(info, type, changes, fallback)
    if changes and FORMATS[info.type] not in encodable():
        raise UsageError(f"{info.name} is {info.type_name}, which cannot be written; choose another --type than keep")
    return Rewrite(info, info.type, changes)


def _history(settings: MergeSettings, base: GGUF, files: list[GGUF], adapters: list[Adapter]) -> list[Step]:
    scales = [given.scale for given in settings.adapters]
    inputs: dict[str, str | list[str]] = {"model": base.sha256(), "adapters": [file.sha256() for file in files]}
    made = step("merge", {"type": settings.type, "scales": scales}, inputs)
    return [*join_histories(read_history(base), *(adapter.history for adapter in adapters)), made]
