from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the tiny model of this test is written by the gguf package")

from fabric.training.checkpoint import newest_checkpoint
from tests.parity.ours import write_rows
from tests.parity.rows import batches
from tests.support.paths import REPOSITORY
from tests.support.random_models import write_model
from tests.support.shapes import Shape

KILLS = {"lora": 38, "full": 6, "patience": 6} if os.environ.get("FABRIC_CI") else {"lora": 4, "full": 3, "patience": 3}
EVERY = 2  # steps between checkpoints
FLAGS = {
    "lora": ["--rank", "4"],
    "full": ["--full", "--type", "f32"],
    "patience": ["--rank", "4", "--val", "0.2", "--eval-every", "3", "--patience", "9"],
}
SHAPE = Shape()


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FABRIC_")}
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [sys.executable, "-m", "fabric", *map(str, arguments), "-q"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told.decode()


def train(folder: Path, run: str, what: str) -> list[str | Path]:
    """Arguments of a run of 60 steps over two epochs, with a checkpoint after each second step."""
    return [
        *("train", folder / "rows.jsonl", "-m", folder / "model.gguf", "-o", folder / f"{run}.gguf"),
        *("--run-dir", folder / run, "--batch", "2", "--epochs", "2", "--lr", "1e-3"),
        *FLAGS[what],
        *("--checkpoint-every", str(EVERY), "--threads", "1", "--ctx", "64"),
    ]


def steps_done(run: Path) -> int:
    """Of the newest checkpoint, whether it is whole or not."""
    return max((int(path.stem.split("-")[1]) for path in run.glob("step-*.ckpt")), default=0)


def kill_soon(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> bool:
    """SIGKILL at a random moment, mostly after a few more checkpoints; False when the run ended well before it."""
    early = rng.random() < 0.2
    goal = steps_done(run) + rng.choice([2, 2, 4])
    deadline = time.monotonic() + (rng.uniform(0.0, 0.8) if early else 60.0)
    while process.poll() is None and time.monotonic() < deadline and (early or steps_done(run) < goal):
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.02))
    process.kill()
    _, told = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), told.decode()
    return process.returncode != 0


def steps_lost(run: Path) -> int:
    """Steps that were told of and are in no whole checkpoint."""
    metrics, found = run / "metrics.jsonl", newest_checkpoint(run)
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    told = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(told, default=0) - (found.step if found else 0)


def cut_newest(run: Path, rng: random.Random) -> None:
    """Loses the tail of the newest checkpoint, as a disk does when the power goes."""
    found = sorted(run.glob("step-*.ckpt"))
    if found:
        with found[-1].open("r+b") as file:
            file.truncate(rng.randrange(found[-1].stat().st_size))


def go_on(folder: Path, run: str, what: str) -> subprocess.Popen[bytes]:
    """Resumes a run, or starts it where it was killed before there was anything to resume."""
    return start("resume", folder / run) if (folder / run / "run.json").exists() else start(*train(folder, run, what))


@pytest.mark.parametrize("what", KILLS)
def test_a_run_killed_many_times_ends_with_the_bytes_of_one_never_killed(what: str, tmp_path: Path) -> None:
    rng = random.Random(20)
    write_model(tmp_path / "model.gguf", SHAPE, "Q8_0")
    write_rows(tmp_path / "rows.jsonl", batches(SHAPE.vocab, steps=20, rows=3, longest=30))
    finish(start(*train(tmp_path, "whole", what)))
    whole = (tmp_path / "whole.gguf").read_bytes()
    kills = cuts = runs = 0
    while kills < KILLS[what]:  # a run that gets to its end between two kills is followed by another
        runs, cut_at = runs + 1, 0
        run, output = f"killed-{runs}", tmp_path / f"killed-{runs}.gguf"
        while (
            kills < KILLS[what] and not output.exists() and kill_soon(go_on(tmp_path, run, what), tmp_path / run, rng)
        ):
            kills += 1
            if steps_done(tmp_path / run) > cut_at:  # metrics are those of after the last cut
                assert steps_lost(tmp_path / run) <= EVERY
            if kills % 3 == 0 and not output.exists():
                cut_newest(tmp_path / run, rng)
                cut_at = steps_done(tmp_path / run)
                cuts += 1
        if not output.exists():
            finish(go_on(tmp_path, run, what))
        assert output.read_bytes() == whole
    assert cuts


@pytest.mark.parametrize("what", KILLS)
def test_resume_of_a_finished_run_writes_the_same_file_again(what: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", SHAPE)
    write_rows(tmp_path / "rows.jsonl", batches(SHAPE.vocab, steps=2, rows=3, longest=30))
    finish(start(*train(tmp_path, "run", what)))
    finish(start("resume", tmp_path / "run", "-o", tmp_path / "again.gguf"))
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "run.gguf").read_bytes()
