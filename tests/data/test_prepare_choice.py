"""Which rows prepare keeps, and where they go: filters, duplicates, balance, split and shuffle."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data.prepare import prepare
from fabric.data.settings import HoldOut, PrepareSettings
from fabric.errors import DataError, OutputError, UsageError
from tests.data.preparing import chat, prepared, run, write


def texts(records: list[dict[str, Any]]) -> list[str]:
    return [record["text"] for record in records]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(count: int) -> list[dict[str, Any]]:
    """A third of them each of a, b and c."""
    return [{"text": f"row {i}", "label": "abc"[i % 3]} for i in range(count)]


def test_lengths_count_all_the_contents_of_a_record(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "é" * n} for n in (2, 3, 5, 6)] + [{"prompt": "ab", "completion": "cd"}])
    records, report = run(PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), min_chars=3, max_chars=5))
    assert records == [{"text": "ééé"}, {"text": "ééééé"}, chat("ab", "cd")]
    assert (report.too_short, report.too_long) == (1, 1)


def test_duplicates_are_told_by_content_and_kept_unless_asked(tmp_path: Path) -> None:
    same = {"content": "Hi", "role": "user"}, {"content": "Hello", "role": "assistant"}
    rows = [
        {"prompt": "Hi", "completion": "Hello", "id": 1},
        {"messages": list(same), "id": 2},
        {"prompt": "Hi", "completion": "Hello "},
        {"prompt": "HiHello", "completion": "x"},
    ]
    assert len(prepared(tmp_path / "a.jsonl", rows)) == 4
    records = prepared(tmp_path / "a.jsonl", rows, drop_duplicates=True)
    assert [record.get("id") for record in records] == [1, None, None]
    assert len(prepared(tmp_path / "a.jsonl", rows, drop_duplicates=True, normalize=True)) == 2


def test_balance_keeps_as_many_of_each_value_as_the_rarest_has(tmp_path: Path) -> None:
    labels = ["yes"] * 30 + ["no"] * 7 + [True] * 9
    write(tmp_path / "a.jsonl", [{"text": f"{i}", "label": label} for i, label in enumerate(labels)])
    settings = PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), balance="label")
    records, report = run(settings)
    assert Counter(record["label"] for record in records) == {"yes": 7, "no": 7, True: 7}
    assert report.unbalanced == 25
    assert texts(records) == sorted(texts(records), key=int), "the order of the rows is kept"
    assert run(settings)[0] == records
    assert run(dataclasses.replace(settings, seed=1))[0] != records
    assert run(dataclasses.replace(settings, keep=()))[0] == [{"text": text} for text in texts(records)]


def test_rows_that_cannot_be_divided_are_bad_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b"}, {"text": "c", "label": ["x"]}]
    with pytest.raises(DataError, match=r"a.jsonl:2: rows are divided by 'label'"):
        prepared(tmp_path / "a.jsonl", rows, balance="label")
    records = prepared(tmp_path / "a.jsonl", rows, balance="label", on_error="skip")
    assert texts(records) == ["a"]


def test_shuffling_loses_nothing_and_follows_the_seed(tmp_path: Path) -> None:
    rows = rows_of(200)
    first = prepared(tmp_path / "a.jsonl", rows, shuffle=True)
    assert first != rows and sorted(texts(first)) == sorted(texts(rows))
    assert prepared(tmp_path / "a.jsonl", rows, shuffle=True) == first
    assert prepared(tmp_path / "a.jsonl", rows, shuffle=True, seed=1) != first


def test_held_out_files_get_their_fraction_of_each_value_and_share_no_row(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows_of(300))
    parts = (HoldOut(str(tmp_path / "val.jsonl"), 0.1), HoldOut(str(tmp_path / "test.jsonl"), 0.2))
    settings = PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), hold_out=parts, stratify="label")
    rest, report = run(settings)
    val, test = read(tmp_path / "val.jsonl"), read(tmp_path / "test.jsonl")
    assert report.held_out == {parts[0].path: 30, parts[1].path: 60} and len(rest) == 210
    for part, each in ((val, 10), (test, 20), (rest, 70)):
        assert Counter(record["label"] for record in part) == {"a": each, "b": each, "c": each}
        assert part == sorted(part, key=lambda record: int(record["text"][4:]))
    assert sorted(texts(rest + val + test)) == sorted(texts(rows_of(300)))
    run(dataclasses.replace(settings, shuffle=True))
    assert read(tmp_path / "val.jsonl") != val and sorted(texts(read(tmp_path / "val.jsonl"))) == sorted(texts(val))


def test_the_same_rows_are_held_out_in_whatever_order_they_come(tmp_path: Path) -> None:
    rows = rows_of(100)
    held = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        prepared(tmp_path / "a.jsonl", rows, hold_out=(HoldOut(str(tmp_path / "val.jsonl"), 0.15),))
        held.append(sorted(texts(read(tmp_path / "val.jsonl"))))
    assert held[0] == held[1] == held[2] and len(held[0]) == 15


def test_copies_of_a_row_never_lie_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = [{"text": f"row {i % 10}", "id": i} for i in range(200)]
    for seed in range(5):
        parts = tuple(HoldOut(str(tmp_path / f"{i}.jsonl"), 0.25) for i in range(2))
        rest = prepared(tmp_path / "a.jsonl", rows, hold_out=parts, seed=seed, shuffle=True)
        sides = [set(texts(rest)), *(set(texts(read(Path(part.path)))) for part in parts)]
        assert sum(map(len, sides)) == 10 and set.union(*sides) == {f"row {i}" for i in range(10)}


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fractions=st.lists(st.sampled_from([0.05, 0.1, 1 / 3, 0.29, 0.45]), min_size=1, max_size=2),
    stratify=st.sampled_from([None, "label"]),
    seed=st.integers(0, 9),
)
def test_fractions_hold_for_any_mixture_of_values(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], fractions: list[float], stratify: str, seed: int
) -> None:
    base = tmp_path_factory.getbasetemp()
    rows = [{"text": f"{label} {i}", "label": label} for label, count in enumerate(counts) for i in range(count)]
    parts = tuple(HoldOut(str(base / f"{i}.jsonl"), fraction) for i, fraction in enumerate(fractions))
    write(base / "split.jsonl", rows)
    settings = PrepareSettings(inputs=(str(base / "split.jsonl"),), hold_out=parts, stratify=stratify, seed=seed)
    try:
        rest, report = run(settings)
    except DataError as error:
        wanted = [round(fraction * len(rows)) for fraction in fractions]
        assert ("hold out more" in str(error) and 0 in wanted) or ("is left" in str(error) and sum(wanted) >= len(rows))
        return
    sides = [rest, *(read(Path(part.path)) for part in parts)]
    assert sorted(texts([record for side in sides for record in side])) == sorted(texts(rows))
    assert list(report.held_out.values()) == [round(fraction * len(rows)) for fraction in fractions]
    for side, fraction in zip(sides[1:], fractions, strict=True):
        for label, count in enumerate(counts):
            share = sum(record["label"] == label for record in side) - fraction * count
            assert stratify is None or abs(share) < (1 if len(parts) == 1 else 2)


def test_a_run_that_fails_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows_of(20), {"bad": 1}])
    held = tmp_path / "val.jsonl"
    held.write_text("before\n")
    settings = PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), hold_out=(HoldOut(str(held), 0.1),))
    with pytest.raises(DataError, match=r"a.jsonl:21"):
        prepare(settings, io.BytesIO())
    with pytest.raises(DataError, match="hold out more"):
        few = (HoldOut(str(held), 0.001),)
        prepare(dataclasses.replace(settings, hold_out=few, on_error="skip"), io.BytesIO())
    assert held.read_text() == "before\n" and len(list(tmp_path.iterdir())) == 2
    missing = (HoldOut(str(tmp_path / "no" / "val.jsonl"), 0.1),)
    with pytest.raises(OutputError, match="cannot be written"):
        prepare(dataclasses.replace(settings, hold_out=missing, on_error="skip"), io.BytesIO())


def test_a_full_disk_under_the_waiting_rows_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x" * 100_000}])
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(Path("/dev/full").open, "wb"))
    with pytest.raises(OutputError, match=r"keeping the rows in .* failed: no space left on device"):
        run(PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), shuffle=True))


def test_a_result_without_rows_says_where_they_went(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "a"}, {"text": "ab"}, {"no": 1}])
    settings = PrepareSettings(inputs=(str(tmp_path / "a.jsonl"),), on_error="skip", min_chars=2, max_chars=9)
    assert run(settings)[1].written == 1
    with pytest.raises(DataError, match=r"none of the 4 rows is left \(1 bad, 3 too short\); .*a.jsonl:4: the fields"):
        run(dataclasses.replace(settings, min_chars=5))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hold_out": (HoldOut("v", 0.0),)}, "fractions"),
        ({"hold_out": (HoldOut("v", 0.5), HoldOut("w", 0.5))}, "fractions"),
        ({"hold_out": (HoldOut("v", float("nan")),)}, "fractions"),
        ({"hold_out": (HoldOut("v", 0.1), HoldOut("v", 0.1))}, "two outputs are v"),
        ({"prompt_template": "{prompt"}, "other half"),
        ({"prompt_template": "Answer: {{prompt}}"}, "names no field"),
        ({"stratify": "label"}, "divides nothing"),
        ({"min_chars": 5, "max_chars": 4}, "no row has"),
        ({"inputs": ("-", "-")}, "stdin"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        prepare(PrepareSettings(**settings), io.BytesIO())
