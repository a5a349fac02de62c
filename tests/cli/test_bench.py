"""`fabric bench`: a step of several rows, in as many micro-batches as asked for."""

import contextlib
import json
from pathlib import Path

import pytest

from fabric.weights.gguf import GGUF
from tests.cli.shell import fabric, one_sentence


def launches(model: Path, *flags: str) -> tuple[int, int]:
    """Tokens of a step, and how often attention ran in it."""
    done = fabric("bench", "-m", model, "--ctx", "8", "--batch", "4", "--steps", "1", "--json", *flags)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert next(op["launches"] for op in told["decode_ops"] if op["op"] == "append") > 0
    return told["tokens"], next(op["launches"] for op in told["ops"] if op["op"] == "attention_dq")


def test_rows_of_a_step_run_in_the_micro_batches_asked_for(tiny: Path) -> None:
    whole, halves = launches(tiny), launches(tiny, "--rows-at-once", "2")
    assert whole[0] == halves[0] == 32
    assert halves[1] == 2 * whole[1] > 0


@pytest.mark.parametrize(
    "flags",
    [["--ctx", "2147483647"], ["--ctx", "8", "--batch", "2147483647"],
     ["--ctx", "8", "--batch", "2147483647", "--rows-at-once", "1"]],
)  # fmt: skip
def test_what_cannot_fit_is_refused_before_any_of_it_is_taken(flags: list[str], tiny: Path) -> None:
    one_sentence(fabric("bench", "-m", tiny, *flags, timeout=30), 69, "GiB of memory", "lower --ctx")


def test_a_context_beyond_memory_is_refused_before_it_is_planned(tiny: Path) -> None:
    """Planning takes long for so many tokens, so the inputs of all blocks, which any plan keeps, are weighed first."""
    done = fabric("bench", "-m", tiny, "--ctx", "2000000000", timeout=30)
    one_sentence(done, 69, "needs at least", "GiB of memory", "lower --ctx")
    with contextlib.closing(GGUF.open(tiny)) as gguf:
        blocks, width = (gguf.get(f"llama.{key}", int) for key in ("block_count", "embedding_length"))
    needed = float(done.err.split("at least ")[1].split(" GiB")[0])
    assert blocks > 1 and needed >= 2e9 * blocks * width * 2 / 2**30
