"""EXAONE 4.0 of 1.2 billion parameters: OLMo 2 with norms of each query and key head. Files of the larger one, most of
whose layers have a window, are refused.

LG AI Research 2025, https://arxiv.org/abs/2507.11407.
"""

from __future__ import annotations

from fabric.core import Tensor
from fabric.models import olmo2
from fabric.models.config import DecoderConfig as Config
from fabric.models.config import read_plain as read_config
from fabric.models.recorder import Recorder

__all__ = ["Config", "build", "read_config"]


def build(r: Recorder, c: Config) -> Tensor:
    """Normed hidden states (T, width)."""
    return olmo2.build(r, c, "rope_freqs.weight")
