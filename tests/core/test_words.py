"""Merging in the core against the slow way of saying the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.core.merging import Words

ALPHABET = "ab é😀"


def slow(word: str, ranks: dict[str, int], ids: dict[str, int], joint: str, byte_ids: list[int] | None) -> list[int]:
    """The lowest rank of all pairs, again and again, of equals the leftmost."""
    symbols = list(word)
    while True:
        pairs = [a + joint + b for a, b in pairwise(symbols)]
        at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], 1 << 30), default=None)
        if at is None or pairs[at] not in ranks:
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        if symbol in ids:
            found.append(ids[symbol])
        elif byte_ids is not None:
            found += [byte_ids[byte] for byte in symbol.encode()]
        else:
            found += [ids[c] for c in symbol if c in ids]
    return found


keys = st.lists(st.text(ALPHABET, max_size=5), max_size=40)


@settings(max_examples=400, deadline=None)
@given(keys, st.sampled_from(["", " "]), st.booleans(), st.lists(st.text(ALPHABET), min_size=1), st.randoms())
def test_a_word_is_merged_best_pair_first(
    texts: list[str], joint: str, by_byte: bool, words: list[str], random: object
) -> None:
    ranks = [random.choice([-1, 0, 1, 2, 3, 4]) for _ in texts]  # type: ignore[attr-defined]
    ids = [random.choice([-1, 7, 8, 9]) for _ in texts]  # type: ignore[attr-defined]
    first_rank: dict[str, int] = {}
    first_id: dict[str, int] = {}
    for text, rank, number in zip(texts, ranks, ids, strict=True):
        if rank >= 0:
            first_rank.setdefault(text, rank)
        if number >= 0:
            first_id.setdefault(text, number)
    byte_ids = [1000 + byte for byte in range(256)] if by_byte else None
    table = Words(texts, np.array(ranks, np.int64), np.array(ids, np.int64), joint, byte_ids)
    for word in [*words, "".join(words) * 3]:
        assert table(word) == slow(word, first_rank, first_id, joint, byte_ids)


@pytest.mark.parametrize("length", [255, 256, 257, 100_000])
def test_words_of_any_length_are_merged(length: int) -> None:
    powers = ["a" * 2**i for i in range(18)]
    table = Words(powers, np.arange(18), np.arange(18))
    ids = table("a" * length)
    assert sum(2**i for i in ids) == length and len(ids) < 20 + length // 2**17


def test_a_word_of_bytes_only_has_room() -> None:
    table = Words([], np.zeros(0), np.zeros(0), byte_ids=list(range(256)))
    assert table("") == []
    assert bytes(table("😀" * 1000)).decode() == "😀" * 1000
