"""How rows become steps and packs: nothing lost, nothing doubled, the same on every machine."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.pack import build_feed, pack_in_order, plan_epoch, shuffled

CAPACITY = 64

lengths = st.lists(st.integers(1, CAPACITY), max_size=60)
plans = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 20),
        "capacity": st.just(CAPACITY),
        "accumulate": st.integers(1, 8),
        "pack": st.booleans(),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**63),
        "epoch": st.integers(0, 100),
    }
)


@settings(deadline=None)
@given(lengths, plans)
def test_every_row_is_trained_once_an_epoch(lengths: list[int], plan: dict[str, Any]) -> None:
    steps = plan_epoch(lengths, **plan)
    assert Counter(row for step in steps for micro in step for row in micro) == Counter(range(len(lengths)))
    sizes = [sum(map(len, step)) for step in steps]
    assert all(size == plan["batch"] for size in sizes[:-1]) and all(0 < size <= plan["batch"] for size in sizes)
    assert all(micro for step in steps for micro in step)


@settings(deadline=None)
@given(lengths, plans)
def test_no_pack_is_longer_than_its_capacity(lengths: list[int], plan: dict[str, Any]) -> None:
    for step in plan_epoch(lengths, **plan):
        for micro in step:
            assert sum(lengths[row] for row in micro) <= CAPACITY
            assert plan["pack"] or len(micro) == 1


@settings(deadline=None)
@given(lengths, plans)
def test_a_step_has_the_micro_batches_asked_for(lengths: list[int], plan: dict[str, Any]) -> None:
    for step in plan_epoch(lengths, **plan):
        assert len(step) >= min(plan["accumulate"], sum(map(len, step)))


@settings(deadline=None)
@given(lengths, plans, st.integers(2, 5))
def test_ranks_divide_every_step_evenly(lengths: list[int], plan: dict[str, Any], ranks: int) -> None:
    parts = [plan_epoch(lengths, **plan, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, *shares in zip(plan_epoch(lengths, **plan), *parts, strict=True):
        owned = [[row for micro in share for row in micro] for share in shares]
        assert Counter(row for rows in owned for row in rows) == Counter(row for micro in step for row in micro)
        loads = [sum(lengths[row] for row in rows) for rows in owned]
        assert max(loads) - min(loads) <= max(lengths)


@settings(deadline=None)
@given(lengths, plans)
def test_the_layout_never_changes_which_rows_make_a_step(lengths: list[int], plan: dict[str, Any]) -> None:
    def members(**other: Any) -> list[set[int]]:
        return [{row for micro in step for row in micro} for step in plan_epoch(lengths, **{**plan, **other})]

    assert members() == members(pack=not plan["pack"]) == members(accumulate=1) == members(capacity=10 * CAPACITY)
    assert plan_epoch(lengths, **plan) == plan_epoch(lengths, **plan)


@settings(deadline=None)
@given(lengths, plans)
def test_packs_waste_less_than_half_of_their_room(lengths: list[int], plan: dict[str, Any]) -> None:
    for step in plan_epoch(lengths, **{**plan, "pack": True, "accumulate": 1}):
        used = sum(lengths[row] for micro in step for row in micro)
        assert len(step) == 1 or used > len(step) * CAPACITY / 2


@settings(deadline=None)
@given(lengths, plans)
def test_packs_are_those_of_the_first_fit_longest_first(lengths: list[int], plan: dict[str, Any]) -> None:
    for step in plan_epoch(lengths, **{**plan, "pack": True}):
        rows = sorted((row for micro in step for row in micro), key=lambda row: (-lengths[row], row))
        packs: list[list[int]] = [[row] for row in rows[: plan["accumulate"]]]
        for row in rows[plan["accumulate"] :]:
            fit = (pack for pack in packs if sum(lengths[r] for r in pack) + lengths[row] <= CAPACITY)
            pack = next(fit, None)
            if pack is None:
                packs.append(pack := [])
            pack.append(row)
        assert step == packs


def test_many_rows_are_packed_in_a_time_that_grows_with_their_number() -> None:
    lengths, began = [200 + row * 7919 % 300 for row in range(60_000)], time.process_time()
    packs = pack_in_order(lengths, 512)
    whole = plan_epoch(
        lengths, batch=60_000, capacity=512, accumulate=1, pack=True, shuffle=False, seed=0, epoch=0
    )  # fmt: skip
    assert sorted(row for pack in packs for row in pack) == list(range(60_000)) and len(whole) == 1
    assert time.process_time() - began < 20, "looking through all packs for each row takes minutes"


def test_short_rows_share_a_pack() -> None:
    plan = {"batch": 8, "capacity": 64, "accumulate": 1, "shuffle": False, "seed": 0, "epoch": 0}
    assert plan_epoch([32] * 4, pack=True, **plan) == [[[0, 1], [2, 3]]]  # type: ignore[arg-type]
    assert plan_epoch([8] * 8, pack=True, **plan) == [[list(range(8))]]  # type: ignore[arg-type]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(shuffled(100, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9 and all(sorted(order) == list(range(100)) for order in orders)
    first = Counter(shuffled(4, 0, epoch)[0] for epoch in range(400))
    assert all(60 < first[row] < 140 for row in range(4)), "no row is always early"


def test_the_order_of_rows_is_the_same_on_every_machine_and_version() -> None:
    assert shuffled(8, 42, 0) == [7, 1, 0, 6, 3, 2, 5, 4]


def test_without_a_shuffle_rows_come_as_they_lie_in_the_file() -> None:
    steps = plan_epoch([5] * 10, batch=4, capacity=5, accumulate=1, pack=True, shuffle=False, seed=1, epoch=3)
    assert [[row for micro in step for row in micro] for step in steps] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


class Row(NamedTuple):
    tokens: npt.NDArray[np.int32]
    train: npt.NDArray[np.uint8]


rows = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=8
)


@settings(deadline=None)
@given(rows)
def test_packed_rows_cannot_see_each_other_and_predict_their_own_tokens(rows: list[list[tuple[int, bool]]]) -> None:
    feed = build_feed(
        [Row(np.array([t for t, _ in row], np.int32), np.array([m for _, m in row], np.uint8)) for row in rows]
    )
    tokens, positions, lo, targets = [], [], [], []
    for row in rows:
        start = len(tokens)
        tokens += [token for token, _ in row]
        positions += range(len(row))
        lo += [start] * len(row)
        targets += [(start + i - 1, token) for i, (token, trained) in enumerate(row) if i and trained]
    assert feed.tokens.tolist() == tokens
    assert feed.positions.tolist() == positions
    assert feed.seen.tolist() == [[first, at + 1] for at, first in enumerate(lo)]
    assert list(zip(feed.index.tolist(), feed.targets.tolist(), strict=True)) == targets
    assert {array.dtype for array in feed} == {np.dtype(np.int32)}
