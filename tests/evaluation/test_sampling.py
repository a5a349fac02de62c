from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fabric.errors import DataError
from fabric.generation.sampling import pick, uniform
from fabric.generation.settings import GenerateSettings

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))


def shares(draws: int = 4000, **settings: Any) -> dict[int, float]:
    chosen = GenerateSettings("m.gguf", **{"temperature": 1.0, **settings})
    counts = Counter(pick(LOGITS, chosen, row, 7) for row in range(draws))
    return {token: count / draws for token, count in counts.items()}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    assert shares() == pytest.approx({0: 0.05, 1: 0.4, 2: 0.1, 3: 0.3, 4: 0.15}, abs=0.03)
    hot = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    assert shares(temperature=2.0) == pytest.approx(dict(enumerate(hot)), abs=0.03)


def test_top_k_and_top_p_leave_out_the_unlikely() -> None:
    assert shares(top_k=2) == pytest.approx({1: 4 / 7, 3: 3 / 7}, abs=0.03)
    assert shares(top_p=0.75) == pytest.approx({1: 0.4 / 0.85, 3: 0.3 / 0.85, 4: 0.15 / 0.85}, abs=0.03)
    assert shares(top_p=0.01) == {1: 1.0}
    assert shares(top_k=2, top_p=0.5) == {1: 1.0}  # of the two, the first alone has more than half


def test_min_p_leaves_out_what_is_far_less_likely_than_the_likeliest() -> None:
    assert shares(min_p=0.3) == pytest.approx({1: 0.4 / 0.85, 3: 0.3 / 0.85, 4: 0.15 / 0.85}, abs=0.03)
    assert shares(min_p=1.0) == {1: 1.0}
    assert shares(min_p=0.3, top_p=0.5) == pytest.approx({1: 4 / 7, 3: 3 / 7}, abs=0.03)


def test_a_nucleus_larger_than_what_is_sorted_first_is_found_whole() -> None:
    flat, settings = np.zeros(4096, np.float32), GenerateSettings("m.gguf", temperature=1.0, top_p=0.5)
    flat[::2] = 0.1
    found = {pick(flat, settings, row, 0) for row in range(1000)}
    assert len(found) > 700 and all(token % 2 == 0 for token in found)


def test_a_repetition_penalty_moves_said_tokens_towards_unlikely_whatever_their_sign() -> None:
    settings = GenerateSettings("m.gguf", repeat_penalty=2.0, repeat_window=2)
    logits = np.array([1.0, 1.5, -1.0, -1.9], np.float32)
    assert pick(logits, settings, 0, 0, [1]) == 0
    assert pick(logits[2:], settings, 0, 0, [0]) == 1
    assert pick(logits, settings, 0, 0, [1, 3, 3]) == 1  # said too long ago


def test_temperature_zero_is_the_likeliest() -> None:
    assert shares(50, temperature=0.0) == {1: 1.0}


def test_numbers_depend_on_seed_row_and_position_alone() -> None:
    found = {uniform(seed, row, at) for seed in range(5) for row in range(5) for at in range(5)}
    assert len(found) == 125 and all(0 <= value < 1 for value in found)
    assert uniform(1, 2, 3) == uniform(1, 2, 3)


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="not numbers"):
        pick(np.array([0.0, np.nan], np.float32), GenerateSettings("m.gguf"), 0, 0)
