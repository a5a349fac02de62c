"""What model files write with: weights by their GGUF names, LoRA pairs beside them, inputs, caches, the head. A matrix
of a buffer (a `Source`) may take the place of any weight, which is how both whole weights and pairs train.

Leans on fabric.core and fabric.weights; knows no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.core import (
    BF16,
    F32,
    FROZEN,
    I32,
    NO_LORA,
    STATE,
    TOKENS,
    TRAINED,
    Buffer,
    Device,
    Feed,
    Graph,
    Lora,
    Routing,
    Tensor,
)
from fabric.errors import DataError, FabricError
from fabric.fields import named
from fabric.models.config import LONG, SHORT
from fabric.notices import notice
from fabric.weights.formats import tensor_bytes
from fabric.weights.gguf import GGUF, check_decodable, decode_tensor, product_scale

EMBEDDING = "token_embd.weight"
PRODUCT, SUM, NOTHING = "product", "sum", ""  # what the scale of a matrix multiplies
_INERT_TENSORS = ".input_scale"  # for kernels that quantize activations; the result is the same without


@dataclass(frozen=True)
class Source:
    """An F32 matrix (rows, cols) at byte `offset` of `buffer`, `kind` PARAM or FROZEN. By the name of a tensor of the
    file it takes that one's place; by NAME.lora_a (rank, K) and NAME.lora_b (N, rank) it stands beside NAME. Of experts
    their matrices stand one after the other in it."""

    kind: int
    buffer: Buffer
    offset: int
    rows: int
    cols: int


class Weights:
    """A GGUF's tensors as memory of a device: wrapped where they lie, once, for all graphs of the device."""

    def __init__(self, gguf: GGUF, device: Device) -> None:
        self.gguf, self.device = gguf, device
        self.buffers: dict[str, Buffer] = {}
        self.constants: list[Buffer] = []

    def buffer(self, name: str) -> Buffer:
        """The bytes of a tensor; DataError when the file has none of that name."""
        if name not in self.gguf.tensors:
            raise DataError(f"{self.gguf.path}: tensor {name} is missing")
        if name not in self.buffers:
            check_decodable(self.gguf, self.gguf.tensors[name])
            info = self.gguf.tensors[name]
            row_bytes = info.nbytes // (info.shape[0] if len(info.shape) > 1 else 1)  # of experts, a whole one
            self.buffers[name] = Buffer(
                self.device, wrap=self.gguf.data(name),
                seams=lambda most: np.arange(row_bytes, info.nbytes, row_bytes, dtype=np.uint64),
            )  # fmt: skip
        return self.buffers[name]

    def constant(self, array: npt.NDArray[Any]) -> Buffer:
        """A copy of an array, for as long as the weights live."""
        self.constants.append(Buffer(self.device, wrap=np.ascontiguousarray(array).copy()))
        return self.constants[-1]

    def close(self) -> None:
        """Lets go of the file's memory."""
        for buffer in [*self.buffers.values(), *self.constants]:
            buffer.close()
        self.buffers, self.constants = {}, []


@dataclass(frozen=True)
class Inputs:
    """The inputs of a recorded graph by name, in its order."""

    names: tuple[str, ...]

    def feed(self, **arrays: npt.NDArray[Any]) -> Feed:
        """A feed of as many tokens as `tokens`, and as many trained or read ones as `index`. Every input is given."""
        if missing := [name for name in self.names if name not in arrays]:
            raise FabricError(f"the graph reads {', '.join(missing)}, and a feed lacks it")
        return Feed(len(arrays["tokens"]), len(arrays["index"]), [arrays[name] for name in self.names])


class Recorder:
    """Records one graph of a model. `cache_rows` > 0: for generation, with a cache of so many positions; `caches` are
    those of another recorder. `state_rows`: states of sequences there is room for; `states` are another recorder's.

    A pair's scale is `alpha` / rank, and 1 where alpha is 0, as in adapter files. `dropout` is of what the pairs see,
    and `noise` is added to embeddings; either is one more input of a feed: keys (T, 1), numbers (T, width). `context`:
    tokens of the longest row that there may be, by which LongRoPE chooses its frequencies. `counted`: of a mixture of
    experts, `load` has how many slots each expert had, (layers, experts) F32, added up from feed to feed.
    """

    def __init__(
        self,
        weights: Weights,
        tokens: int,
        trained: int,
        precision: str,
        sources: Mapping[str, Source],
        cache_rows: int = 0,
        alpha: float = 0.0,
        dropout: float = 0.0,
        noise: bool = False,
        caches: Sequence[Buffer] = (),
        context: int = 0,
        counted: bool = False,
        state_rows: int = 0,
        states: Sequence[Buffer] = (),
    ) -> None:
        self.weights, self.gguf = weights, weights.gguf
        self.graph = Graph(weights.device, tokens, trained, {"f32": F32, "bf16": BF16}[precision], self.gguf.name)
        self.sources, self.cache_rows, self.alpha, self.dropout = sources, cache_rows, alpha, dropout
        self.context = context
        self.caches: list[Buffer] = []
        self._caches: dict[Tensor, Tensor] = {}  # what was added to one, and the cache
        self.given = list(caches)
        self.counted, self.routers = counted, 0
        self.load: Buffer | None = None
        self.states: list[Buffer] = []
        self.state_rows, self.given_states, self.places = state_rows, list(states), -1
        self.softcap = 0.0  # of logits: the model sets it
        self.leaves: dict[str, Tensor] = {}
        self.parted: set[str] = set()  # matrices of which rows are leaves
        self.read: set[str] = set()  # tensors of the file that are read without being leaves
        self._names: list[str] = []
        self.tokens = self._input("tokens", I32, TOKENS)
        self.positions = self._input("positions", I32, TOKENS)
        self.seen = self._input("seen", I32, TOKENS, 2)
        if cache_rows:
            self.slots = self._input("slots", I32, TOKENS)
        self.index = self._input("index", I32, TRAINED)
        if not cache_rows:
            self.targets = self._input("targets", I32, TRAINED)
        self.keys = self._input("keys", I32, TOKENS) if dropout else -1
        self.noise = self._input("noise", F32, TOKENS, self.gguf.tensors[EMBEDDING].shape[-1]) if noise else -1

    def _input(self, name: str, dtype: int, rows: int, cols: int = 1) -> Tensor:
        self._names.append(name)
        return self.graph.input(dtype, rows, cols)

    @property
    def inputs(self) -> Inputs:
        """What a feed of this graph has to hold."""
        return Inputs(tuple(self._names))

    def source(self, name: str, rows: range | None = None, parts: int = 1) -> Tensor:
        """A matrix of the sources, or some rows of it; its rows in `parts`."""
        s = self.sources[name]
        return self._leaf(name, rows, s.kind, s.buffer, s.offset, F32, s.rows * parts, s.cols // parts)

    def weight(self, name: str, rows: range | None = None, parts: int = 1, dims: int = 2) -> Tensor:
        """A matrix of the file in its own block format, or what takes its place, or some rows of it, without a copy.
        `parts`: each of its rows is as many rows. Of 3 `dims`, those of experts: their matrices one after the other."""
        if name in self.sources:
            return self.source(name, rows, parts)
        buffer, info = self.weights.buffer(name), self.gguf.tensors[name]
        if len(info.shape) > dims:
            told = "one or two" if dims == 2 else "three"
            raise DataError(f"{self.gguf.path}: tensor {name} has {len(info.shape)} dimensions, not {told}")
        n, cols = math.prod(info.shape[:-1]), info.shape[-1]
        return self._leaf(name, rows, FROZEN, buffer, 0, info.type, n * parts, cols // parts)

    def _leaf(
        self, name: str, rows: range | None, kind: int, buffer: Buffer, offset: int, type: int, n: int, cols: int
    ) -> Tensor:
        """A matrix (n, cols) of a buffer, or those of its rows."""
        key = name
        if rows is not None:
            key, n = f"{name}[{rows.start}:{rows.stop}]", len(rows)
            offset += tensor_bytes(type, (rows.start, cols))
            self.parted.add(name)
        if key not in self.leaves:
            self.leaves[key] = self.graph.leaf(kind, buffer, offset, type, n, cols)
        return self.leaves[key]

    @property
    def used(self) -> set[str]:
        """Names of matrices and vectors that the graph computes with."""
        return self.leaves.keys() | self.parted

    def vector(self, name: str, rows: range | None = None) -> Tensor:
        """A norm's weight, a bias or a convolution's weight, or some rows of that, as F32."""
        info = self.gguf.tensors.get(name)
        if info is None or info.type == F32 or name in self.sources:
            return self.weight(name, rows)
        key = name if rows is None else f"{name}[{rows.start}:{rows.stop}]"
        if key not in self.leaves:
            values = decode_tensor(self.gguf, name).reshape(-1, info.shape[-1])
            self.leaves[key] = self.constant(values if rows is None else values[rows.start : rows.stop])
            self.parted.add(name)
        return self.leaves[key]

    def fixed(self, name: str) -> Tensor:
        """A vector that never trains, as F32."""
        if name not in self.gguf.tensors:
            raise DataError(f"{self.gguf.path}: tensor {name} is missing")
        self.read.add(name)
        return self.constant(decode_tensor(self.gguf, name).reshape(-1))

    def constant(self, values: npt.NDArray[np.floating[Any]]) -> Tensor:
        """A row or a matrix of F32."""
        made = np.atleast_2d(np.asarray(values, np.float32))
        return self.graph.leaf(FROZEN, self.weights.constant(made), 0, F32, *made.shape)

    def lora(self, name: str, product_scale: float = 1.0, rows: range | None = None) -> Lora:
        """The pair beside a weight, or beside some of its rows, if it has one; its input is already multiplied by
        `product_scale`."""
        a, b = f"{name}.lora_a", f"{name}.lora_b"
        if a not in self.sources:
            return NO_LORA
        scale = self.alpha / self.sources[b].cols if self.alpha else 1.0
        return Lora(self.source(a), self.source(b, rows), scale / product_scale, self.dropout, self.keys)

    def embed(self, scale: float = 1.0) -> Tensor:
        """(T, width) F32."""
        rows = self.graph.embed(self.weight(EMBEDDING), self.tokens, scale)
        return rows if self.noise < 0 else self.graph.add(rows, self.noise)

    def embed_part(self, name: str, part: int, parts: int, scale: float) -> Tensor:
        """(T, cols / parts) F32: one of the equal `parts` of each row of a table."""
        return self.graph.embed(self.weight(name, parts=parts), self.tokens, scale, parts, part)

    def scalar(self, name: str) -> float:
        """A tensor of one number that does not train, 1 where the file has none."""
        if name not in self.gguf.tensors:
            return 1.0
        self.read.add(name)
        value = float(decode_tensor(self.gguf, name).reshape(-1)[0])
        if not np.isfinite(value):
            raise DataError(f"{self.gguf.name}: {name} is {value}")
        return value

    def rope_table(self, inv_freq: npt.NDArray[np.float32], magnitude: float = 1.0, factors: str = "") -> Tensor:
        """Cosines and sines of this feed's positions. `factors`: a tensor that divides frequencies, if there is one."""
        if factors in self.gguf.tensors:
            divisors = decode_tensor(self.gguf, factors).reshape(-1)
            if divisors.size != inv_freq.size or not (np.isfinite(divisors) & (divisors > 0)).all():
                raise DataError(f"{self.gguf.name}: {factors} is not {inv_freq.size} positive factors")
            inv_freq = inv_freq / divisors
            self.read.add(factors)
        return self.graph.rope_table(self.positions, self.constant(inv_freq), magnitude)

    def longrope_table(self, inv_freq: npt.NDArray[np.float32], magnitude: float, original: int) -> Tensor:
        """The same with one of LongRoPE's two sets of divisors, where the file has them: the short ones for a context
        of up to `original` tokens. Ding et al. 2024, https://arxiv.org/abs/2402.13753
        """
        self.read |= {LONG, SHORT}
        return self.rope_table(inv_freq, magnitude, LONG if self.context > original else SHORT)

    def rms_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """With the weight `name`.weight."""
        return self.graph.rms_norm(x, self.vector(f"{name}.weight"), eps)

    def linear(
        self, x: Tensor, name: str, residual: Tensor = -1, scaled: str = PRODUCT, rows: range | None = None,
        bias: str = "",
    ) -> Tensor:  # fmt: skip
        """With `name`.weight, its LoRA pair, and `bias` (`name`.bias) if the file has it. `scaled`: what `name`.scale
        multiplies where the file has one, the `PRODUCT` with the weight or the `SUM` of product, bias and pair. `rows`:
        those of the weight alone, of a matrix that holds several layers and has no bias.
        """
        bias = bias or f"{name}.bias"
        added = self.vector(bias) if rows is None and bias in self.gguf.tensors else -1
        scale = product_scale(self.gguf, f"{name}.weight") if scaled else 1.0
        if scaled:
            self.read.add(f"{name}.scale")
        weight, lora = self.weight(f"{name}.weight", rows), self.lora(f"{name}.weight", rows=rows)
        if scale == 1.0:
            return self.graph.linear(x, weight, added, lora, residual)
        if scaled == PRODUCT:
            x = self.graph.scale(x, scale)
            return self.graph.linear(x, weight, added, self.lora(f"{name}.weight", scale, rows), residual)
        y = self.graph.scale(self.graph.linear(x, weight, added, lora), scale)
        return y if residual < 0 else self.graph.add(residual, y)

    def route(self, x: Tensor, name: str, used: int) -> Routing:
        """The experts of each token by `name`.weight, `name`.bias where the file has one, and its LoRA pair."""
        bias = self.vector(f"{name}.bias") if f"{name}.bias" in self.gguf.tensors else -1
        weight = self.weight(f"{name}.weight")
        load = self._load(self.gguf.tensors[f"{name}.weight"].shape[0]) if self.counted else -1
        return self.graph.route(x, weight, used, bias, self.lora(f"{name}.weight"), load)

    def _load(self, experts: int) -> Tensor:
        layers = self.gguf.get(f"{self.gguf.architecture}.block_count", int, 0)
        self.load = self.load or Buffer(self.weights.device, layers * experts * 4)
        self.routers += 1
        return self.graph.leaf(STATE, self.load, (self.routers - 1) * experts * 4, F32, 1, experts)

    def experts(self, x: Tensor, name: str, routing: Routing) -> Tensor:
        """A linear layer of each expert: `name`.weight (experts, N, K), and its LoRA pairs."""
        weight, lora = self.weight(f"{name}.weight", dims=3), self.lora(f"{name}.weight")
        return self.graph.experts(x, weight, routing, lora=lora)

    def qkv(self, h: Tensor, block: str) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: one after the other, so that a GPU computes them at once."""
        return self.linear(h, f"{block}.attn_q"), self.linear(h, f"{block}.attn_k"), self.linear(h, f"{block}.attn_v")

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, n_head: int, n_kv_head: int, head_dim: int, scale: float,
        window: int = 0, softcap: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Over this feed's rows, or over a cache to which they are added first, once for all layers that share them."""
        if self.cache_rows:
            k, v = self._cached(k, n_kv_head * head_dim), self._cached(v, n_kv_head * head_dim)
        return self.graph.attention(
            q, k, v, self.seen, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim, scale=scale,
            window=window, softcap=softcap,
        )  # fmt: skip

    def conv(self, x: Tensor, name: str, rows: range | None = None) -> Tensor:
        """A causal convolution of each column with `name`.weight (cols, taps), or with some rows of it, over this
        feed's rows, or over a cache to which they are added first."""
        weight = self.vector(f"{name}.weight", rows)
        if self.cache_rows:
            x = self._cached(x, self.gguf.tensors[f"{name}.weight"].shape[0] if rows is None else len(rows))
        return self.graph.conv(x, weight, self.seen)

    def delta(self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, key_heads: int, state_size: int) -> Tensor:
        """The gated delta rule over this feed's rows, whose states of `state_size` numbers begin as zeros, or, in
        generation, as those of the sequences."""
        if not self.cache_rows:
            return self.graph.delta(q, k, v, gates, key_heads)
        if self.places < 0:
            self.places = self._input("places", I32, TOKENS, 2)
        n, given = len(self.states), self.given_states
        buffer = given[n] if given else Buffer(self.weights.device, self.state_rows * state_size * 4)
        self.states.append(buffer)
        cache = self.graph.leaf(STATE, buffer, 0, F32, self.state_rows, state_size)
        return self.graph.delta(q, k, v, gates, key_heads, cache, self.places)

    def _cached(self, x: Tensor, cols: int) -> Tensor:
        if x in self._caches:
            return self._caches[x]
        dtype = self.graph.precision
        rows_bytes = self.cache_rows * cols * (2 if dtype == BF16 else 4)
        buffer = self.given[len(self.caches)] if self.given else Buffer(self.weights.device, rows_bytes)
        self.caches.append(buffer)
        cache = self.graph.leaf(STATE, buffer, 0, dtype, self.cache_rows, cols)
        self._caches[x] = self.graph.append(cache, x, self.slots)
        return self._caches[x]

    @property
    def head_name(self) -> str:
        """`output.weight`, or the embedding where they are tied."""
        return "output.weight" if "output.weight" in self.gguf.tensors else EMBEDDING

    def loss(self, hidden: Tensor) -> Tensor:
        """Negative log likelihoods of the targets."""
        name = self.head_name
        return self.graph.loss(hidden, self.weight(name), self.index, self.targets, self.lora(name), self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in F32 after the positions of `index`, readable after a run."""
        name = self.head_name
        return self.graph.logits(hidden, self.weight(name), self.index, self.lora(name), self.softcap)

    def check(self) -> None:
        """DataError where a pair belongs to no linear layer of this model, or nothing reads a tensor of the file."""
        unused = sorted(set(self.sources) - self.used)
        if unused:
            name = unused[0].removesuffix(".lora_a")
            raise DataError(f"no layer of this model can carry a LoRA pair for {name}")
        unread = [name for name in self.gguf.tensors if name not in self.used | self.read]
        inert = [name for name in unread if name.endswith(_INERT_TENSORS)]
        if len(unread) > len(inert):
            raise DataError(
                f"{self.gguf.name}: a {self.gguf.architecture} model with its metadata does not read the tensors "
                f"{named(name for name in unread if name not in inert)}; they would have no effect"
            )
        if inert:
            notice(f"{self.gguf.name}: scales of quantized activations are not used: {named(inert)}")
