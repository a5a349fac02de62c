"""Several ranks train as one does, under real launchers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence
from tests.distributed.launchers import MPICH, finish, said, start, without_mpi4py
from tests.support.random_models import write_model

FLAGS = [
    *("--rank", "4", "--ctx", "64", "--batch", "8", "--steps", "20", "--lr", "3e-3", "--precision", "f32"),
    *("--val", "0.2", "--eval-every", "10", "--dropout", "0.1"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows of many lengths, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder / "tiny.gguf")
    rng = random.Random(1)
    with (folder / "rows.jsonl").open("w") as out:
        for _ in range(40):
            n = rng.randrange(5, 40)
            row = {"tokens": [rng.randrange(300) for _ in range(n)], "train": [0] + [1] * (n - 1)}
            out.write(json.dumps(row) + "\n")
    alone = fabric("train", "rows.jsonl", "-m", "tiny.gguf", "-o", "1.gguf", "--run-dir", "1", *FLAGS, cwd=folder)
    assert alone.code == 0, alone.err
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_losses(run: Path, other: Path) -> None:
    """Of every step and every validation, within rounding."""
    for ours, theirs in zip(metrics(run), metrics(other), strict=True):
        for name in ("step", "tokens", "trained_tokens"):
            assert ours[name] == theirs[name]
        for name in ("loss", "grad_norm", "val_loss"):
            assert (name in ours) == (name in theirs)
            assert math.isclose(ours.get(name, 0.0), theirs.get(name, 0.0), abs_tol=1e-5), (name, ours, theirs)


@pytest.mark.parametrize(("launcher", "ranks"), [("open-mpi", 1), ("open-mpi", 2), ("open-mpi", 3), ("mpich", 3)])
def test_ranks_train_what_one_process_trains_and_the_same_bits_again(launcher: str, ranks: int, work: Path) -> None:
    made = []
    for again in range(2 if ranks == 2 or launcher == "mpich" else 1):
        name = f"{launcher}-{ranks}-{again}"
        arguments = ["train", "rows.jsonl", "-m", "tiny.gguf", "-o", f"{name}.gguf", "--run-dir", name, *FLAGS]
        ended = finish(start(launcher, ranks, *arguments, cwd=work))
        assert ended.code == 0, ended
        assert ended.err.count("20 steps in") == 1 and ended.err.count("40 rows" if ranks == 0 else "32 rows") == 1
        assert (f"{ranks} ranks on 1 host train together" in ended.err) == (ranks > 1)
        last = metrics(work / name)[-1]
        assert len(last.get("rank_tokens_per_s", [0.0])) == ranks
        same_losses(work / name, work / "1")
        made.append((work / f"{name}.gguf").read_bytes())
    assert len(set(made)) == 1
    if ranks == 1:
        assert made[0] == (work / "1.gguf").read_bytes()


def test_ranks_that_average_now_and_then_learn_as_well_and_go_on(work: Path) -> None:
    rows = [[(first + i) % 40 for i in range(24)] for first in range(40)]
    lines = [json.dumps({"tokens": row, "train": [0] + [1] * 23}) for row in rows]
    (work / "counting.jsonl").write_text("\n".join(lines) + "\n")
    same = [
        "train",
        "counting.jsonl",
        "-m",
        "tiny.gguf",
        "--ctx",
        "64",
        "--batch",
        "12",
        "--steps",
        "24",
        "--lr",
        "2e-2",
    ]
    same += ["--full", "--type", "f32", "--precision", "f32", "--checkpoint-every", "10"]
    apart = ["--sync-every", "4"]
    for name, flags in (("c1", apart), ("c2", apart), ("c3", [])):
        arguments = [*same, *flags, "-o", f"{name}.gguf", "--run-dir", name]
        ended = finish(start("open-mpi", 3, *arguments, cwd=work))
        assert ended.code == 0, ended
    assert (work / "c1.gguf").read_bytes() == (work / "c2.gguf").read_bytes() != (work / "c3.gguf").read_bytes()
    local, together = metrics(work / "c1"), metrics(work / "c3")
    assert local[0]["loss"] == pytest.approx(together[0]["loss"], abs=1e-5)  # both start from one place
    assert together[-1]["loss"] < 0.5 * together[0]["loss"]
    assert local[-1]["loss"] < 0.7 * local[0]["loss"]
    ended = finish(start("open-mpi", 2, "resume", "c1", "--steps", "27", cwd=work))
    assert ended.code == 0, ended
    assert [line["step"] for line in metrics(work / "c1")] == list(range(1, 28))
    alone = fabric(*same, *apart, "-o", "c4.gguf", cwd=work)
    assert alone.code == 0 and "--sync-every has no effect with one rank" in alone.err


def test_ranks_without_a_row_and_whole_weights(work: Path) -> None:
    flags = ["--full", "--type", "f32", "--batch", "2", "--steps", "3", "--ctx", "64", "--precision", "f32"]
    alone = fabric("train", "rows.jsonl", "-m", "tiny.gguf", "-o", "full.gguf", "--run-dir", "f", *flags, cwd=work)
    assert alone.code == 0, alone.err
    arguments = ["train", "rows.jsonl", "-m", "tiny.gguf", "-o", "full-3.gguf", "--run-dir", "f3", *flags]
    (work / "prompts.jsonl").write_text('{"prompt": "the ferry"}\n')
    ended = finish(start("open-mpi", 3, *arguments, "--sample", "prompts.jsonl", cwd=work))
    assert ended.code == 0, ended
    same_losses(work / "f3", work / "f")
    samples = [json.loads(line)["step"] for line in (work / "f3" / "samples.jsonl").read_text().splitlines()]
    assert samples == [0, 3], "the first rank alone answers"


def test_what_one_rank_cannot_do_ends_all_with_its_name(work: Path, tmp_path: Path) -> None:
    train = [
        "train",
        work / "rows.jsonl",
        "-m",
        "tiny.gguf",
        "-o",
        tmp_path / "a.gguf",
        "--run-dir",
        tmp_path / "run",
        "-q",
    ]
    elsewhere = finish(start("open-mpi", 3, *train, cwd=work, other="cd /", number=2))
    assert elsewhere.code == 69 and len(said(elsewhere)) == 1, elsewhere
    assert said(elsewhere)[0].startswith("fabric train: rank 2 on ") and "tiny.gguf" in said(elsewhere)[0]
    full = finish(start("open-mpi", 2, *train, "--steps", "500", "--batch", "4", cwd=work, other="ulimit -f 20"))
    assert full.code == 74 and len(said(full)) == 1, full
    assert "rank 0 on " in said(full)[0] and "fabric resume" in said(full)[0]
    assert not (tmp_path / "a.gguf").exists()
    gone = finish(start("open-mpi", 2, "train", "none.jsonl", "-m", "tiny.gguf", cwd=work))
    assert gone.code == 66 and "none.jsonl" in said(gone)[0] and len(said(gone)) == 1, gone


def test_copies_of_a_command_are_refused(work: Path, tmp_path: Path) -> None:
    merge = finish(start("open-mpi", 2, "merge", "-m", "tiny.gguf", "-a", "1.gguf", "-o", "merged.gguf", cwd=work))
    assert merge.code == 2 and "fabric merge" in said(merge)[0] and "2 processes" in said(merge)[0], merge
    assert not (work / "merged.gguf").exists()
    train = ["train", work / "rows.jsonl", "-m", work / "tiny.gguf", "--steps", "1", "--ctx", "64"]
    env = without_mpi4py(tmp_path)
    one_sentence(fabric(*train, cwd=tmp_path, env=env), 69, "2 processes", "pip install 'fabric-llm[mpi]'")
    alone = fabric(*train, "-o", "a.gguf", cwd=tmp_path, env={**env, "OMPI_COMM_WORLD_SIZE": "1"})
    assert alone.code == 0, alone
    plan = fabric(*train, "--dry-run", cwd=tmp_path, env=env)
    one_sentence(plan, 2, "--dry-run", "without a launcher")
    for size, number in (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("PMI_SIZE", "PMI_RANK")):
        other = {**env, "OMPI_COMM_WORLD_SIZE": "many", size: "4", number: "0"}
        one_sentence(fabric(*train, cwd=tmp_path, env=other), 69, "4 processes")


def test_a_launcher_of_another_mpi_is_noticed(work: Path, tmp_path: Path) -> None:
    env = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "MPI4PY_LIBMPI": str(MPICH / "lib/libmpi.so.12")}
    if not MPICH.exists():
        pytest.skip("no MPICH")
    ended = fabric("train", work / "rows.jsonl", "-m", work / "tiny.gguf", cwd=tmp_path, env=env)
    one_sentence(ended, 69, "started 2 processes", "sees 1", "MPI4PY_LIBMPI")
    assert not (tmp_path / ".fabric").exists()
