"""What a user loses if this fails: an answer would depend on how many tokens a feed happens to have."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from fabric.core import Device
from fabric.models.inference import Decoder, open_weights
from tests.cli.conftest import tiny
from tests.support.compare import relative_error

__all__ = ["tiny"]


def test_logits_are_the_same_however_tokens_are_fed(tiny: Path) -> None:
    """Feeds of few tokens have plans of their own, over the same cache."""
    ids = np.random.default_rng(1).integers(3, 60, 40).astype(np.int32)
    whole = np.arange(40, dtype=np.int32)
    with contextlib.closing(Device("cpu")) as device, contextlib.closing(open_weights(str(tiny), device)) as weights:
        found = []
        for sizes in ([40], [21, 1, 2, 3, 4, 5, 1, 3], [1] * 8 + [32], [8, 7, 9, 16]):
            decoder = Decoder(weights, cache_rows=40, tokens=40, outputs=40, precision="f32")
            parts, first = [], 0
            for size in sizes:
                at = whole[first : first + size]
                parts.append(decoder.logits(ids[at], at, np.zeros_like(at), at + 1, at, whole[:size]))
                first += size
            decoder.close()
            found.append(np.concatenate(parts))
    for got in found[1:]:
        assert relative_error(got, found[0]) < 1e-5
