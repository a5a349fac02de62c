"""What a user loses if this fails: an answer would depend on how many tokens a feed happens to have."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from fabric.core import Device
from fabric.models.inference import Decoder, open_weights
from tests.support.compare import relative_error
from tests.support.random_models import write_model
from tests.support.shapes import SMALL

pytest.importorskip("gguf", reason="the small models are written by the gguf package")


@pytest.mark.parametrize("name", ["llama", "lfm2", "gemma4", "qwen35"])
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


@pytest.mark.parametrize("name", ["llama", "lfm2", "qwen35"])
def test_sequences_go_on_from_any_position_beside_others(name: str, tmp_path: Path) -> None:
    """As answers to one prompt do, and candidates on top of it; two sequences in a feed."""
    model = write_model(tmp_path / "m.gguf", SMALL[name])
    ids = np.random.default_rng(2).integers(3, 60, (2, 20)).astype(np.int32)
    with contextlib.closing(Device("cpu")) as device, contextlib.closing(open_weights(str(model), device)) as weights:
        decoder = Decoder(weights, cache_rows=40, tokens=24, outputs=2, precision="f32")
        single = Decoder(weights, cache_rows=20, tokens=1, outputs=1, precision="f32")

        def last(*parts: tuple[int, int, int]) -> np.ndarray:
            """Logits after tokens [start, stop) of each sequence."""
            at = np.concatenate([np.arange(start, stop, dtype=np.int32) for _, start, stop in parts])
            which = np.repeat([one for one, _, _ in parts], [stop - start for _, start, stop in parts])
            first = (which * 20).astype(np.int32)
            ends = np.cumsum([stop - start for _, start, stop in parts]).astype(np.int32) - 1
            return decoder.logits(ids[which, at], at, first, first + at + 1, first + at, ends)

        want = {(one, stop): last((one, 0, stop))[0] for one in (0, 1) for stop in (9, 12, 20)}
        for parts in (
            [(0, 0, 9), (1, 0, 12)], [(1, 12, 20), (0, 9, 20)], [(0, 8, 9), (1, 11, 12)], [(0, 9, 12)], [(0, 3, 20)],
            [(1, 8, 9), (0, 19, 20)], [(1, 9, 12)],
        ):  # fmt: skip
            for (one, _, stop), got in zip(parts, last(*parts), strict=True):
                assert relative_error(got, want[one, stop]) < 1e-5
        zero = np.zeros(1, np.int32)
        for at in [*range(12), 8, 3, *range(4, 20)]:  # a token at a time, back and on again
            slot = np.array([at], np.int32)
            got = single.logits(ids[0, slot], slot, zero, slot + 1, slot, zero)[0]
            if (0, at + 1) in want:
                assert relative_error(got, want[0, at + 1]) < 1e-5
        decoder.close()
        single.close()
