"""A transformers checkpoint (a folder of config.json, safetensors and a tokenizer) as one GGUF model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fabric.core.blocks import Floats, encode
from fabric.errors import DataError, UsageError
from fabric.files import check_streams, open_output
from fabric.huggingface import mistral
from fabric.huggingface.checkpoint import read_checkpoint
from fabric.huggingface.folder import Folder
from fabric.huggingface.names import KEPT_F32, Family
from fabric.huggingface.safetensors import Stored
from fabric.huggingface.tokenizer import tokenizer_metadata
from fabric.notices import held
from fabric.weights.formats import BY_NAME, F16, F32, FORMATS
from fabric.weights.gguf import TensorSpec, write_gguf
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import encode_history, step
from fabric.weights.settings import Progress

TYPES = ("keep", "f32", "f16", "bf16")
_LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class Converted:
    """What was written."""

    output: str
    architecture: str
    tensors: int
    dropped: list[str]  # of the checkpoint, what text models do not have
    file_bytes: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the output and where it comes from: one of the checkpoint or those of all experts, or values made
    here."""

    spec: TensorSpec
    sources: list[Stored] | Floats


def convert_model(path: Path, output: str, type: str = "keep", progress: Progress | None = None) -> Converted:
    """Writes the GGUF of a checkpoint. `type` is that of matrices; vectors are F32.

    Raises DataError, MissingInputError, OutputError, UsageError.
    """
    if type not in TYPES:
        raise UsageError(f"--type {type}: choose from {', '.join(TYPES)}; `fabric quantize` makes smaller ones")
    folder = Folder(path)
    with held():
        read = mistral.read_checkpoint(folder) if mistral.is_native(folder) else read_checkpoint(folder)
        settings, architecture = read.settings, read.settings.family.architecture
        metadata = {
            "general.architecture": architecture, "general.type": "model", "general.name": path.resolve().name,
            **settings.metadata, **tokenizer_metadata(
                folder, settings.vocab_size, settings.fields, settings.family.by_merges
            ),
        }  # fmt: skip
    tensors = _tensors(read.tensors, type)
    tensors += [_Tensor(TensorSpec(name, F32, made.shape), made) for name, made in settings.tensors.items()]
    elements: dict[int, int] = {}
    for tensor in tensors:
        elements[tensor.spec.type] = elements.get(tensor.spec.type, 0) + math.prod(tensor.spec.shape)
    metadata["general.file_type"] = FORMATS[max(elements, key=lambda kind: elements[kind])].file_type or 0
    metadata[HISTORY] = encode_history([step("convert", {"type": type}, {"model": folder.hashes()})])
    check_streams(folder.read.values(), [output])
    with open_output(output) as out:
        payloads = _payloads(settings.family, tensors, read.heads, progress)
        size = write_gguf(out, metadata, [t.spec for t in tensors], payloads)
    return Converted(output, architecture, len(tensors), read.dropped, size)


def _tensors(found: Mapping[str, Stored], type: str) -> list[_Tensor]:
    """Those of experts, NAME[0] and so on, become one."""
    together: dict[str, list[Stored]] = {}
    for name, source in found.items():
        together.setdefault(name.partition("[")[0], []).append(source)
    made = []
    for name, sources in together.items():
        first = sources[0]
        small = len(first.shape) < 2 or name.endswith(KEPT_F32)
        kind = F32 if small else first.type if type == "keep" else BY_NAME[type.upper()].type
        experts = (len(sources),) if f"{name}[0]" in found else ()
        made.append(_Tensor(TensorSpec(name, kind, (*experts, *first.shape)), sources))
    return made


def _payloads(
    family: Family, tensors: list[_Tensor], heads: Mapping[str, int], progress: Progress | None
) -> Iterator[memoryview]:
    total, done = sum(t.spec.nbytes for t in tensors), 0
    for tensor in tensors:
        if isinstance(tensor.sources, list):
            yield from (_encoded(family, tensor.spec, source, heads) for source in tensor.sources)
        else:
            yield np.ascontiguousarray(tensor.sources, "<f4").data
        done += tensor.spec.nbytes
        if progress:
            progress(done, total)


def _encoded(family: Family, spec: TensorSpec, source: Stored, heads: Mapping[str, int]) -> memoryview:
    if spec.type == source.type and not family.differs(spec.name):
        raw = np.frombuffer(source.data, np.uint8).reshape(*source.shape, -1)
        return np.ascontiguousarray(family.reordered(spec.name, raw, heads)).data
    values = family.reordered(spec.name, family.converted(spec.name, source.values()), heads)
    if spec.type == F16 and source.type != F16 and not np.abs(values).max() <= _LARGEST_F16:
        raise DataError(f"{source.where}: the tensor {source.name} holds values that F16 cannot (NaN or too large)")
    return encode(spec.type, values.reshape(-1, spec.shape[-1]))
