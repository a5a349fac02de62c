"""That the flags of `generate` reach the sampler, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.shell import fabric

HOT = ("--temperature", "1.5")


def answers(tiny: Path, rows: Path, *flags: str) -> list[str]:
    line = ("generate", rows, "-m", tiny, "--precision", "f32", "--max-tokens", "12")
    done = fabric(*line, *flags)
    assert done.code == 0, done.err
    return [json.loads(row)["answer"] for row in done.out.splitlines()]


def test_what_leaves_one_token_to_choose_is_greedy_and_the_rest_is_not(tiny: Path, rows: Path) -> None:
    greedy = answers(tiny, rows)
    for flags in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert answers(tiny, rows, *HOT, *flags) == greedy
    warm = answers(tiny, rows, *HOT)
    assert warm != greedy
    assert answers(tiny, rows, *HOT, "--batch", "3") == warm, "rows depend on those that decode beside them"
    assert answers(tiny, rows, *HOT, "--seed", "7") != warm
    assert answers(tiny, rows, "--repeat-penalty", "1e6") != greedy
    assert answers(tiny, rows, "--repeat-penalty", "1e6", "--repeat-window", "0") == greedy


def test_choices_are_numbered_rows_and_end_before_a_stop_text(tiny: Path, rows: Path) -> None:
    whole = answers(tiny, rows, *HOT, "--choices", "2")
    assert len(whole) == 24 and len(set(whole)) == 24
    letter = max("abcdefghijklmnopqrstuvwxyz ", key=lambda c: sum(c in answer for answer in whole))
    cut = answers(tiny, rows, *HOT, "--choices", "2", "--stop", letter, "--stop", "\n")
    assert cut == [answer.split(letter)[0].split("\n")[0] for answer in whole] != whole
