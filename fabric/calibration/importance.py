"""Importance of a weight's input columns: the mean square of what a model puts into each of its linear layers while it
reads calibration rows, and the files of llama.cpp (imatrix, as GGUF) that hold it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fabric.core import Plan, Routing, Tensor
from fabric.core.blocks import Floats
from fabric.data.pack import build_feed
from fabric.data.records import read_records
from fabric.devices.profiles import DEFAULT
from fabric.errors import DataError
from fabric.models import architecture_of
from fabric.models.inference import pick_precision
from fabric.models.recorder import PRODUCT, Recorder, Weights
from fabric.text.encode import EncodeReport, encode_rows
from fabric.text.template import ChatTemplate
from fabric.text.tokenizer import Tokenizer
from fabric.weights.formats import F32
from fabric.weights.gguf import GGUF, TensorSpec, decode_tensor, write_gguf
from fabric.weights.rewrite import check_model
from fabric.weights.settings import Progress

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEPT_BYTES = 1 << 30  # of inputs that stay readable after a feed
_CONTEXT = 512


@dataclass(frozen=True)
class Importance:
    """Sums of squares of each input column (K,) over `tokens` tokens, by name of the weight; all experts of a layer
    count together."""

    sums: Mapping[str, npt.NDArray[np.float64]]
    tokens: int
    experts: Mapping[str, int] = field(default_factory=dict)

    def of(self, name: str) -> Floats | None:
        """Mean squares (K,); None for a weight that was not met."""
        return (self.sums[name] / self.tokens).astype(np.float32) if name in self.sums else None

    def sha256(self) -> str:
        """Of all names and values."""
        digest = hashlib.sha256()
        for name in sorted(self.sums):
            digest.update(name.encode() + self.sums[name].tobytes())
        return digest.hexdigest()


class _Watched(Recorder):
    """Keeps the inputs of linear layers readable."""

    def __init__(self, weights: Weights, tokens: int, precision: str, context: int) -> None:
        super().__init__(weights, tokens, tokens, precision, {}, context=context)
        self.fed: dict[str, Tensor] = {}
        self.wide: dict[str, int] = {}  # where rows hold what several experts read

    def linear(
        self, x: Tensor, name: str, residual: Tensor = -1, scaled: str = PRODUCT, rows: range | None = None,
        bias: str = "",
    ) -> Tensor:  # fmt: skip
        """As in a Recorder."""
        self.fed[f"{name}.weight"] = self.graph.keep(x)
        return super().linear(x, name, residual, scaled, rows, bias)

    def route(self, x: Tensor, name: str, used: int) -> Routing:
        """As in a Recorder."""
        self.fed[f"{name}.weight"] = self.graph.keep(x)
        return super().route(x, name, used)

    def experts(self, x: Tensor, name: str, routing: Routing) -> Tensor:
        """As in a Recorder."""
        self.fed[f"{name}.weight"] = self.graph.keep(x)
        self.wide[f"{name}.weight"] = routing.used if name.endswith("down_exps") else 1
        return super().experts(x, name, routing)


def collect(gguf: GGUF, rows: str, threads: int = 0, progress: Progress | None = None) -> Importance:
    """Runs a model over records. `progress`: called with (tokens done, tokens in all). Raises DataError."""
    check_model(gguf)
    arch = architecture_of(gguf)
    tokenizer = Tokenizer.from_gguf(gguf.metadata)
    widths = sum(info.shape[-1] for info in gguf.tensors.values() if len(info.shape) > 1)
    longest = max(32, min(_CONTEXT, _KEPT_BYTES // (4 * widths)))
    with contextlib.closing(ChatTemplate.choose(tokenizer, None)) as template:
        examples = list(encode_rows(read_records(rows), tokenizer, template, longest, EncodeReport(), train="last"))
    if not examples:
        raise DataError(f"{rows}: no row has anything to calibrate with")
    capacity, total = max(len(row.tokens) for row in examples), sum(len(row.tokens) for row in examples)
    with (
        contextlib.closing(DEFAULT.open("cpu", threads)) as device,
        contextlib.closing(Weights(gguf, device)) as held,
    ):
        recorder = _Watched(held, capacity, pick_precision(device, "auto"), longest)
        recorder.fed[recorder.head_name] = recorder.graph.keep(arch.build(recorder, arch.read_config(gguf)))
        recorder.read.add(recorder.head_name)  # whose product is not computed here
        recorder.check()
        plan = Plan(recorder.graph)
        recorder.graph.close()
        sums = {name: np.zeros(gguf.tensors[name].shape[-1]) for name in recorder.fed}
        done = 0
        with contextlib.closing(plan):
            for row in examples:
                n = len(row.tokens)
                plan.run(recorder.inputs.feed(**build_feed([row])._asdict()))
                squares: dict[Tensor, npt.NDArray[np.float64]] = {}
                for name, tensor in recorder.fed.items():
                    if tensor not in squares:  # several layers read the same
                        slots = recorder.wide.get(name, 1)
                        read = plan.read(tensor, n, len(sums[name]) * slots).reshape(n * slots, -1)
                        squares[tensor] = np.square(read, dtype=np.float64).sum(0) / slots
                    sums[name] += squares[tensor]
                done += n
                if progress:
                    progress(done, total)
    # as they will be read from a file: in F32
    rounded = {name: values.astype(np.float32).astype(np.float64) for name, values in sums.items()}
    shapes = {name: gguf.tensors[name].shape for name in sums}
    return Importance(rounded, total, {name: shape[0] for name, shape in shapes.items() if len(shape) == 3})


def read_importance(path: str, base: GGUF) -> Importance:
    """A file of llama.cpp's imatrix, in GGUF, that fits a model. Raises DataError, MissingInputError."""
    with GGUF.open(path) as file:
        if file.get("general.type", str, "") != "imatrix":
            raise DataError(f"{file.name}: not an importance matrix in GGUF (general.type is not 'imatrix')")
        sums = {}
        for entry in file.tensors:
            name = entry.removesuffix(_SUMS)
            if name == entry or name not in base.tensors:
                continue
            if name + _COUNTS not in file.tensors:
                raise DataError(f"{file.name}: {name} has sums and no {_COUNTS[1:]}")
            values, count = (decode_tensor(file, name + part).astype(np.float64) for part in (_SUMS, _COUNTS))
            shape, experts = base.tensors[name].shape, count.size
            if values.size != shape[-1] * experts or experts not in (1, shape[0] if len(shape) == 3 else 1):
                raise DataError(f"{file.name}: the importance of {name} is of another shape than in {base.name}")
            if not (np.isfinite(values).all() and (values >= 0).all() and (count >= 0).all() and count.any()):
                raise DataError(f"{file.name}: the importance of {name} is no mean of squares")
            sums[name] = values.reshape(experts, -1).sum(0) / count.sum()  # of experts, of all their rows
        if not sums:
            raise DataError(f"{file.name}: none of its tensors is one of {base.name}")
        return Importance(sums, 1)


def write_importance(out: BinaryIO, importance: Importance) -> None:
    """Writes such a file."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": ["calibration rows"],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": importance.tokens,
    }
    arrays: dict[str, Floats] = {}
    for name, sums in sorted(importance.sums.items()):
        n = importance.experts.get(name, 1)
        arrays[name + _SUMS] = np.tile(sums.astype("<f4"), (n, 1))
        arrays[name + _COUNTS] = np.full((n, 1), importance.tokens, "<f4")
    specs = [TensorSpec(name, F32, array.shape) for name, array in arrays.items()]
    write_gguf(out, metadata, specs, (array.data for array in arrays.values()))
