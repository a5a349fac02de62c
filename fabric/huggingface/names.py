"""What an architecture's tensors are called in transformers and in GGUF, and how their rows are ordered in each.

A row here is all that a new architecture needs: its class names, and what differs from the common table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OURS_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Family:
    """One architecture: GGUF's name for it, transformers' classes, and its own names beside the common ones."""

    architecture: str
    classes: tuple[str, ...]
    layer: dict[str, str] = field(default_factory=dict)
    pairs_rope: bool = False  # GGUF holds the rows of q and k for rotation in pairs, transformers for halves
    norm_offset: float = 0.0  # added to norms: transformers adds it when it runs
    tied: bool = False  # whether the head is the embedding where config.json does not say

    def ours(self, name: str) -> str | None:
        """GGUF's name of a transformers tensor; None for what GGUF does not hold."""
        found = _IN_LAYER.fullmatch(name)
        if not found:
            return _TOP.get(name)
        module = {**_LAYER, **self.layer}.get(found[2])
        return f"blk.{found[1]}.{module}.{found[3]}" if module else None

    def theirs(self, name: str) -> str | None:
        """transformers' name of a GGUF tensor, None when there is none."""
        found = _OURS_IN_LAYER.fullmatch(name)
        if not found:
            return next((theirs for theirs, ours in _TOP.items() if ours == name), None)
        names = {ours: theirs for theirs, ours in {**_LAYER, **self.layer}.items()}
        return f"model.layers.{found[1]}.{names[found[2]]}.{found[3]}" if found[2] in names else None

    def reordered(self, name: str, rows: npt.NDArray[Any], heads: dict[str, int], back: bool = False) -> Any:
        """The rows of a tensor (GGUF's `name`) in GGUF's order, or `back` in transformers' order.

        heads: of "attn_q" and "attn_k".
        """
        n = heads.get(name.split(".")[2], 0) if self.pairs_rope and name.startswith("blk.") else 0
        if not n:
            return rows
        if rows.shape[0] % (2 * n):
            raise DataError(f"{name}: {rows.shape[0]} rows do not divide into {n} heads of even size")
        rest = rows.shape[1:]
        split = rows.reshape(n, -1, 2, *rest) if back else rows.reshape(n, 2, -1, *rest)
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


FAMILIES = (
    Family("llama", ("LlamaForCausalLM", "MistralForCausalLM"), pairs_rope=True),
    Family("qwen2", ("Qwen2ForCausalLM",)),
    Family("qwen3", ("Qwen3ForCausalLM",)),
    Family(
        "gemma3",
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        layer={
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        norm_offset=1.0,
        tied=True,
    ),
)


def family_of_class(name: str, where: str) -> Family:
    """By transformers' class; DataError when it is not supported."""
    for family in FAMILIES:
        if name in family.classes:
            return family
    known = ", ".join(c for family in FAMILIES for c in family.classes)
    raise DataError(f"{where}: models of class {name} cannot be converted; these can: {known}")


def family_of_architecture(name: str, where: str) -> Family:
    """By GGUF's architecture; DataError when it is not supported."""
    for family in FAMILIES:
        if name == family.architecture:
            return family
    raise DataError(f"{where}: architecture '{name}' has no counterpart in PEFT here")
