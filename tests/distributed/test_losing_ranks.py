"""However a rank is lost, all of them end soon, nothing is half written, and any number of ranks goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from fabric.training.checkpoint import newest_checkpoint
from tests.cli.shell import Ended, fabric
from tests.distributed.launchers import LAUNCHERS, finish, ranks_of, said, start
from tests.support.random_models import write_model

SOON_S = 30.0
FLAGS = ["--lr", "2e-4", "--rank", "4", "--ctx", "64", "--batch", "4", "--precision", "f32", "--checkpoint-every", "20"]
MANY = 1_000_000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losing")
    write_model(folder / "tiny.gguf")
    rng = random.Random(2)
    rows = ([rng.randrange(300) for _ in range(rng.randrange(5, 40))] for _ in range(40))
    lines = [json.dumps({"tokens": row, "train": [0] + [1] * (len(row) - 1)}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def lose(launcher: str, rank: int | None, number: signal.Signals, work: Path, run: Path) -> Ended:
    """Trains on three ranks until a checkpoint is there, then sends a signal to one of them, or to the launcher."""
    arguments = [
        "train",
        "rows.jsonl",
        "-m",
        "tiny.gguf",
        "-o",
        run / "a.gguf",
        "--run-dir",
        run,
        "--steps",
        MANY,
        "-q",
    ]
    process = start(launcher, 3, *map(str, arguments), *FLAGS, cwd=work)
    deadline = time.monotonic() + 60
    while not list(run.glob("step-*.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    there = ranks_of(str(run))
    assert sorted(there) == [0, 1, 2]
    began = time.monotonic()
    os.kill(process.pid if rank is None else there[rank], number)
    ended = finish(process)
    assert time.monotonic() - began < SOON_S
    while ranks_of(str(run)):  # a launcher may end before the ranks that it kills
        assert time.monotonic() - began < SOON_S
        time.sleep(0.05)
    assert not (run / "a.gguf").exists()
    assert newest_checkpoint(run) is not None
    names = [path.name for path in run.iterdir() if not left_over(path)]
    assert {name.split("-")[0] for name in names} <= {"lock", "run.json", "state.json", "metrics.jsonl", "step"}, names
    return ended


def left_over(path: Path) -> bool:
    """Whether it is what a writer that was killed left: hidden, and removed by the next writer in its folder."""
    return path.name.startswith(".") and path.name.endswith(".partial")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_stands_still_is_named(launcher: str, work: Path, tmp_path: Path) -> None:
    ended = lose(launcher, 1, signal.SIGSTOP, work, tmp_path / "run")
    assert ended.code == 69 and len(said(ended)) == 1, ended
    assert "rank 1 on " in said(ended)[0] and "has not answered" in said(ended)[0]
    assert f"fabric resume {tmp_path / 'run'}" in said(ended)[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_ends_all(rank: int, work: Path, tmp_path: Path) -> None:
    ended = lose("open-mpi", rank, signal.SIGKILL, work, tmp_path / "run")
    assert ended.code != 0 and f"rank {rank} " in ended.err, ended


@pytest.mark.parametrize(("rank", "number", "code"), [(0, signal.SIGINT, 130), (2, signal.SIGTERM, 75)])
def test_a_rank_that_is_asked_to_stop_stops_all_after_a_whole_step(
    rank: int, number: signal.Signals, code: int, work: Path, tmp_path: Path
) -> None:
    for launcher in LAUNCHERS if rank else ["open-mpi"]:
        ended = lose(launcher, rank, number, work, tmp_path / launcher)
        assert ended.code == code and len(said(ended)) == 1, ended
        assert "stopped after step" in said(ended)[0] and "fabric resume" in said(ended)[0]


@pytest.mark.parametrize(("launcher", "number"), [("open-mpi", signal.SIGTERM), ("mpich", signal.SIGINT)])
def test_a_launcher_that_is_stopped_leaves_a_run_that_goes_on_with_other_ranks(
    launcher: str, number: signal.Signals, work: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    lose(launcher, None, number, work, run)
    found = newest_checkpoint(run)
    assert found is not None
    steps, line = str(found.step + 5), json.loads((run / "run.json").read_text())["settings"]
    assert line["batch"] == 4
    for ranks, more in ((2, []), (1, ["--steps", str(found.step + 8)])):
        flags = more or ["--steps", steps]
        ended = finish(start("open-mpi", ranks, "resume", run, *flags, cwd=work))
        assert ended.code == 0, ended
    numbers = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, found.step + 9))
    assert not [path for path in run.iterdir() if left_over(path)]
    shown = fabric("inspect", run / "a.gguf", cwd=work)
    assert shown.code == 0, shown
