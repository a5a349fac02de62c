"""A model to score and to generate with: base weights plus scaled adapters on a device.

`Scorer` gives negative log likelihoods of feeds, `Decoder` logits over a cache. Both leave policy to their callers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fabric.core import FROZEN, Buffer, Device, Plan, Tensor
from fabric.data.pack import PackedRows
from fabric.models import architecture_of
from fabric.models.recorder import Inputs, Recorder, Source, Weights
from fabric.models.states import States
from fabric.weights.adapter import Adapter
from fabric.weights.gguf import GGUF

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]


def frozen_loras(weights: Weights, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Source]:
    """Pairs of several scaled adapters, joined along their rank: one pair a weight, its scale folded into A."""
    sources = {}
    for name in {name: None for adapter, _ in adapters for name in adapter.pairs}:
        found = [(adapter.pairs[name], scale * adapter.scale(name))
                 for adapter, scale in adapters if name in adapter.pairs]  # fmt: skip
        a = np.concatenate([pair.a * np.float32(scale) for pair, scale in found], axis=-2)
        b = np.concatenate([pair.b for pair, _ in found], axis=-1)
        for part, array in (("lora_a", a), ("lora_b", b)):
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
            sources[f"{name}.{part}"] = Source(FROZEN, weights.constant(rows), 0, *rows.shape)
    return sources


def pick_precision(device: Device, precision: str) -> str:
    """`auto` is bf16 where the device gains from it."""
    return ("bf16" if device.info.bf16 else "f32") if precision == "auto" else precision


class Scorer:
    """Scores feeds of at most `tokens` tokens and `trained` targets (default: as many). `context`: as in a Recorder."""

    def __init__(
        self,
        weights: Weights,
        tokens: int,
        precision: str = "auto",
        loras: Mapping[str, Source] | None = None,
        trained: int | None = None,
        context: int = 0,
    ) -> None:
        self.tokens, self.weights = tokens, weights  # the plan reads their memory
        arch = architecture_of(weights.gguf)
        precision = pick_precision(weights.device, precision)
        trained = tokens if trained is None else trained
        recorder = Recorder(weights, tokens, trained, precision, loras or {}, context=context)
        self.nll_tensor = recorder.loss(arch.build(recorder, arch.read_config(weights.gguf)))
        recorder.check()
        self.inputs, self.plan = recorder.inputs, Plan(recorder.graph)
        recorder.graph.close()

    def nll(self, feed: PackedRows) -> F32Array:
        """(trained,) of packed rows."""
        trained = len(feed.index)
        self.plan.run(self.inputs.feed(**feed._asdict()))
        return self.plan.read(self.nll_tensor, trained, 1)[:, 0]

    def close(self) -> None:
        """Frees the plan; the weights stay."""
        self.plan.close()


class _Feeder(NamedTuple):
    """A plan for feeds of a size."""

    inputs: Inputs
    plan: Plan
    logits: Tensor


FEW = (1, 2, 4, 8)  # tokens of a feed for which there are plans: kernels that read weights at the speed of memory


class Decoder:
    """Logits over a cache of `cache_rows` positions, fed at most `tokens` tokens at a time.

    A sequence takes a contiguous range of the cache: token t of a feed is written to slot `slots[t]` and sees the slots
    lo[t] .. hi[t]-1, so several sequences decode together, `sequences` of them at most (default: `outputs`). A feed
    runs on the plan of the least room for it; those for few tokens are made when they are first needed. `context`: as
    in a Recorder. Of a model that carries states from token to token some are kept for each sequence; where one is
    needed that is not there, the tokens since the nearest one run again.
    """

    def __init__(
        self,
        weights: Weights,
        cache_rows: int,
        tokens: int = 256,
        outputs: int = 8,
        precision: str = "auto",
        loras: Mapping[str, Source] | None = None,
        alpha: float = 0.0,
        decode: bool = False,
        context: int = 0,
        sequences: int = 0,
    ) -> None:
        """`loras` may also take the place of weights; their scale is `alpha` / rank, or 1 without it. `decode`: frozen
        weights are read decoded to 16 bits."""
        arch = architecture_of(weights.gguf)
        self._build, self._config, self._loras = arch.build, arch.read_config(weights.gguf), loras or {}
        self.tokens, self.outputs, self.vocab_size = tokens, outputs, self._config.vocab_size
        self.cache_rows = cache_rows
        self.weights, self._context = weights, context  # the plans read the weights' memory
        self._precision, self._alpha, self._decode = pick_precision(weights.device, precision), alpha, decode
        self._feeders: dict[int, _Feeder] = {}
        self._states = States(sequences or outputs, cache_rows)
        self.plan = self._feeder(tokens).plan

    def _feeder(self, tokens: int) -> _Feeder:
        if tokens not in self._feeders:
            few = bool(self._feeders)
            recorder = Recorder(
                self.weights, tokens, min(tokens, self.outputs) if few else self.outputs, self._precision, self._loras,
                self.cache_rows, self._alpha, caches=self.caches if few else (), context=self._context,
                state_rows=self._states.rows, states=self.states if few else (),
            )  # fmt: skip
            logits = recorder.logits(self._build(recorder, self._config))
            if not few:
                recorder.check()
                self.caches: list[Buffer] = recorder.caches
                self.states: list[Buffer] = recorder.states
            self._feeders[tokens] = _Feeder(recorder.inputs, Plan(recorder.graph, decode=self._decode), logits)
            recorder.graph.close()
        return self._feeders[tokens]

    def plan_all(self) -> int:
        """Makes all plans that feeds may need; what they and the cache take on the device, without weights."""
        for few in FEW:
            if few < self.tokens:
                self._feeder(few)
        stats = [feeder.plan.stats for feeder in self._feeders.values()]
        taken = sum(one.arena_bytes + one.scratch_bytes + one.input_bytes for one in stats)
        return taken + self.cache_bytes

    @property
    def cache_bytes(self) -> int:
        """Of the cache and the states."""
        return sum(buffer.nbytes for buffer in (*self.caches, *self.states))

    def logits(
        self, tokens: I32Array, positions: I32Array, lo: I32Array, hi: I32Array, slots: I32Array, index: I32Array
    ) -> F32Array:
        """(len(index), vocab) after the tokens at `index`; every array but that one is (T,)."""
        for first, start, stop in self._states.missing(lo, positions, self.tokens) if self.states else ():
            at = np.arange(start, stop, dtype=np.int32)
            begins, last = np.full_like(at, first), np.array([stop - start - 1], np.int32)
            self._run(self._states.said[first + at], at, begins, first + at + 1, first + at, last, passing=True)
        return self._run(tokens, positions, lo, hi, slots, index)

    def _run(
        self, tokens: I32Array, positions: I32Array, lo: I32Array, hi: I32Array, slots: I32Array, index: I32Array,
        passing: bool = False,
    ) -> F32Array:  # fmt: skip
        needed = max(len(tokens), len(index))
        feeder = self._feeder(min((few for few in FEW if needed <= few < self.tokens), default=self.tokens))
        places = (
            self._states.places(tokens, lo, positions, passing) if self.states else np.zeros((len(tokens), 2), np.int32)
        )
        feed = feeder.inputs.feed(
            tokens=tokens, positions=positions, seen=np.stack((lo, hi), axis=1), slots=slots, index=index, places=places
        )
        feeder.plan.run(feed)
        return feeder.plan.read(feeder.logits, len(index), self.vocab_size)

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies `rows` slots of the cache from `source` on to `target`: a sequence that another one begins with."""
        for cache in self.caches:
            row = cache.nbytes // self.cache_rows
            cache.write(cache.read(source * row, rows * row), target * row)
        if self.states and (places := self._states.copied(source, target, rows)):
            for state in self.states:
                row = state.nbytes // self._states.rows
                state.write(state.read(places[0] * row, row), places[1] * row)

    def close(self) -> None:
        """Frees the plans and the cache; the weights stay."""
        for feeder in self._feeders.values():
            feeder.plan.close()
        for buffer in (*self.caches, *self.states):
            buffer.close()


def open_weights(path: str, device: Device) -> Weights:
    """Maps a GGUF and checks that its architecture is one of ours."""
    gguf = GGUF.open(path)
    architecture_of(gguf)
    return Weights(gguf, device)
