"""Runs by name: what became of them, how they differ, how to go on with them, and how to be rid of them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import FABRIC, environment, fabric, on_terminal, one_sentence

RUN = ("--rank", "2", "--ctx", "64", "--batch", "4", "-q")


@pytest.fixture(scope="module")
def made(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, lr-1e-3 before lr-1e-4."""
    folder = tmp_path_factory.mktemp("made")
    for rate, more in (("1e-3", ["--val", "0.2"]), ("1e-4", ["-o", "b.gguf"])):
        line = ["train", rows, "-m", tiny, "--steps", "4", "--lr", rate, "--name", f"lr-{rate}", *more]
        assert fabric(*line, *RUN, cwd=folder).code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def listed(folder: Path, *more: str) -> list[dict[str, Any]]:
    told = fabric("runs", "--json", *more, cwd=folder)
    assert told.code == 0, told.err
    return list(json.loads(told.out)["runs"])


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(tiny: Path, rows: Path, folder: Path, name: str) -> subprocess.Popen[bytes]:
    """A run that would take minutes, after its first steps."""
    line = ["train", str(rows), "-m", str(tiny), "--steps", "20000", "--checkpoint-every", "1", "--name", name, *RUN]
    process = subprocess.Popen([*FABRIC, *line], cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    until(lambda: bool(list((folder / ".fabric" / "runs" / name).glob("step-*.ckpt"))))
    return process


def test_runs_are_listed_the_newest_first_with_what_became_of_them(made: Path, tmp_path: Path) -> None:
    newest, first = listed(made)
    assert (newest["name"], first["name"]) == ("lr-1e-4", "lr-1e-3")
    assert newest["state"] == first["state"] == "finished" and newest["step"] == newest["steps"] == 4
    records = [json.loads(line) for line in (made / first["path"] / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records]
    assert (first["loss"], first["lowest_loss"]) == (losses[-1], min(losses))
    validations = [record["val_loss"] for record in records if "val_loss" in record]
    assert (first["val_loss"], first["best_val_loss"]) == (validations[-1], min(validations))
    assert newest["val_loss"] is None and newest["began"] >= first["ended"]
    assert first["bytes"] == sum(path.stat().st_size for path in (made / first["path"]).iterdir())
    head, *rows = fabric("runs", cwd=made).out.decode().splitlines()
    assert head.split()[:5] == ["name", "state", "model", "step", "loss"]
    assert [row.split()[:4] for row in rows] == [[f"lr-1e-{n}", "finished", "tiny.gguf", "4/4"] for n in (4, 3)]
    assert len(listed(made, ".fabric/runs")) == 2
    assert b"no runs here" in fabric("runs", cwd=tmp_path).out
    one_sentence(fabric("runs", "nothing", cwd=made), 66, "nothing", "`fabric runs` lists")


def test_two_runs_are_compared_by_what_differs(made: Path) -> None:
    told = fabric("runs", "--compare", "lr-1e-3", ".fabric/runs/lr-1e-4", "--json", cwd=made)
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert report["settings"]["lr"] == [1e-3, 1e-4] and report["settings"].keys() == {"lr", "val", "output"}
    assert [(one["first_step"], one["last_step"]) for one in report["losses"]] == [(n, n) for n in (1, 2, 3, 4)]
    assert report["losses"][-1]["loss"] == [one["loss"] for one in report["runs"]]
    lines = fabric("runs", "--compare", cwd=made).out.decode().splitlines()
    assert lines[0].split() == ["lr-1e-4", "lr-1e-3"] and ["--lr", "0.0001", "0.001"] in map(str.split, lines)
    one_sentence(fabric("runs", "--compare", "lr-1e-3", cwd=made), 2, "two runs")


def test_a_run_is_named_once_and_found_by_its_name(folder: Path, tiny: Path, rows: Path) -> None:
    line = ["train", rows, "-m", tiny, *RUN, "--steps", "1"]
    one_sentence(fabric(*line, "--name", "lr-1e-3", cwd=folder), 2, "holds a run already", "--name")
    one_sentence(fabric(*line, "--name", "x", "--run-dir", "y", cwd=folder), 2, "--name", "--run-dir", "leave one out")
    for name in ("a/b", "..", ""):
        one_sentence(fabric(*line, f"--name={name}", cwd=folder), 2, "--name")
    assert sorted(path.name for path in (folder / ".fabric" / "runs").iterdir()) == ["lr-1e-3", "lr-1e-4"]
    plotted = json.loads(fabric("plot", "lr-1e-3", "--json", cwd=folder).out)["runs"]
    assert [one["name"] for one in plotted] == ["lr-1e-3"] and plotted[0]["steps"] == 4
    assert fabric("resume", "lr-1e-3", "--steps", "5", "-q", cwd=folder).code == 0
    assert listed(folder, "lr-1e-3")[0]["step"] == 5


def test_several_runs_have_short_legends(made: Path, tmp_path: Path) -> None:
    both = fabric("plot", ".fabric/runs/lr-1e-3", ".fabric/runs/lr-1e-4/", cwd=made).out.decode()
    assert "* 1e-3   + 1e-4" in both.splitlines()[0], "the part of the names that differs"
    for names, legends in (
        (["a-lr1-x", "a-lr2-x"], ["lr1", "lr2"]),
        (["20260101-120000-aa", "20260101-130000-bb"], ["120000-aa", "130000-bb"]),
        (["run", "run-2"], ["run", "run-2"]),
    ):
        for name in names:
            (tmp_path / f"{name}.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
        drawn = fabric("plot", *(tmp_path / f"{name}.jsonl" for name in names)).out.decode().splitlines()[0]
        assert drawn.split("   ", 1)[1].split()[1::2] == legends


def test_a_run_that_goes_on_is_known_and_left_alone_and_resume_takes_the_newest_unfinished(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    one_sentence(fabric("resume", cwd=tmp_path), 66, "unfinished")
    process = started(tiny, rows, tmp_path, "stopped")
    assert [(one["state"], one["steps"]) for one in listed(tmp_path)] == [("running", 20000)]
    kept = fabric("runs", "--prune", "stopped", cwd=tmp_path)
    assert kept.code == 0 and "is running, and stays" in kept.err and b"0 runs removed" in kept.out
    assert json.loads(fabric("runs", "--prune", "--keep", "0", "--json", cwd=tmp_path).out)["removed"] == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    killed = started(tiny, rows, tmp_path, "killed")
    killed.kill()
    killed.wait()
    newest, first = listed(tmp_path)
    assert (newest["name"], newest["state"]) == ("killed", "failed")
    assert (first["name"], first["state"]) == ("stopped", "stopped")
    assert "killed" in newest["error"] and first["error"] == ""
    steps = str(newest["step"] + 5)
    resumed = fabric("resume", "--steps", steps, cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert resumed.err.startswith("fabric resume: going on with .fabric/runs/killed, which failed after step ")
    assert listed(tmp_path)[0]["state"] == "finished" and listed(tmp_path)[0]["began"] == newest["began"]
    resumed = fabric("resume", "--steps", str(first["step"] + 5), cwd=tmp_path)
    assert "going on with .fabric/runs/stopped, which was stopped after step" in resumed.err, resumed.err


def test_why_a_run_failed_is_in_the_list(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = ["train", rows, "-m", tiny, "--name", "wild", "--steps", "400", "--lr", "1e9", "--clip", "0", *RUN]
    assert fabric(*line, cwd=tmp_path).code == 76
    (found,) = listed(tmp_path)
    assert found["state"] == "failed" and "--lr" in found["error"]


def test_pruning_removes_what_runs_made_and_says_how_much(folder: Path) -> None:
    runs = folder / ".fabric" / "runs"
    (runs / "lr-1e-3" / "notes.txt").write_text("mine")
    sizes = {one["name"]: one["bytes"] for one in listed(folder)}
    sizes["lr-1e-3"] -= len("mine")
    one_sentence(fabric("runs", "--prune", cwd=folder), 2, "--keep")
    one_sentence(fabric("runs", "--keep", "1", cwd=folder), 2, "--prune")
    would = fabric("runs", "--prune", "--keep", "1", "--dry-run", cwd=folder)
    assert would.code == 0 and f"1 run would be removed: {sizes['lr-1e-3']:,} bytes" in would.out.decode()
    assert "lr-1e-3 would be removed" in would.err and "adapter.gguf, which is nowhere else" in would.err
    assert len(listed(folder)) == 2
    gone = fabric("runs", "--prune", "--keep", "1", "--json", cwd=folder)
    report = json.loads(gone.out)
    assert report["bytes"] == sizes["lr-1e-3"] and [one["name"] for one in report["removed"]] == ["lr-1e-3"]
    assert [path.name for path in (runs / "lr-1e-3").iterdir()] == ["notes.txt"] and "not the run's own" in gone.err
    last = fabric("runs", "--prune", "lr-1e-4", cwd=folder)
    assert last.code == 0 and "nowhere else" not in last.err and not (runs / "lr-1e-4").exists()
    assert (folder / "b.gguf").exists() and listed(folder) == []


def test_pruning_asks_at_a_terminal(folder: Path) -> None:
    for answer, left in ((b"n\n", 2), (b"y\n", 1)):
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*FABRIC, "runs", "--prune", "lr-1e-3"], cwd=folder, env=environment({"TERM": "xterm"}), stdin=slave,
            stdout=subprocess.DEVNULL, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        seen = b""
        while b"[y/N]" not in seen:
            seen += os.read(master, 4096)
        assert b"lr-1e-3 would be removed" in seen
        os.write(master, answer)
        assert process.wait(30) == 0
        os.close(master)
        assert len(listed(folder)) == left
    code, seen_there = on_terminal("runs", stream="stdout", cwd=folder)
    assert code == 0 and "lr-1e-4" in seen_there


def test_a_damaged_run_is_named_and_the_others_are_listed(folder: Path) -> None:
    (folder / ".fabric/runs/lr-1e-4/run.json").write_text("[]")
    (folder / ".fabric/runs/lr-1e-3/state.json").write_text('{"state": "great"}')
    with (folder / ".fabric/runs/lr-1e-3/metrics.jsonl").open("a") as file:
        file.write('{"step": "x"}\n[]\n{"step": 9, "lo')
    told = fabric("runs", "--json", cwd=folder)
    (found,) = json.loads(told.out)["runs"]
    assert told.code == 0 and "lr-1e-4/run.json" in told.err and found["name"] == "lr-1e-3" and found["step"] == 4
    assert found["state"] == "failed"
