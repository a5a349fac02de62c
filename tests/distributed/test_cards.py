"""Ranks whose CUDA cards add up by themselves (NCCL), behind a stand-in for NVIDIA's libraries."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fabric.training.checkpoint import newest_checkpoint
from tests.backends.conftest import card, standin
from tests.backends.cuda_standin import beside
from tests.cli.shell import Ended, fabric
from tests.distributed.launchers import finish, ranks_of, said, start
from tests.distributed.test_losing_ranks import SOON_S
from tests.distributed.test_ranks import metrics, same_losses
from tests.support.paths import REPOSITORY
from tests.support.random_models import write_model
from tests.support.shapes import Shape

__all__ = ["card", "standin"]
FLAGS = ["--rank", "2", "--ctx", "32", "--batch", "4", "--steps", "4", "--lr", "2e-3", "--precision", "f32"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, card: Path) -> Path:
    """A model, rows, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("cards")
    write_model(folder / "tiny.gguf")
    rng = random.Random(3)
    rows = ([rng.randrange(300) for _ in range(rng.randrange(4, 12))] for _ in range(12))
    lines = [json.dumps({"tokens": row, "train": [0] + [1] * (len(row) - 1)}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    alone = fabric(*train("alone", "--device", "cpu"), cwd=folder)
    assert alone.code == 0, alone.err
    return folder


def train(run: str, *flags: str) -> list[str]:
    return ["train", "rows.jsonl", "-m", "tiny.gguf", "-o", f"{run}.gguf", "--run-dir", run, *FLAGS, *flags]


def on_cards(
    work: Path, card: Path, ranks: int, run: str, *flags: str, other: str = "", env: Mapping[str, str] | None = None
) -> Ended:
    """A run on so many ranks, a card each."""
    settings = {"STANDIN_CARDS": str(ranks), "XDG_CACHE_HOME": str(work / "cache"), "FABRIC_DEVICE": "auto"}
    found = {**beside(card, **settings), **(env or {})}
    return finish(start("open-mpi", ranks, *train(run, *flags), cwd=work, other=other, number=1, env=found))


def test_cards_train_what_one_process_trains(work: Path, card: Path) -> None:
    for run in ("first", "second"):
        log = work / f"{run}.log"
        ended = on_cards(work, card, 3, run, env={"STANDIN_LOG": str(log)})
        assert ended.code == 0, ended
        assert "3 on NVIDIA Stand-in, gradients by NCCL" in ended.err
        same_losses(work / run, work / "alone")
        assert len(metrics(work / run)[-1]["rank_tokens_per_s"]) == 3
        lines = log.read_text().splitlines()
        assert lines.count("sum 36") == 3 * 5, "a row of 12 numbers a rank, with the gradients of each step"
        assert lines.count("alive 0") == 3
    assert (work / "first.gguf").read_bytes() == (work / "second.gguf").read_bytes()
    apart = on_cards(work, card, 3, "apart", "--sync-every", "2")
    assert apart.code == 0, apart


@pytest.mark.parametrize(
    ("cards", "env", "reason"),
    [
        ("1", {}, "rank 0 on {host} and rank 1 share a card, which NCCL refuses; gradients travel over MPI"),
        ("2", {"STANDIN_NCCL": "21300"}, "rank 0 on {host}: NCCL is too old, 2.14 is needed"),
        ("2", {"STANDIN_FAIL": "ncclCommInitRankConfig 1 2"}, "NCCL failed to reach the other cards (2): as the test"),
    ],
)
def test_what_nccl_cannot_do_travels_over_mpi(
    cards: str, env: dict[str, str], reason: str, work: Path, card: Path
) -> None:
    run = f"{cards}{len(str(env))}"
    ended = on_cards(work, card, 2, run, env={"STANDIN_CARDS": cards, **env})
    assert ended.code == 0, ended
    assert reason.format(host=os.uname().nodename) in ended.err and "gradients by NCCL" not in ended.err
    same_losses(work / run, work / "alone")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ('export STANDIN_FAIL="cuGraphLaunch 30 700"', "ILLEGAL_ADDRESS"),
        ('export STANDIN_HANG="cuGraphLaunch 30"', "hung in a step"),
    ],
)
def test_a_card_that_is_lost_ends_all_ranks(other: str, words: str, work: Path, card: Path) -> None:
    began, run = time.monotonic(), f"lost{len(other)}"
    ended = on_cards(work, card, 3, run, "-q", "--steps", "50", other=other)
    assert time.monotonic() - began < 2 * SOON_S  # the first half of it to get there
    assert ended.code == 69 and len(said(ended)) == 1, ended
    assert "rank 1 on " in said(ended)[0] and words in said(ended)[0]
    assert f"fabric resume {run}" in said(ended)[0]
    assert not (work / f"{run}.gguf").exists()


def test_a_rank_that_is_asked_to_stop_takes_part_in_the_sum_of_its_last_step(work: Path, card: Path) -> None:
    settings = {"STANDIN_CARDS": "2", "XDG_CACHE_HOME": str(work / "cache"), "FABRIC_DEVICE": "auto"}
    flags = train("asked", "--steps", "100000", "--checkpoint-every", "3", "-q")
    process = start("open-mpi", 2, *flags, cwd=work, env=beside(card, **settings))
    deadline = time.monotonic() + 60
    while not list((work / "asked").glob("step-*.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(ranks_of("asked")[1], signal.SIGTERM)
    ended = finish(process)
    assert ended.code == 75 and len(said(ended)) == 1 and "stopped after step" in said(ended)[0], ended


def test_ranks_of_two_kinds_share_the_rows_by_speed(work: Path, card: Path) -> None:
    """A card beside a processor: the shares are measured, kept, and as the user says."""
    ended = on_cards(work, card, 2, "mixed", "--steps", "6", "--keep", "9", other="export STANDIN_ARCH=0")
    assert ended.code == 0, ended
    shares = re.findall(r"--rank-shares (\d+,100) deals them so", ended.err)
    assert len(shares) == 1 and "1 on NVIDIA Stand-in, 1 on " in ended.err, ended.err
    found = newest_checkpoint(work / "mixed")
    assert found is not None and found.checked_totals().shares == shares[0]
    alone = fabric(*train("six", "--device", "cpu", "--steps", "6"), cwd=work)
    assert alone.code == 0, alone
    same_losses(work / "mixed", work / "six")
    resumed = finish(start("open-mpi", 2, "resume", "mixed", "--steps", "8", cwd=work, env={"FABRIC_DEVICE": "auto"}))
    assert resumed.code == 0 and "dealt by speed" not in resumed.err, resumed
    flags = train("told", "--rank-shares", "3,1")
    told = finish(start("open-mpi", 2, *flags, cwd=work))
    assert told.code == 0 and "--rank-shares" not in told.err, told
    same_losses(work / "told", work / "alone")
    wrong = fabric(*train("wrong", "--rank-shares", "3,1", "--device", "cpu"), cwd=work)
    assert wrong.code == 0 and "--rank-shares has no effect: it has 2 shares, for 1 rank" in wrong.err


ADD = """
import sys
import numpy as np
from fabric.core import Buffer, Device
from pathlib import Path
rank, size, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
device = Device(f"cuda:{rank}", toolkit=Path(sys.argv[4]), max_allocation_bytes=1 << 16)
if rank == 0:
    made = device.peers_id()
    with open(path + ".new", "wb") as out:
        out.write(made)
    import os
    os.rename(path + ".new", path)
import time, pathlib
while not pathlib.Path(path).exists():
    time.sleep(0.01)
device.join(pathlib.Path(path).read_bytes(), rank, size)
n = 100_000
buffer = Buffer(device, 4 * n, seams=lambda most: np.arange(0, 4 * n, 4096, dtype=np.uint64))
for mean in (False, True):
    buffer.write(np.arange(n, dtype=np.float32) * (rank + 1))
    buffer.sum(mean)
    while not device.summed():
        pass
    want = np.arange(n, dtype=np.float32) * sum(range(1, size + 1)) / (size if mean else 1)
    assert np.allclose(buffer.read(), want, rtol=1e-6), (rank, mean)
device.leave()
"""


def run_python(standin: Path, script: str, *arguments: str | Path, **settings: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **beside(standin, **settings)}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=env, stderr=subprocess.PIPE)


def test_any_number_of_cards_adds_up_buffers_of_many_parts(standin: Path, tmp_path: Path) -> None:
    for size in range(1, 5):
        ranks = [
            run_python(standin, ADD, str(rank), str(size), tmp_path / str(size), standin, STANDIN_CARDS=str(size))
            for rank in range(size)
        ]
        for rank in ranks:
            assert rank.communicate(timeout=60)[1] == b"" and rank.returncode == 0


EARLY = """
import sys
import numpy as np
from fabric.core import Buffer
from fabric.training.run import set_up
from fabric.training.machine import Batches
from fabric.training.settings import TrainSettings
settings = TrainSettings("rows.jsonl", "deep.gguf", full=True, device="cuda", ctx=32, batch=4, precision="f32")
with set_up(settings) as setup:
    device, plan = setup.weights.device, setup.machine.plan
    device.join(device.peers_id(), 0, 1)
    rows = Buffer(device, 48)
    for _ in range(2):
        plan.accumulate(Batches(setup.machine, setup.rows.train).feeds(1), sum=True)
        plan.sum(rows)
        while not device.summed():
            pass
    print(plan.trained_bytes // 4, file=sys.stderr)
"""


def test_gradients_travel_while_the_rest_is_computed(work: Path, standin: Path, tmp_path: Path) -> None:
    """Of a model whose launches make several graphs: the last layers' gradients, once the graph that ends them runs."""
    write_model(tmp_path / "deep.gguf", Shape(hidden=256, layers=20, heads=4, kv_heads=4, ffn=512), repeat=True)
    (tmp_path / "rows.jsonl").write_bytes((work / "rows.jsonl").read_bytes())
    log = tmp_path / "log"
    script = f"import os; os.chdir({str(tmp_path)!r}){EARLY}"
    process = run_python(standin, script, STANDIN_LOG=str(log), STANDIN_CARDS="1")
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    lines = [line for line in log.read_text().splitlines() if line.split()[0] in ("sum", "replay")]
    step = lines[len(lines) // 2 :]
    assert step == lines[: len(step)], "every step is alike"
    sums = [int(line.split()[1]) for line in step if line != "replay"]
    assert len(sums) > 3 and sum(sums) == int(told) + 12
    first = next(i for i, line in enumerate(step) if line != "replay")
    assert "replay" in step[first:], f"no sum began before the last graph: {step}"
