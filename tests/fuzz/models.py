"""Models as a whole for the fuzzer: small GGUF files whose sizes, formats and numbers are drawn at random, some of them
then bent, and what is done with each: record, plan, train, score and decode, as the commands do.

How an input is run (threads, instruction set, limits, precision, rows) is drawn from its bytes, so that one file is all
that has to be kept of what went wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from fabric.core import Device
from fabric.data.pack import build_feed
from fabric.errors import DataError, DeviceError, FabricError, UsageError
from fabric.models import architecture_of, architectures
from fabric.models.inference import Decoder, Scorer, frozen_loras
from fabric.models.recorder import Weights
from fabric.text.encode import Example
from fabric.training.machine import Machine
from fabric.training.parameters import drawn, fill, full_layout, lora_layout, of_base
from fabric.training.settings import RunSettings
from fabric.weights.adapter import Adapter, LoraPair
from fabric.weights.formats import FORMATS, can_decode
from fabric.weights.gguf import GGUF, TensorSpec, write_gguf

LETTERS = [*"abcdefgh", "Ġ", "ab", "<s>", "</s>"]
ISAS = ("generic", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16")
SIZES = (0, 1, -1, 2, 3, 7, 8, 31, 33, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) + 1, 33_554_464)
VALUES: tuple[object, ...] = (*SIZES, 0.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), True, "", [1], [2, 2])

Metadata = dict[str, object]
Shapes = dict[str, tuple[int, ...]]


# ---- files ----


def made(rng: random.Random) -> bytes:
    """A file whose keys and tensors fit together, or (every other one) are bent in one place or two."""
    metadata, shapes = sound(rng)
    if rng.random() < 0.5:
        bend(rng, metadata, shapes)
    types = {name: kind_of(rng, shape) for name, shape in shapes.items()}
    specs = [TensorSpec(name, types[name], shape) for name, shape in shapes.items()]
    out = io.BytesIO()
    try:
        write_gguf(out, metadata, specs, [numbers(rng, spec) for spec in specs])
    except (FabricError, ArithmeticError, ValueError, struct.error):  # what cannot be written is no input
        return made(rng)
    return out.getvalue()


def sound(rng: random.Random) -> tuple[Metadata, Shapes]:
    """Keys and shapes of a model of one or two blocks."""
    arch, kv, blocks = rng.choice(architectures()), rng.choice([1, 1, 2, 3]), rng.choice([1, 2])
    heads, head_dim = kv * rng.choice([1, 1, 2, 4]), rng.choice([1, 2, 6, 8, 13, 16, 32, 33, 64, 80, 256, 1030])
    if head_dim > 100:
        heads = kv = 1
    width, ffn = rng.choice([1, 8, 32, 40, 64, 96, 256]), rng.choice([1, 8, 33, 64, 256, 288])
    vocab, q, k, n_rot = rng.choice([12, 13, 64, 257]), heads * head_dim, kv * head_dim, max(2, head_dim // 2 * 2)
    metadata: Metadata = {
        "general.architecture": arch, f"{arch}.block_count": blocks, f"{arch}.embedding_length": width,
        f"{arch}.context_length": 64, f"{arch}.feed_forward_length": ffn, f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv, f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim, f"{arch}.rope.dimension_count": rng.choice([2, n_rot]),
        f"{arch}.attention.layer_norm_rms_epsilon": rng.choice([1e-5, 1e-30]), f"{arch}.rope.freq_base": 1e4,
        "tokenizer.ggml.tokens": LETTERS, "general.alignment": rng.choice([32, 32, 8]),
    }  # fmt: skip
    if arch == "gemma3":
        metadata |= {f"{arch}.attention.sliding_window": rng.choice([1, 3, 64]),
                     f"{arch}.attention.sliding_window_pattern": rng.choice([1, 2])}  # fmt: skip
    convolves = [arch == "lfm2" and rng.random() < 0.6 for _ in range(blocks)]
    taps = rng.choice([1, 2, 3, 4, 8])
    if arch == "lfm2":
        metadata |= {
            f"{arch}.shortconv.l_cache": taps,
            f"{arch}.attention.head_count_kv": [kv * (not c) for c in convolves],
        }
    experts, used = rng.choice([1, 2, 5, 8]), rng.choice([1, 2, 3])
    if arch == "qwen3moe":
        metadata |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": min(used, experts),
                     f"{arch}.expert_feed_forward_length": ffn}  # fmt: skip
    norm = "token_embd_norm.weight" if arch == "lfm2" else "output_norm.weight"
    shapes: Shapes = {"token_embd.weight": (vocab, width), norm: (width,)}
    if rng.random() < 0.5:
        shapes["output.weight"] = (vocab, width)
    for block in range(blocks):
        rows: dict[str, tuple[int, ...]] = {
            "attn_q": (q, width), "attn_k": (k, width), "attn_v": (k, width), "attn_output": (width, q),
            "ffn_gate": (ffn, width), "ffn_up": (ffn, width), "ffn_down": (width, ffn),
        }  # fmt: skip
        if arch == "qwen3moe":
            rows = {f"{name}_exps" if "ffn" in name else name: (experts, *shape) if "ffn" in name else shape
                    for name, shape in rows.items()}  # fmt: skip
            rows["ffn_gate_inp"] = (experts, width)
        if convolves[block]:
            rows = {name: shape for name, shape in rows.items() if name.startswith("ffn")}
            rows |= {"shortconv.in_proj": (3 * width, width), "shortconv.out_proj": (width, width),
                     "shortconv.conv": (width, taps)}  # fmt: skip
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in rows.items()}
        if arch == "qwen2" or rng.random() < 0.2:
            shapes |= {f"blk.{block}.{name}.bias": rows[name][:1] for name in ("attn_q", "attn_k", "attn_v", "ffn_up")
                       if name in rows}  # fmt: skip
        norms = {"attn_norm": width, "ffn_norm": width}
        if arch in ("qwen3", "qwen3moe", "gemma3", "lfm2") and not convolves[block]:
            norms |= {"attn_q_norm": head_dim, "attn_k_norm": head_dim}
        if arch == "gemma3":
            norms |= {"post_attention_norm": width, "post_ffw_norm": width}
        shapes |= {f"blk.{block}.{name}.weight": (size,) for name, size in norms.items()}
    return metadata, shapes


def bend(rng: random.Random, metadata: Metadata, shapes: Shapes) -> None:
    """Other values under some keys, other shapes of some tensors, or none at all."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        kind, key, name = rng.randrange(5), rng.choice([*metadata]), rng.choice([*shapes])
        if kind == 0:
            metadata[key] = rng.choice(VALUES)
        elif kind == 1 and type(metadata[key]) is int:
            metadata[key] = int(str(metadata[key])) + rng.choice([-1, 1, 32])
        elif kind == 2:
            shape = list(shapes[name])
            shape[rng.randrange(len(shape))] = rng.choice([1, 2, 7, 12, 32, 64, 100, 350])
            shapes[name] = tuple(shape)
        elif kind == 3:
            shapes[name] = rng.choice([(1,), (64,), (4, 8), (8, 4), (1, 1, 1), (2, 32, 2), (32, 32)])
        elif rng.random() < 0.5:
            metadata.pop(key)
        else:
            shapes.pop(name)
            shapes.setdefault("token_embd.weight", (12, 8))


def kind_of(rng: random.Random, shape: tuple[int, ...]) -> int:
    """A type that the core reads and whose blocks divide the rows, F32 most often."""
    fit = [t for t, row in FORMATS.items() if can_decode(t) and shape[-1] % row.block == 0]
    return 0 if rng.random() < (0.4 if len(shape) > 1 else 0.8) else rng.choice(fit)


def numbers(rng: random.Random, spec: TensorSpec) -> bytes:
    """Small floats, or any bits at all: infinities, NaN, scales out of all bounds."""
    if spec.type == 0 and rng.random() < 0.7:
        values = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(spec.nbytes // 4)
        return (values / 4).astype(np.float32).tobytes()
    return rng.randbytes(spec.nbytes)


# ---- what is done with one ----


@cache
def isas() -> tuple[str, ...]:
    """The instruction sets of this processor."""
    found = []
    for isa in ISAS:
        with contextlib.suppress(DeviceError):
            Device("cpu", threads=1, isa=isa).close()
            found.append(isa)
    return tuple(found)


@contextlib.contextmanager
def refusals(checked: bool) -> Iterator[None]:
    """Lets what is said of a file, of settings or of a device pass; anything else is a mistake of ours. Where shapes
    were not checked, the core itself has to refuse what does not fit together."""
    said = (DataError, DeviceError, UsageError) if checked else (FabricError,)
    try:
        yield
    except said as error:
        assert "\n" not in str(error), f"an error of several lines: {error!r}"


def use(folder: Path, data: bytes) -> None:
    """Everything that the commands compute with a model."""
    rng, path = random.Random(zlib.crc32(data)), folder / "any.gguf"
    path.write_bytes(data)
    checked = rng.random() < 0.5
    limits = {"max_binding_bytes": rng.choice([0, 0, 0, 2048, 1 << 14]),
              "max_allocation_bytes": 0, "max_reduction": rng.choice([0, 0, 32])}  # fmt: skip
    with refusals(checked), GGUF.open(path) as file, contextlib.ExitStack() as stack:
        if not checked:
            modules = [importlib.import_module(f"fabric.models.{name}") for name in ("config", *architectures())]
            for module in modules:
                if hasattr(module, "check_shapes"):
                    stack.enter_context(patch.object(module, "check_shapes", lambda *_, **__: None))
        config = architecture_of(file).read_config(file)
        device = Device("cpu", rng.choice([1, 2, 3]), rng.choice(isas()), **limits)
        stack.callback(device.close)
        weights = Weights(file, device)
        stack.callback(weights.close)
        precision, vocab = rng.choice(["f32", "bf16"]), config.vocab_size
        uses: list[Callable[[], object]] = [
            lambda: train(rng, weights, precision, vocab),
            lambda: score(rng, weights, precision, vocab),
            lambda: decode(rng, weights, precision, vocab),
        ]
        for one in uses:
            with refusals(checked):
                one()


def rows_of(rng: random.Random, capacity: int, vocab: int) -> list[Example]:
    """Rows of random tokens that fit into a feed together."""
    found, left = [], rng.choice([capacity, capacity, rng.randint(2, max(2, capacity))])
    while left > 1:
        n = min(left, rng.choice([2, 3, 9, 40, 300]))
        tokens = np.array([rng.randrange(vocab) for _ in range(n)], np.int32)
        found.append(Example(tokens, np.array([rng.random() < 0.7 for _ in range(n - 1)] + [True], np.uint8), "", n))
        left -= n
    return found


def train(rng: random.Random, weights: Weights, precision: str, vocab: int) -> None:
    """Two steps of LoRA pairs or of whole weights."""
    full, capacity = rng.random() < 0.5, rng.choice([2, 5, 33, 70, 300])
    settings = RunSettings(
        data="", model="", full=full, rank=rng.choice([1, 3, 8, 40]), precision=precision,  # type: ignore[arg-type]
        epochs=1, lr=1e-3, batch=8, ctx=512,
        dropout=0 if full else rng.choice([0, 0.5]), neftune=rng.choice([0, 5]), checkpointing=rng.random() < 0.5,
        optimizer=rng.choice(["adamw", "sgd"]), val=rng.choice([None, "x"]), weights=rng.choice(["blocks", "16bit"]),
        modules=(rng.choice(["usual", "all"]),),
    )  # fmt: skip
    layout = full_layout(weights) if full else lora_layout(weights.gguf, settings.modules, settings.rank)
    with contextlib.closing(Machine(settings, weights, layout, settings.alpha, [capacity])) as machine:
        fill(layout, machine.params, of_base(weights.gguf) if full else drawn(1))
        machine.optimizer.lr = 1e-3
        for step in (1, 2):
            machine.optimizer.t = step
            rows = rows_of(rng, machine.capacity, vocab)
            machine.plan.step([machine.feed(rows, list(range(len(rows))), step)], machine.optimizer)
        if machine.scorer:
            machine.scorer.run(machine.feed(rows))


def adapters(rng: random.Random, weights: Weights) -> list[tuple[Adapter, float]]:
    """None, or one that fits a matrix."""
    names = [name for name, info in weights.gguf.tensors.items() if "attn_q.weight" in name and len(info.shape) == 2]
    if not names or rng.random() < 0.5:
        return []
    rank, (rows, cols) = rng.choice([1, 7]), weights.gguf.tensors[names[0]].shape
    pair = LoraPair(np.ones((rank, cols), np.float32), np.ones((rows, rank), np.float32))
    return [(Adapter(weights.gguf.architecture, 8.0, {names[0]: pair}), 0.5)]


def score(rng: random.Random, weights: Weights, precision: str, vocab: int) -> None:
    """Likelihoods of a feed."""
    capacity = rng.choice([2, 9, 33, 130])
    with contextlib.closing(
        Scorer(weights, capacity, precision, frozen_loras(weights, adapters(rng, weights)))
    ) as scorer:
        scorer.nll(build_feed(rows_of(rng, capacity, vocab)))


def decode(rng: random.Random, weights: Weights, precision: str, vocab: int) -> None:
    """A prompt and a few tokens after it, over a cache."""
    room, most = rng.choice([8, 40]), rng.choice([1, 4, 12])
    loras = frozen_loras(weights, adapters(rng, weights))
    with contextlib.closing(Decoder(weights, room, most, 2, precision, loras)) as decoder:
        at = 0
        while at < room:
            n = min(rng.choice([1, most]), room - at)
            slots = np.arange(at, at + n, dtype=np.int32)
            tokens = np.array([rng.randrange(vocab) for _ in range(n)], np.int32)
            index = np.array([n - 1] * rng.choice([0, 1, 2]), np.int32)
            decoder.logits(tokens, slots, np.zeros(n, np.int32), slots + 1, slots, index)
            at += n
        decoder.copy(0, room // 2, room // 2)
