"""If these fail, a run is lost or resumed from something that was never whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fabric.errors import DataError, MissingInputError, OutputError
from fabric.runs.directory import lock_run, read_run
from fabric.training.checkpoint import (
    Snapshot,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from fabric.training.metrics import MetricsLog


def checkpoint(step: int) -> Snapshot:
    """Three arrays, each in two pieces."""
    return Snapshot(step, {"tokens": step}, 40, [np.full((2, 20), step + i, np.float32) for i in range(3)])


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    found = read_checkpoint(write_checkpoint(tmp_path, checkpoint(7)))
    assert found is not None
    assert found.step == 7
    assert found.totals == {"tokens": 7}
    assert [np.concatenate([*found.pieces(i)]).tolist() for i in range(3)] == [[7.0 + i] * 40 for i in range(3)]


@pytest.mark.parametrize("left", [0, 1, 31, 32, 60, 200, -1])
def test_a_cut_checkpoint_gives_way_to_the_one_before(tmp_path: Path, left: int) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    newest = write_checkpoint(tmp_path, checkpoint(2))
    newest.write_bytes(newest.read_bytes()[:left])
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(2))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert newest_checkpoint(tmp_path) is None


def test_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write_checkpoint(tmp_path, checkpoint(step))
    assert [p.name for p in sorted(tmp_path.glob("*"))] == ["step-00000003.ckpt", "step-00000010.ckpt"]


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with lock_run(tmp_path), pytest.raises(OutputError, match="in use"):
        lock_run(tmp_path)
    lock_run(tmp_path).close()


def test_no_run_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="not the settings"):
        read_run(tmp_path)


def test_resuming_tells_no_step_twice(tmp_path: Path) -> None:
    extra = tmp_path / "out.jsonl"
    with MetricsLog(tmp_path, str(extra), 0) as log:
        for step in (1, 2, 3):
            log.write({"step": step})
    with extra.open("a") as out:
        out.write('{"step": 4')
    with MetricsLog(tmp_path, str(extra), 2) as log:
        log.write({"step": 3, "again": True})
    for path in (extra, tmp_path / "metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [r["step"] for r in records] == [1, 2, 3]
        assert "again" in records[-1]


def test_a_run_killed_before_its_next_step_still_has_its_metrics(tmp_path: Path) -> None:
    target = tmp_path / "m.jsonl"
    with MetricsLog(tmp_path, str(target), 0) as log:
        for step in range(5):
            log.write({"step": step})
    MetricsLog(tmp_path, str(target), 3)  # opened to go on, and never closed
    for path in (target, tmp_path / "metrics.jsonl"):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
