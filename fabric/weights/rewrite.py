"""What merge and quantize share: which tensors of a model are weight matrices, and the stream of
re-encoded tensors. Rows are worked on in pieces by several threads and come out in order, so memory stays at a few
pieces; pieces are cut by shape alone and sums taken in their order, so the bytes do not depend on the threads.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite, prod, sqrt
from typing import BinaryIO, NamedTuple

import numpy as np

from fabric.core.blocks import Floats, decode, encode
from fabric.errors import DataError
from fabric.weights.adapter import LoraPair
from fabric.weights.formats import F32, FORMATS, type_name
from fabric.weights.gguf import GGUF, TensorInfo, TensorSpec, check_decodable, write_gguf
from fabric.weights.history import KEY as HISTORY
from fabric.weights.history import Step, encode_history
from fabric.weights.settings import Progress, TensorReport, WriteResult

_PIECE_ELEMENTS = 1 << 21
_COPY_BYTES = 1 << 23

# Matrices that stock llama.cpp never quantizes: small, or read in ways that need full precision.
_LEFT_ALONE = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|^position_embd\.weight|^token_types\.weight"
    r"|ssm_conv1d|shortconv\.conv\.weight|attn_rel_b\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(first|lerp_fused|decay_w[12]|[wva][012]|g[12])\.weight"
)
_BESIDE = {
    "adapter": "an adapter, where a model is expected: its base goes after -m, and the adapter after -a",
    "imatrix": "an importance matrix, where a model is expected: it goes after --imatrix",
    "mmproj": "the image encoder of a model, where a model is expected: name the model's own file",
}  # files that go with a model, by general.type


@dataclass
class Rewrite:
    """One tensor on its way: what type it gets, which scaled pairs are added, and what that cost.

    `values(first, last)` gives rows that take the place of the file's.
    """

    info: TensorInfo
    type: int
    changes: list[tuple[LoraPair, float]] = field(default_factory=list)
    fallback: str | None = None
    values: Callable[[int, int], Floats] | None = None
    importance: Floats | None = None  # (cols,): how much the squared error of a column counts
    error: float = 0.0  # sums of squares
    power: float = 0.0

    @property
    def copied(self) -> bool:
        """Whether the bytes of the file serve as they are."""
        return self.type == self.info.type and not self.changes and not self.values

    @property
    def spec(self) -> TensorSpec:
        """What is written."""
        return TensorSpec(self.info.name, self.type, self.info.shape)

    def report(self) -> TensorReport:
        """Tell what became of the tensor, once it is written."""
        rmse = None if self.copied else sqrt(self.error / self.info.n_elements)
        return TensorReport(
            name=self.info.name,
            shape=self.info.shape,
            from_type=self.info.type_name,
            to_type=type_name(self.type),
            from_bytes=self.info.nbytes,
            to_bytes=self.spec.nbytes,
            rmse=rmse,
            relative_rmse=None if rmse is None else sqrt(self.error / self.power) if self.power else 0.0,
            changed=bool(self.changes or self.values),
            fallback=self.fallback,
        )


def check_kind(gguf: GGUF) -> None:
    """DataError for an adapter or another file that goes with a model."""
    kind = gguf.get("general.type", str, "model")
    if kind in _BESIDE:
        raise DataError(f"{gguf.name}: {_BESIDE[kind]}")


def check_model(gguf: GGUF) -> None:
    """Raise DataError unless the file is a whole model."""
    check_kind(gguf)
    if not gguf.tensors:
        raise DataError(f"{gguf.name}: holds a vocabulary, but no weights")


def is_matrix(info: TensorInfo) -> bool:
    """Tell whether stock llama.cpp would quantize this tensor."""
    is_vector = prod(info.shape[:-1]) == 1
    return not is_vector and info.name.endswith("weight") and not _LEFT_ALONE.search(info.name)


def write_model(
    out: BinaryIO,
    gguf: GGUF,
    rewrites: Sequence[Rewrite],
    file_type: int | None,
    history: Sequence[Step],
    threads: int,
    progress: Progress | None,
    changes: Mapping[str, object] | None = None,
) -> int:
    """Write the rewritten tensors with all metadata of the model, and `changes` to it; return the size in bytes.

    `file_type` is what general.file_type becomes; None: named after the type that most elements of matrices have.
    """
    for rewrite in rewrites:
        if not rewrite.copied:
            check_decodable(gguf, rewrite.info)
    metadata = {
        **gguf.raw_metadata,
        **(changes or {}),
        "general.file_type": _file_type(gguf, rewrites) if file_type is None else file_type,
        "general.quantization_version": gguf.raw_metadata.get("general.quantization_version", 2),
        HISTORY: encode_history(history),
    }
    total = sum(rewrite.spec.nbytes for rewrite in rewrites)

    def counted() -> Iterator[memoryview]:
        done = 0
        for piece in _pieces(gguf, rewrites, threads or os.cpu_count() or 1):
            yield piece
            done += len(piece)
            if progress:
                progress(done, total)

    return write_gguf(out, metadata, [rewrite.spec for rewrite in rewrites], counted())


def result_of(
    output: str, type: str, rewrites: Sequence[Rewrite], file_bytes: int, notes: Sequence[str] = ()
) -> WriteResult:
    """Sum up what was written."""
    reports = [rewrite.report() for rewrite in rewrites]
    return WriteResult(
        output=output,
        type=type,
        tensors=reports,
        from_bytes=sum(report.from_bytes for report in reports),
        to_bytes=sum(report.to_bytes for report in reports),
        file_bytes=file_bytes,
        notes=list(notes),
    )


def _file_type(gguf: GGUF, rewrites: Sequence[Rewrite]) -> int:
    """Name a file after the type that most elements of its matrices have; the name it had where that one is unclear."""
    elements: dict[int, int] = {}
    for rewrite in rewrites:
        if is_matrix(rewrite.info):
            elements[rewrite.type] = elements.get(rewrite.type, 0) + rewrite.info.n_elements
    most = max(elements, key=lambda type: elements[type]) if elements else F32
    named = FORMATS[most].file_type
    return gguf.get("general.file_type", int, 0) if named is None else named


class _Piece(NamedTuple):
    """Encoded rows, the sums of squares of what encoding lost and of what there was, and whether both are finite."""

    data: memoryview
    error: float = 0.0
    power: float = 0.0


def _pieces(gguf: GGUF, rewrites: Sequence[Rewrite], threads: int) -> Iterator[memoryview]:
    """Yield the bytes of all tensors in order, keeping at most two pieces a thread in work."""
    waiting: deque[tuple[Rewrite, Future[_Piece]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for rewrite, first, last in _cuts(rewrites):
            waiting.append((rewrite, pool.submit(_encode_rows, gguf, rewrite, first, last)))
            if len(waiting) > 2 * threads:
                yield _collect(gguf, *waiting.popleft())
        while waiting:
            yield _collect(gguf, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _cuts(rewrites: Sequence[Rewrite]) -> Iterator[tuple[Rewrite, int, int]]:
    for rewrite in rewrites:
        shape = rewrite.info.shape
        rows = prod(shape[:-1])
        step = max(1, _PIECE_ELEMENTS // shape[-1])
        for first in range(0, rows, step):
            yield rewrite, first, min(first + step, rows)


def _collect(gguf: GGUF, rewrite: Rewrite, future: Future[_Piece]) -> memoryview:
    piece = future.result()
    rewrite.error += piece.error
    rewrite.power += piece.power
    if not isfinite(piece.error):
        name, type = rewrite.info.name, type_name(rewrite.type)
        raise DataError(f"{gguf.name}: the tensor {name} holds values that {type} cannot (NaN, infinite or too large)")
    return piece.data


def _encode_rows(gguf: GGUF, rewrite: Rewrite, first: int, last: int) -> _Piece:
    info = rewrite.info
    cols = info.shape[-1]
    if rewrite.values:
        values = rewrite.values(first, last)
    else:
        row_bytes = info.nbytes // (info.n_elements // cols)
        source = gguf.data(info.name)[first * row_bytes : last * row_bytes]
        if rewrite.copied:
            return _Piece(source)
        values = decode(info.type, source, (last - first) * cols).reshape(last - first, cols)
    for pair, scale in rewrite.changes:
        values += np.float32(scale) * pair.change(first, last)
    data = encode(rewrite.type, values, rewrite.importance)
    with np.errstate(all="ignore"):
        lost = decode(rewrite.type, data, values.size) - values.reshape(-1)
        return _Piece(
            data, float(np.square(lost).sum(dtype=np.float64)), float(np.square(values).sum(dtype=np.float64))
        )
