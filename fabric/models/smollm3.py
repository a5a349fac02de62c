"""SmolLM 3: llama, but every fourth layer does not turn its queries and keys by position.

Hugging Face 2025, https://huggingface.co/blog/smollm3; layers without positions: https://arxiv.org/abs/2501.18795.
"""

from __future__ import annotations

from fabric.core import Tensor
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain as read_config
from fabric.models.llama import attention, mlp
from fabric.models.recorder import NOTHING, Recorder

__all__ = ["Config", "build", "read_config"]

WITHOUT_ROPE = 4  # every so many layers; files have no key for it


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    x = r.embed()
    rope = r.rope_table(c.inv_freq, c.magnitude)
    for i in range(c.n_layers):
        r.graph.mark()
        x = attention(r, c, f"blk.{i}", x, rope if (i + 1) % WITHOUT_ROPE else None)
        x = mlp(r, c, f"blk.{i}", x, scaled=NOTHING)  # llama.cpp applies no scales of these matrices
    r.graph.mark()
    return r.rms_norm(x, "output_norm", c.rms_eps)
