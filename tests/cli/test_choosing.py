"""Settings that are left open follow from the model and the rows, are said and kept, and give way to a flag."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from fabric.training.defaults import BATCHES, EPOCHS, RATES, batch_of, epochs_of, rate_of
from tests.cli.shell import Ended, fabric, one_sentence
from tests.support.edited import edited
from tests.support.paths import REPOSITORY

CHOSEN = re.compile(r"(?m)^(?:fabric train: )?((?:lr|epochs|batch|ctx) \S+.*: .*)$")


def chosen(ended: Ended) -> list[str]:
    """What a run says that it chose."""
    assert ended.code == 0, ended.err
    return CHOSEN.findall(ended.err)


def planned(*arguments: str | Path, cwd: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of a dry run, and what it says of them."""
    ended = fabric("train", *arguments, "--dry-run", "--json", cwd=cwd)
    return json.loads(ended.out)["settings"] if ended.code == 0 else {}, chosen(ended)


def token_rows(path: Path, *tokens: int) -> Path:
    """Rows of tokens, all of which train but the first."""
    rows = [{"tokens": [5 + i % 7 for i in range(n)], "train": [0] + [1] * (n - 1)} for n in tokens]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_open_setting_is_chosen_and_said_in_a_line(tiny: Path, rows: Path, tmp_path: Path) -> None:
    settings, said = planned(rows, "-m", tiny, cwd=tmp_path)
    assert (settings["lr"], settings["epochs"], settings["batch"], settings["ctx"]) == (1e-3, 3, 4, 512)
    assert (settings["rank"], settings["alpha"]) == (16, 32)
    assert len(said) == 4 and said[1:3] == ["epochs 3: 12 rows", "batch 4: 12 rows"]
    assert re.fullmatch(r"lr 1e-3: LoRA, [\d,.]+[MB]? parameters", said[0])
    assert re.fullmatch(r"ctx 512: the longest row has \d+ tokens", said[3])
    full, said = planned(rows, "-m", tiny, "--full", "--steps", "2", "--ctx", "64", cwd=tmp_path)
    assert full["lr"] == 5e-5 and full["ctx"] == 64 and "rank" not in full
    assert said[0].startswith("lr 5e-5: all weights, ") and said[1:] == ["batch 4: 12 rows"]
    flags = ["--lr", "3e-3", "--epochs", "2", "--batch", "3", "--ctx", "64"]
    given, said = planned(rows, "-m", tiny, *flags, cwd=tmp_path)
    assert (given["lr"], given["epochs"], given["batch"], given["ctx"], said) == (3e-3, 2, 3, 64, [])


def test_the_longest_row_decides_the_context_within_bounds(tiny: Path, tmp_path: Path) -> None:
    many = token_rows(tmp_path / "many.jsonl", *[9] * 120)
    long = token_rows(tmp_path / "long.jsonl", 700)
    longer = token_rows(tmp_path / "longer.jsonl", 3000, 9)
    base = edited(tiny, tmp_path / "base.gguf", {"llama.context_length": 1024})
    settings, said = planned(many, "-m", base, "--val", long, cwd=tmp_path)
    assert settings["ctx"] == 700
    assert said[1:] == ["epochs 3: 120 rows", "batch 4: 120 rows", "ctx 700: the longest row has 700 tokens"]
    settings, said = planned(longer, "-m", base, cwd=tmp_path)
    assert settings["ctx"] == 1024 and said[-1] == "ctx 1024: the most without --ctx"


def test_what_was_chosen_is_kept_and_equals_the_same_flags(tiny: Path, rows: Path, tmp_path: Path) -> None:
    train = ("train", rows, "-m", tiny, "--rank", "2", "--run-dir")
    assert len(chosen(fabric(*train, "open", cwd=tmp_path))) == 4
    flags = ["--lr", "1e-3", "--epochs", "3", "--batch", "4", "--ctx", "512"]
    assert chosen(fabric(*train, "given", *flags, cwd=tmp_path)) == []
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("open", "given")]
    assert runs[0]["fingerprints"] == runs[1]["fingerprints"]
    assert [runs[0]["settings"][name] for name in ("lr", "epochs", "batch", "ctx")] == [1e-3, 3, 4, 512]
    assert (tmp_path / "open/adapter.gguf").read_bytes() == (tmp_path / "given/adapter.gguf").read_bytes()
    history = json.loads(fabric("inspect", tmp_path / "open/adapter.gguf", "--json").out)["history"][-1]["settings"]
    assert [history[name] for name in ("lr", "epochs", "batch", "ctx")] == [1e-3, 3, 4, 512]
    resumed = fabric("resume", "open", "--epochs", "4", cwd=tmp_path)
    assert chosen(resumed) == [] and "going on from step 9 to 12" in resumed.err


def test_what_was_given_and_what_is_chosen_must_go_together(tiny: Path, rows: Path, tmp_path: Path) -> None:
    one_sentence(fabric("train", rows, "-m", tiny, "--lr-min", "0.1", cwd=tmp_path), 2, "--lr-min", "--lr 0.001")
    one_sentence(fabric("train", rows, "-m", tiny, "--stride", "4000", cwd=tmp_path), 2, "4000", "--ctx")


def test_the_rules_are_monotone_and_the_page_states_them() -> None:
    sizes, counts = [10**n for n in range(5, 13)], [1, 499, 500, 1999, 2000, 10**6]
    for full in (False, True):
        assert all(a >= b for a, b in pairwise(rate_of(size, full) for size in sizes))
    assert [epochs_of(rows) for rows in counts] == [3, 3, 2, 2, 1, 1]
    assert [batch_of(rows) for rows in counts] == [4, 4, 8, 8, 16, 16]
    page = (REPOSITORY / "docs/choosing-settings.md").read_text(encoding="utf-8")
    *rates, last = [(f"below {below / 1e9:g} billion ", f"{lora:.0e}", f"{full:.0e}") for below, lora, full in RATES]
    rules = [
        ", ".join(below + lora for below, lora, _ in rates) + f", else {last[1]}",
        ", ".join(full for *_, full in [*rates, last]),
        *(
            ", ".join(f"below {below:,} rows {value}" for below, value in table[:-1]) + f", else {table[-1][1]}"
            for table in (EPOCHS, BATCHES)
        ),
    ]
    for rule in rules:
        assert f"| {rule.replace('e-0', 'e-')} |" in page
