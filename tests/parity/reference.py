"""The truth of parity tests: a GGUF in transformers and PEFT, its weights decoded by the gguf package. Pairs and
gradients go by the names and the row order that the GGUF has ("blk.0.attn_q.weight").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch.nn import functional
from torch.nn.utils.parametrize import register_parametrization

from tests.parity.architectures import ARCHITECTURES
from tests.parity.rows import Row
from tests.support.decoded import decoded

Array = npt.NDArray[np.float32]
Pairs = Mapping[str, tuple[Array, Array]]
"""By GGUF tensor name: A (rank, in) and B (out, rank), B's rows in GGUF order."""


def _to_pairs_order(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of q or k from halves (transformers) to interleaved pairs (GGUF)."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _to_halves_order(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Inverse of `_to_pairs_order`."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _whole(name: str) -> str:
    """The parameter of which a name may mean a half."""
    return name.partition("[")[0]


def _part(tensors: Mapping[str, Any], name: str) -> Any:
    """A tensor, or a half of its rows."""
    whole, half = tensors[_whole(name)], name[len(_whole(name)) :]
    return whole.chunk(2, dim=-2)[int(half[1])] if half else whole


class _Added(torch.nn.Module):
    """A weight, or a half of its rows, and a pair's change."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float, half: str) -> None:
        super().__init__()
        self.a, self.b, self.scale, self.half = torch.nn.Parameter(a), torch.nn.Parameter(b), scale, half

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B."""
        return self.a, self.b

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight."""
        change = (self.scale * (self.b @ self.a)).to(weight.dtype)
        if self.half:
            other = torch.zeros_like(change)
            change = torch.cat((change, other) if self.half == "[0]" else (other, change), dim=-2)
        return weight + change


class Reference:
    """A GGUF in PyTorch. `dtype` is that of the frozen weights and activations."""

    def __init__(self, path: str | Path, dtype: torch.dtype = torch.float32, attention: str = "eager") -> None:
        reader = gguf.GGUFReader(str(path))
        weights = {t.name: decoded(np.array(t.data), t.tensor_type) for t in reader.tensors}

        field = reader.get_field("general.architecture")
        assert field is not None
        kind = field.contents()
        self.architecture = arch = ARCHITECTURES[kind]

        def get(key: str, default: Any = None) -> Any:
            field = reader.get_field(f"{kind}.{key}")
            return default if field is None else field.contents()

        self.heads = get("attention.head_count")
        kv_heads = get("attention.head_count_kv", self.heads)
        self.kv_heads = max(kv_heads) if isinstance(kv_heads, list) else kv_heads
        self.head_dim = get("attention.key_length", get("embedding_length") // self.heads)
        self.layers, self.rotated = get("block_count"), get("rope.dimension_count", self.head_dim)
        self.orders = arch.orders(get)
        plain = {
            "vocab_size": weights["token_embd.weight"].shape[0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": get("context_length"),
            "tie_word_embeddings": "output.weight" not in weights,
            "pad_token_id": None,  # its row of the embedding would have no gradient
        }
        config = arch.config(**{**plain, **arch.settings(get)})
        config._attn_implementation = attention
        config._experts_implementation = "eager"
        self.dtype = dtype
        self.model: Any = arch.causal(config).to(dtype)
        self.model.requires_grad_(False)
        unset = dict(self.model.named_parameters())
        found = dict(unset)
        for name, values in self._state(weights):  # one by one: a state dictionary would double the memory
            part = _part(found, name)
            part.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(part.shape))
            unset.pop(_whole(name), None)
        if unset:
            raise ValueError(f"{path} has nothing for {', '.join(unset)}")
        for ours, theirs in arch.scalars.items():
            for i in range(self.layers):
                self.model.model.layers[i].get_buffer(theirs).fill_(float(weights[f"blk.{i}.{ours}.weight"][0]))
        for buffer, key in arch.ropes.items():
            scaled = key == "rope.freq_base"
            n_rot = self.rotated if scaled else get("rope.dimension_count_swa", self.rotated)
            self._set_frequencies(buffer, get(key, 10000.0), n_rot, weights, get if scaled else None)
        if dtype == torch.float64:
            self._keep_f64()
        self.scale = 0.0
        self._added: dict[str, _Added] = {}

    def _set_frequencies(self, buffer: str, base: float, n_rot: int, weights: Mapping[str, Array], get: Any) -> None:
        """After .to(dtype), which would have rounded them. `get`: metadata, where scaling applies."""
        frequencies = 1.0 / base ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
        if get is not None:
            length = "long" if buffer.startswith("long") else "short"
            for name in ("rope_freqs.weight", f"rope_factors_{length}.weight"):
                frequencies /= weights.get(name, np.ones(1))
            if get("rope.scaling.type", "none") == "linear":
                frequencies /= get("rope.scaling.factor")
            if get("rope.scaling.type", "none") == "yarn":
                frequencies *= self._yarn(n_rot, base, lambda key: get(f"rope.scaling.{key}"))
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        setattr(self.model.model.rotary_emb, buffer, torch.tensor(frequencies, dtype=kind))

    def _yarn(self, n_rot: int, base: float, get: Any) -> npt.NDArray[np.float64]:
        """What YaRN multiplies frequencies by."""
        turns = np.array([get("yarn_beta_fast"), get("yarn_beta_slow")])
        at = n_rot * np.log(get("original_context_length") / (turns * 2 * np.pi)) / (2 * np.log(base))
        low, high = max(np.floor(at[0]), 0), min(np.ceil(at[1]), n_rot - 1)
        share = np.clip((np.arange(n_rot // 2) - low) / (high - low), 0, 1)
        return 1 - share + share / get("factor")

    def _names(self) -> Iterator[tuple[str, str, float]]:
        """GGUF's and transformers' names of all weights that there may be, and by how much GGUF's are larger."""
        offset = self.architecture.norm_offset
        yield "token_embd.weight", "model.embed_tokens.weight", 0.0
        yield "output_norm.weight", "model.norm.weight", offset
        yield "output.weight", "lm_head.weight", 0.0
        yield from ((ours, theirs, 0.0) for ours, theirs in self.architecture.top.items())
        for i in range(self.layers):
            for ours, theirs in self.architecture.norms.items():
                yield f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight", offset
            for ours, theirs in self.architecture.modules.items():
                for kind in ("weight", "bias"):
                    yield f"blk.{i}.{ours}.{kind}", f"model.layers.{i}.{theirs}.{kind}", 0.0
            for ours, theirs in self.architecture.parameters.items():
                yield f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}", 0.0
            for ours, theirs in self.architecture.vectors.items():
                yield f"blk.{i}.{ours}", f"model.layers.{i}.{theirs}", 0.0

    def _state(self, weights: Mapping[str, Array]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for ours, theirs, offset in self._names():
            if ours in weights:
                values = weights[ours].astype(np.float64) - offset if offset else weights[ours]
                yield theirs, self._order(ours, self._order(ours, values, inverse=True), inverse=True, axis=1)
        for i in range(self.layers):
            for ours, theirs in self.architecture.minus_exp.items():
                if (name := f"blk.{i}.{ours}") in weights:
                    values = np.log(-weights[name].astype(np.float64))
                    yield f"model.layers.{i}.{theirs}", self._order(name, values, inverse=True)

    def _keep_f64(self) -> None:
        """transformers rounds to f32 inside norms and rotary tables whatever the model's type: not here."""
        offset = self.architecture.norm_offset

        def rotary_scale(rotary: Any) -> float:
            return float(getattr(rotary, "attention_scaling", 1.0))

        def table(x: torch.Tensor, position_ids: torch.Tensor, kind: str = "") -> tuple[torch.Tensor, torch.Tensor]:
            rotary, config = self._causal().model.rotary_emb, self._causal().config
            frequencies = getattr(rotary, f"{kind}_inv_freq" if kind else "inv_freq")
            if hasattr(rotary, "long_inv_freq") and position_ids.max() >= config.original_max_position_embeddings:
                frequencies = rotary.long_inv_freq
            places = position_ids[0, 0] if position_ids.ndim == 3 else position_ids[0]  # of text: all the same
            angles = places[:, None] * frequencies
            angles = torch.cat((angles, angles), -1)[None]
            return angles.cos() * rotary_scale(rotary), angles.sin() * rotary_scale(rotary)

        def norm(module: Any, eps: float, x: torch.Tensor) -> torch.Tensor:
            return (offset + getattr(module, "weight", 1.0)) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

        def route(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits = functional.linear(x, module.weight)
            top, index = logits.softmax(-1).topk(module.top_k)
            return logits, top / top.sum(-1, keepdim=True), index

        self.model.model.rotary_emb.forward = table
        for module in self.model.modules():
            if type(module).__name__.endswith("TopKRouter"):
                module.forward = partial(route, module)
            if type(module).__name__.endswith("RMSNorm"):
                eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
                module.forward = partial(norm, module, eps)

    def _order(self, name: str, rows: npt.NDArray[Any], inverse: bool, axis: int = 0) -> npt.NDArray[Any]:
        module = name.split(".")[2] if name.startswith("blk.") else ""
        if module in self.orders and self.orders[module][0] == axis:
            order = self.orders[module][1]
            return np.take(rows, np.argsort(order) if inverse else order, axis=axis)
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name.split(".")[-2])
        if heads is None or not self.architecture.interleaved or axis:
            return rows
        return _to_halves_order(rows, heads) if inverse else _to_pairs_order(rows, heads)

    # ---- whole weights ----

    def train_whole(self) -> None:
        """All weights train."""
        self.model.requires_grad_(True)
        fixed = tuple(self.architecture.minus_exp.values())
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not (fixed and name.endswith(fixed)))

    def weights(self) -> dict[str, Array]:
        """All weights as they are now, by GGUF name and in its row order; a tied head is there once."""
        trained = dict(self.model.named_parameters())
        return {
            ours: self._ours(ours, _part(trained, theirs)) + np.float32(offset)
            for ours, theirs, offset in self._names()
            if _whole(theirs) in trained
        }

    def weight_gradients(self) -> dict[str, Array]:
        """Gradients of all weights, of what the last `backward` was called on."""
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        return {
            ours: self._ours(ours, _part(grads, theirs)) for ours, theirs, _ in self._names() if _whole(theirs) in grads
        }

    def _ours(self, name: str, values: Any) -> Array:
        found = values.detach().float().numpy()
        found = (
            found[:, 0] if found.ndim == 3 and found.shape[1] == 1 else found
        )  # a convolution's, of one input a column
        return np.ascontiguousarray(self._order(name, self._order(name, found, False), False, axis=1)).copy()

    # ---- LoRA ----

    def add_lora(self, pairs: Pairs, alpha: float, dtype: torch.dtype | None = torch.float32) -> None:
        """Wraps the model in PEFT and sets A and B. They are held in `dtype` (None: the model's own)."""
        rank = next(iter(pairs.values()))[0].shape[-2]
        kind = self.dtype if dtype is None or self.dtype == torch.float64 else dtype
        modules, parameters = self.architecture.modules, self.architecture.parameters
        others = [name for name in pairs if _module(name) in parameters]
        names = sorted({modules[_module(name)] for name in pairs if name not in others})
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
        self.model = get_peft_model(self.model, config, autocast_adapter_dtype=False)
        self.scale = alpha / rank
        for name in others:
            self._add_to_parameter(name, pairs[name], kind)
        for name, (a, b) in pairs.items():
            if name in others:
                continue
            layer = self._layer(name)
            parts = (layer.lora_A, self._order(name, a, True, axis=1)), (layer.lora_B, self._order(name, b, True))
            for part, values in parts:
                part.default.weight = torch.nn.Parameter(torch.tensor(np.ascontiguousarray(values), dtype=kind))
        trained = sum(1 for p in self.model.parameters() if p.requires_grad)
        if trained != 2 * len(pairs):
            raise ValueError(
                f"{len(pairs)} pairs are given but PEFT trains {trained} matrices: give every layer's pair"
            )
        self._names = list(pairs)

    def _add_to_parameter(self, name: str, pair: tuple[Array, Array], dtype: torch.dtype) -> None:
        """W + scale B A where PEFT has no pairs that mean what these do: of experts one each, and of halves of rows."""
        _, block, module, _ = name.split(".")
        path = f"base_model.model.model.layers.{block}.{self.architecture.parameters[module]}"
        owner, _, parameter = _whole(path).rpartition(".")
        added = _Added(*(torch.tensor(values, dtype=dtype) for values in pair), self.scale, path[len(_whole(path)) :])
        register_parametrization(self.model.get_submodule(owner), parameter, added)
        self._added[name] = added

    def _layer(self, name: str) -> Any:
        module = self.architecture.modules[_module(name)]
        return self.model.get_submodule(f"base_model.model.model.layers.{name.split('.')[1]}.{module}")

    def pairs(self) -> dict[str, tuple[Array, Array]]:
        """The pairs as they are now."""
        return self._collect(lambda p: p)

    def gradients(self) -> dict[str, tuple[Array, Array]]:
        """Gradients of the pairs, of what the last `backward` was called on."""
        return self._collect(lambda p: p.grad)

    def _collect(self, pick: Any) -> dict[str, tuple[Array, Array]]:
        found = {}
        for name in self._names:
            layer = self._layer(name) if name not in self._added else None
            both = (layer.lora_A.default.weight, layer.lora_B.default.weight) if layer else self._added[name].both()
            a, b = (pick(p).detach().float().numpy() for p in both)
            a = self._order(name, a, inverse=False, axis=1).copy()
            found[name] = (a, np.ascontiguousarray(self._order(name, b, inverse=False)))
        return found

    # ---- forward ----

    def logits(self, tokens: Sequence[int]) -> Array:
        """(len(tokens), vocabulary)."""
        with torch.no_grad():
            out = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return out.float().numpy()

    def nll(self, row: Row) -> torch.Tensor:
        """(trained tokens) -log p of each target, differentiable."""
        tokens = torch.tensor(list(row.tokens))
        trained = torch.tensor(list(row.train[1:]), dtype=torch.bool).nonzero()[:, 0]
        hidden = self._decoder()(tokens[None, :], use_cache=False).last_hidden_state[0, trained]
        logits = self.architecture.logits(self._causal().config, self._causal().lm_head(hidden))
        return functional.cross_entropy(
            logits.to(max(self.dtype, torch.float32, key=_bits)), tokens[trained + 1], reduction="none"
        )

    def _causal(self) -> Any:
        return self.model if self.scale == 0.0 else self.model.base_model.model

    def _decoder(self) -> Any:
        return self._causal().model

    def backward(self, rows: Sequence[Row]) -> tuple[float, int]:
        """Adds gradients of the summed NLL; returns that sum and the number of trained tokens."""
        total, count = 0.0, 0
        for row in rows:
            nll = self.nll(row)
            nll.sum().backward()
            total, count = total + float(nll.detach().sum()), count + len(nll)
        return total, count

    def mean_nll(self, rows: Sequence[Row]) -> float:
        """Mean over all trained tokens of all rows."""
        with torch.no_grad():
            parts = [self.nll(row).double() for row in rows]
        return float(torch.cat(parts).mean())


def _module(name: str) -> str:
    """Of blk.N.MODULE.weight."""
    return ".".join(name.split(".")[2:-1])


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


@dataclass(frozen=True)
class Recipe:
    """How `train` trains: AdamW with decoupled decay, clipping by the global norm, cosine after a linear warm-up."""

    steps: int
    lr: float = 5e-4
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    lora_plus: float = 1.0  # rate of B over that of A

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        warm = math.ceil(self.warmup_ratio * self.steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass(frozen=True)
class Step:
    """What one optimizer step came to; `loss` is the mean over its trained tokens, before the update."""

    loss: float
    grad_norm: float
    lr: float


def train(reference: Reference, batches: Sequence[Sequence[Row]], recipe: Recipe) -> Iterator[Step]:
    """One optimizer step a batch: gradients are sums over trained tokens, divided once by the batch's count. Vectors
    do not decay. With LoRA+ the groups are those that PEFT makes."""
    parameters = [p for p in reference.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    if recipe.lora_plus != 1:
        optimizer = create_loraplus_optimizer(
            reference.model, torch.optim.AdamW, lr=recipe.lr, loraplus_lr_ratio=recipe.lora_plus,
            loraplus_weight_decay=recipe.weight_decay, betas=(0.9, 0.999), eps=1e-8, foreach=False,
        )  # fmt: skip
    times = [group["lr"] / recipe.lr for group in optimizer.param_groups]
    for i, rows in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        total, count = reference.backward(rows)
        for p in parameters:
            p.grad /= count
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.clip))
        for group, more in zip(optimizer.param_groups, times, strict=True):
            group["lr"] = recipe.rate(i) * more
        optimizer.step()
        yield Step(total / count, norm, recipe.rate(i))
