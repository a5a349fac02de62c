"""Memory that was told before the start is the memory that a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import fabric

MIB = 1 << 20


@pytest.mark.parametrize("flags", [("--rank", "4", "--batch", "4"), ("--rank", "4000", "--batch", "64", "--no-pack")])
def test_a_dry_run_tells_the_peak_of_the_process(
    flags: tuple[str, ...], tiny: Path, rows: Path, tmp_path: Path
) -> None:
    line = ["train", rows, "-m", tiny, "--steps", "2", "--json", "--run-dir", tmp_path / "run", *flags]
    told = json.loads(fabric(*line, "--dry-run").out)
    assert not (tmp_path / "run").exists()
    taken = json.loads(fabric(*line, "-o", tmp_path / "a.gguf").out)
    assert abs(told["peak_bytes"] - taken["peak_bytes"]) <= max(0.05 * taken["peak_bytes"], 64 * MIB)
    assert told["model_bytes"] == tiny.stat().st_size


def test_the_peak_is_this_process_s_own_whoever_started_it(tiny: Path, rows: Path, tmp_path: Path) -> None:
    ballast = bytearray(b"x") * (1 << 30)
    line = ["train", rows, "-m", tiny, "--steps", "1", "--json", "--run-dir", tmp_path / "run", "--rank", "4"]
    taken = json.loads(fabric(*line, "-o", tmp_path / "a.gguf").out)["peak_bytes"]
    del ballast
    assert taken < 1 << 29
