"""If these fail, a run learns at another rate than it was told."""

from __future__ import annotations

import math

import pytest

from fabric.training.schedule import learning_rate


def rates(schedule: str, total: int = 20, warmup: float = 0.1) -> list[float]:
    return [learning_rate(s, total, 1.0, schedule, warmup) for s in range(1, total + 1)]  # type: ignore[arg-type]


def test_warm_up_rises_to_the_rate_and_no_further() -> None:
    assert rates("constant")[:3] == [0.5, 1.0, 1.0]
    assert max(rates("cosine")) == max(rates("linear")) == 1.0


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert rates(schedule, warmup=0.0)[0] == 1.0


def test_linear_and_cosine_fall_towards_zero() -> None:
    for schedule in ("linear", "cosine"):
        falling = rates(schedule)[2:]
        assert falling == sorted(falling, reverse=True)
        assert 0 < falling[-1] < 0.1


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert learning_rate(11, 20, 1.0, "cosine", 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
