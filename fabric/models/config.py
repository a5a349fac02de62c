"""What every decoder's metadata says, read from a GGUF with its defaults and checked against the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError
from fabric.models.keys import Keys
from fabric.weights.gguf import GGUF

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # LongRoPE's divisors of frequencies
_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
Shapes = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes in elements; `inv_freq` (n_rot / 2,) in radians a position, before `rope_freqs.weight` divides it.
    `magnitude` is what RoPE multiplies queries and keys by beside turning them.
    """

    n_layers: int
    width: int
    n_head: int
    n_kv_head: int
    head_dim: int
    rms_eps: float
    inv_freq: npt.NDArray[np.float32]
    magnitude: float
    vocab_size: int
    context_length: int


YARN_FAST, YARN_SLOW = 32.0, 1.0  # turns; files of most architectures cannot say others
MOST_HEAD_DIM = 1 << 16  # far beyond any; tables are made of it before a tensor is looked at


def read_plain(gguf: GGUF, row_norms: bool = False) -> DecoderConfig:
    """The configuration of an architecture without keys of its own. `row_norms`: as in `read_decoder`."""
    with Keys(gguf) as keys:
        config = read_decoder(gguf, keys, row_norms=row_norms)
        check_attention_scale(keys, config.head_dim**-0.5)
    return config


def read_decoder(
    gguf: GGUF, keys: Keys, activation: tuple[str, ...] = ("silu", "swish"), row_norms: bool = False,
    fused: bool = False, experts: bool = False,
) -> DecoderConfig:  # fmt: skip
    """The configuration of a llama-like decoder. `activation`: names of the one that its gate has. `row_norms`: norms
    of queries and keys are over whole rows, not over heads. `fused`: queries, keys and values are rows of one matrix,
    gate and up of another. `experts`: a mixture of them, which `read_experts` reads. Where `keys.layered`, `n_kv_head`
    is the largest, and shapes are left to be checked.

    Raises DataError where keys are missing, do not fit together, or ask for what is not supported.
    """
    if not experts:
        keys.check_dense()
    n_layers, width = keys.size("block_count", most=len(gguf.tensors) + 1), keys.size("embedding_length")
    n_head = keys.uniform("attention.head_count", n_layers)
    if keys.layered:
        n_kv_head = max(keys.each("attention.head_count_kv", n_layers, n_head, least=0))
    else:
        n_kv_head = keys.uniform("attention.head_count_kv", n_layers, n_head)
        keys.uniform("feed_forward_length", n_layers, 1)
    if "attention.key_length" not in keys and width % n_head:
        raise keys.wrong("attention.key_length", "a size")
    head_dim = keys.size("attention.key_length", width // n_head, most=MOST_HEAD_DIM)
    n_rot = keys.size("rope.dimension_count", head_dim)
    if not n_kv_head or n_head % n_kv_head:
        raise DataError(f"{gguf.name}: {n_head} heads cannot share {n_kv_head} key heads")
    keys.only("attention.value_length", head_dim, why=f"differs from the {head_dim} of keys", each=True)
    if n_rot % 2 or n_rot > head_dim:
        raise keys.error("rope.dimension_count", f"is {n_rot}, which does not fit heads of {head_dim} dimensions")
    context_length = keys.size("context_length", 2048)
    if not keys.windows and 0 < keys.size("attention.sliding_window", 0, least=0) < context_length:
        raise keys.error("attention.sliding_window", f"is not supported in a {gguf.architecture} model")
    keys.only("hidden_activation", "", *activation)
    inv_freq, magnitude = _rope(keys, n_rot, context_length)
    config = DecoderConfig(
        n_layers=n_layers, width=width, n_head=n_head, n_kv_head=n_kv_head, head_dim=head_dim,
        rms_eps=keys.number("attention.layer_norm_rms_epsilon", most=1.0),
        inv_freq=inv_freq, magnitude=magnitude, vocab_size=_vocab_size(gguf), context_length=context_length,
    )  # fmt: skip
    if not keys.layered:
        check_shapes(gguf, config, row_norms, fused)
    return config


def read_experts(gguf: GGUF, keys: Keys, c: DecoderConfig) -> int:
    """How many experts a token has, of a mixture whose weights are a softmax of the logits of those; DataError where
    the file asks for another kind, or a matrix has another shape."""
    count, used = keys.size("expert_count"), keys.size("expert_used_count")
    ffn = keys.size("expert_feed_forward_length")
    if used > count:
        raise keys.error("expert_used_count", f"is {used}, but there are {count} experts")
    keys.only("expert_shared_count", 0, why="is not supported here")
    keys.only("expert_gating_func", 1, why="is not supported here: weights of experts are a softmax, which is 1")
    keys.only("expert_weights_norm", True, why="is not supported here: weights of experts sum to 1")
    keys.only("expert_weights_scale", 0.0, 1.0, why="is not supported here: weights of experts sum to 1")
    by_count, by_ffn = f"{gguf.architecture}.expert_count", f"{gguf.architecture}.expert_feed_forward_length"
    own: Shapes = {
        "ffn_gate_inp.weight": ((count, c.width), by_count),
        "ffn_down_exps.weight": ((count, c.width, ffn), by_ffn),
    }
    own |= dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight"), ((count, ffn, c.width), by_ffn))
    check_shapes(gguf, c, own=lambda _: own)
    return used


def check_attention_scale(keys: Keys, scale: float) -> None:
    """DataError where the file asks for another factor of the attention scores than the architecture has."""
    keys.only("attention.scale", 0, scale, why=f"is not supported: attention scores are multiplied by {scale:g} here")


def inverse_frequencies(keys: Keys, key: str, n_rot: int) -> npt.NDArray[np.float32]:
    """(n_rot / 2,) of the RoPE base under `key`, 10,000 where there is none."""
    base = keys.number(key, 10000.0)
    if base < 1:
        raise keys.wrong(key, "a RoPE base of at least 1")
    return (1.0 / base ** (np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)).astype(np.float32)


def _rope(keys: Keys, n_rot: int, context_length: int) -> tuple[npt.NDArray[np.float32], float]:
    """Inverse frequencies (n_rot / 2,) and the factor of queries and keys. A factor alone means linear scaling."""
    plain = inverse_frequencies(keys, "rope.freq_base", n_rot)
    kind = keys.text("rope.scaling.type", "")
    known = ("", "none", "linear", *(() if keys.windows else ("yarn",)), *(("longrope",) if keys.longrope else ()))
    if kind not in known:
        names = ", ".join(f"'{name}'" for name in known[1:])
        raise keys.error("rope.scaling.type", f"is '{kind}', which is not supported here; supported are {names}")
    old = keys.number("rope.scale_linear", 1.0)  # the name before llama.cpp's rope.scaling.*
    factor = keys.number("rope.scaling.factor", *([] if kind in ("linear", "yarn") and old == 1.0 else [old]))
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        share = _yarn_share(keys, n_rot, context_length)
        damped = keys.number("rope.scaling.yarn_log_multiplier", 0.0, above=-1.0) if keys.own_yarn else 0.0
        magnitude *= yarn_magnitude(factor) / yarn_magnitude(factor, damped)
        return (plain * (1 - share + share / factor)).astype(np.float32), magnitude
    return plain / np.float32(1.0 if kind == "none" else factor), magnitude


def yarn_magnitude(factor: float, share: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by where positions are divided by `factor`; `share` of the effect."""
    return 1.0 + 0.1 * share * math.log(max(factor, 1.0))


def _yarn_share(keys: Keys, n_rot: int, context_length: int) -> npt.NDArray[np.float64]:
    """(n_rot / 2,) how far each frequency is interpolated, 0 to 1: a ramp between the dimensions that turn 32 times and
    once within the original context, or as often as the file says. Peng et al. 2023, https://arxiv.org/abs/2309.00071
    """
    keys.only("rope.scaling.yarn_ext_factor", -1.0, 1.0)
    bounds = []
    for key, turns in (("rope.scaling.yarn_beta_fast", YARN_FAST), ("rope.scaling.yarn_beta_slow", YARN_SLOW)):
        bounds.append(keys.number(key, turns) if keys.own_yarn else turns)
        keys.only(key, bounds[-1], why=f"is not supported: YaRN has {turns:g} here, as llama.cpp does")
    base = keys.number("rope.freq_base", 10000.0, above=1.0)
    original = keys.size("rope.scaling.original_context_length", context_length)

    def dimension(turns: float) -> float:
        return n_rot * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(bounds[0])), 0), min(math.ceil(dimension(bounds[1])), n_rot - 1)
    return np.clip((np.arange(n_rot // 2) - low) / max(high - low, 0.001), 0.0, 1.0)


def _vocab_size(gguf: GGUF) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DataError(f"{gguf.name}: tensor token_embd.weight is missing")
    n_tokens = len(gguf.get("tokenizer.ggml.tokens", list, []))
    if n_tokens > embedding.shape[0]:
        raise DataError(f"{gguf.name}: {n_tokens} tokens but only {embedding.shape[0]} rows of token_embd.weight")
    return embedding.shape[0]


def check_shapes(
    gguf: GGUF, config: DecoderConfig, row_norms: bool = False, fused: bool = False,
    own: Callable[[int], Shapes] = lambda _: {},
) -> None:  # fmt: skip
    """DataError for the first tensor of another shape than its model's, of those that a decoder here reads.
    `row_norms`, `fused`: as in `read_decoder`; `own`: what a layer has beside that, or in its place; of -1: what lies
    outside layers."""
    whole, block = _expected(gguf, config, row_norms, fused)
    layers = {-1: {**whole, **own(-1)}}
    for name, info in gguf.tensors.items():
        inside = _BLOCK.fullmatch(name)
        layer = int(inside[1]) if inside else -1
        if layer not in layers:
            layers[layer] = {**block, **own(layer)}
        shape, why = layers[layer].get(inside[2] if inside else name, ((), ""))
        found = info.shape[1:] if len(shape) == 1 and len(info.shape) == 2 and info.shape[0] == 1 else info.shape
        if shape and found != shape:
            raise DataError(f"{gguf.name}: the tensor {name} is {_by(found)}, not {_by(shape)} as {why} has it")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _expected(gguf: GGUF, c: DecoderConfig, row_norms: bool, fused: bool) -> tuple[Shapes, Shapes]:
    """Shapes, and what asks for them: of the tensors outside blocks, and of those of a block."""
    arch, q, kv = gguf.architecture, c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    width, heads = f"{arch}.embedding_length", f"{arch}.attention.head_count"
    per_head = f"{arch}.attention.key_length" if f"{arch}.attention.key_length" in gguf.metadata else heads
    by_heads, by_kv = f"{heads} of {c.n_head} heads of {c.head_dim}", f"{c.n_kv_head} key heads of {c.head_dim}"
    whole: Shapes = {
        "token_embd.weight": ((c.vocab_size, c.width), width),
        "output.weight": ((c.vocab_size, c.width), "token_embd.weight"),
        "output.bias": ((c.vocab_size,), "token_embd.weight"),
        **dict.fromkeys(("output_norm.weight", "token_embd_norm.weight"), ((c.width,), width)),
        **dict.fromkeys(
            ("rope_freqs.weight", LONG, SHORT), ((c.inv_freq.size,), f"RoPE of {2 * c.inv_freq.size} dimensions")
        ),
    }
    block: Shapes = {
        "attn_q.weight": ((q, c.width), by_heads),
        "attn_q.bias": ((q,), by_heads),
        "attn_qkv.weight": ((q + 2 * kv, c.width), f"{by_heads} and {by_kv}"),
        "attn_output.weight": ((c.width, q), by_heads),
        "attn_output.bias": ((c.width,), width),
    }
    for part in ("attn_k", "attn_v"):
        block |= {f"{part}.weight": ((kv, c.width), by_kv), f"{part}.bias": ((kv,), by_kv)}
    if row_norms:
        block |= {"attn_q_norm.weight": ((q,), by_heads), "attn_k_norm.weight": ((kv,), by_kv)}
    else:
        block |= {f"{part}.weight": ((c.head_dim,), per_head) for part in ("attn_q_norm", "attn_k_norm")}
    for part in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
        block[f"{part}.weight"] = ((c.width,), width)
    block["attn_sub_norm.weight"] = ((q,), by_heads)
    ffn = gguf.metadata.get(f"{arch}.feed_forward_length")
    ffn = ffn[0] if isinstance(ffn, list) and ffn else ffn  # equal in all layers, or refused by now
    if isinstance(ffn, int):
        why = f"{arch}.feed_forward_length"
        for part in ("ffn_gate", "ffn_up"):
            block |= {f"{part}.weight": ((ffn, c.width), why), f"{part}.bias": ((ffn,), why)}
        block["ffn_sub_norm.weight"] = ((ffn,), why)
        if fused:
            block["ffn_up.weight"] = ((2 * ffn, c.width), why)
        block |= {"ffn_down.weight": ((c.width, ffn), why), "ffn_down.bias": ((c.width,), width)}
    return whole, block
