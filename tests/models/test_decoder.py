"""What a user loses if this fails: an answer would depend on how many tokens a feed happens to have."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from fabric.core import Device
from fabric.models.inference import Decoder, open_weights
from tests.support.compare import relative_error
from tests.support.random_models import SMALL, write_model

pytest.importorskip("gguf", reason="the small models are written by the gguf package")


@pytest.mark.parametrize("name", ["llama", "lfm2", "gemma4"])
def test_logits_are_the_same_however_tokens_are_fed(name: str, tmp_path: Path) -> None:
    """Feeds of few tokens have plans of their own, over the same cache, in which another sequence may lie before."""
    model = write_model(tmp_path / "m.gguf", SMALL[name])
    ids = np.random.default_rng(1).integers(3, 60, 40).astype(np.int32)
    whole = np.arange(40, dtype=np.int32)
    with contextlib.closing(Device("cpu")) as device, contextlib.closing(open_weights(str(model), device)) as weights:
        found = []
        for sizes in ([40], [21, 1, 2, 3, 4, 5, 1, 3], [1] * 8 + [32], [8, 7, 9, 16]):
            decoder = Decoder(weights, cache_rows=80, tokens=40, outputs=40, precision="f32")
            parts, first, start = [], 0, 0
            for size in sizes:
                at, slots = whole[first : first + size], whole[first : first + size] + start
                lo = np.full_like(at, start)
                parts.append(decoder.logits(ids[at], at, lo, slots + 1, slots, whole[:size]))
                first += size
                if first > 7 and not start:  # goes on from a copy
                    decoder.copy(0, 40, first)
                    start = 40
            decoder.close()
            found.append(np.concatenate(parts))
    for got in found[1:]:
        assert relative_error(got, found[0]) < 1e-5
