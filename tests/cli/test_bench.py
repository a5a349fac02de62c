"""`fabric bench`: a step of several rows, in as many micro-batches as asked for."""

import json
from pathlib import Path

import pytest

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
