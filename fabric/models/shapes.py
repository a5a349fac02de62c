"""The shapes that a decoder's tensors must have, by its keys and by each other; checked before anything is computed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fabric.errors import DataError
from fabric.weights.gguf import GGUF

if TYPE_CHECKING:
    from fabric.models.config import DecoderConfig

_BLOCK = re.compile(r"blk\.\d+\.(.+)")


def check_shapes(gguf: GGUF, config: DecoderConfig) -> None:
    """DataError for the first tensor of another shape than its model's, of those that a decoder here reads."""
    whole, block = _expected(gguf, config)
    for name, info in gguf.tensors.items():
        inside = _BLOCK.fullmatch(name)
        shape, why = block.get(inside[1], ((), "")) if inside else whole.get(name, ((), ""))
        found = info.shape[1:] if len(shape) == 1 and len(info.shape) == 2 and info.shape[0] == 1 else info.shape
        if shape and found != shape:
            raise DataError(f"{gguf.name}: the tensor {name} is {_by(found)}, not {_by(shape)} as {why} has it")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


Shapes = dict[str, tuple[tuple[int, ...], str]]


def _expected(gguf: GGUF, c: DecoderConfig) -> tuple[Shapes, Shapes]:
    """Shapes, and what asks for them: of the tensors outside blocks, and of those of a block."""
    arch, q, kv = gguf.architecture, c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    width, heads = f"{arch}.embedding_length", f"{arch}.attention.head_count"
    per_head = f"{arch}.attention.key_length" if f"{arch}.attention.key_length" in gguf.metadata else heads
    by_heads, by_kv = f"{heads} of {c.n_head} heads of {c.head_dim}", f"{c.n_kv_head} key heads of {c.head_dim}"
    whole: Shapes = {
        "token_embd.weight": ((c.vocab_size, c.width), width),
        "output.weight": ((c.vocab_size, c.width), "token_embd.weight"),
        "output.bias": ((c.vocab_size,), "token_embd.weight"),
        "output_norm.weight": ((c.width,), width),
    }
    block: Shapes = {
        "attn_q.weight": ((q, c.width), by_heads),
        "attn_q.bias": ((q,), by_heads),
        "attn_output.weight": ((c.width, q), by_heads),
        "attn_output.bias": ((c.width,), width),
    }
    for part in ("attn_k", "attn_v"):
        block |= {f"{part}.weight": ((kv, c.width), by_kv), f"{part}.bias": ((kv,), by_kv)}
    for part in ("attn_q_norm", "attn_k_norm"):
        block[f"{part}.weight"] = ((c.head_dim,), per_head)
    for part in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
        block[f"{part}.weight"] = ((c.width,), width)
    ffn = gguf.metadata.get(f"{arch}.feed_forward_length")
    ffn = ffn[0] if isinstance(ffn, list) and ffn else ffn  # equal in all layers, or refused by now
    if isinstance(ffn, int):
        why = f"{arch}.feed_forward_length"
        for part in ("ffn_gate", "ffn_up"):
            block |= {f"{part}.weight": ((ffn, c.width), why), f"{part}.bias": ((ffn,), why)}
        block |= {"ffn_down.weight": ((c.width, ffn), why), "ffn_down.bias": ((c.width,), width)}
    return whole, block
