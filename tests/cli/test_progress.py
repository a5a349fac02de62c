"""What a person sees while a model trains: a bar that only goes forward, lines in a log, and what to do next."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import environment, fabric, on_terminal, shell

RUN = ("--rank", "2", "--ctx", "64", "--batch", "4")
FRAME = re.compile(r"(\d+)%\|.*\| (\d+)/6 ")


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation rows that take a while, in many feeds."""
    path = tmp_path_factory.mktemp("long") / "val.jsonl"
    row = json.dumps({"tokens": list(range(64)), "train": [0] + [1] * 63})
    path.write_text(f"{row}\n" * 400)
    return path


def test_the_bar_never_runs_backwards(tiny: Path, rows: Path, long_rows: Path, tmp_path: Path) -> None:
    line = ["train", rows, "-m", tiny, "-o", "a.gguf", "--val", long_rows, "--eval-every", "3", "--steps", "6", *RUN]
    code, seen = on_terminal(*line, stream="stderr", cwd=tmp_path)
    assert code == 0, seen
    frames = [found for frame in re.split(r"[\r\n]", seen) if (found := FRAME.search(frame))]
    percents, steps = [int(found[1]) for found in frames], [int(found[2]) for found in frames]
    assert len(frames) > 4 and percents == sorted(percents) and steps == sorted(steps), seen
    assert all(100 * step // 6 <= percent + 1 for step, percent in zip(steps, percents, strict=True))
    validating = [int(part) for part in re.findall(r"validating (\d+) %", seen.split("step 3 of 6")[0])]
    assert validating and validating == sorted(validating) and "| 3/6 " in seen, "the bar stands still meanwhile"
    assert re.search(r"step 3 of 6: loss [\d.]+, validation [\d.]+ \(the best so far\)", seen)
    last = seen.rstrip().splitlines()[-3:]
    assert "wrote the adapter" in last[0] and "to a.gguf" in last[0]
    assert f"fabric generate -m {tiny} -a a.gguf --chat" in last[1]
    assert f"llama-server -m {tiny} --lora a.gguf" in last[2]


def test_a_log_gets_lines_from_time_to_time_and_at_each_validation(tiny: Path, rows: Path, tmp_path: Path) -> None:
    script = "import sys; from fabric.cli import progress, main; progress.LINE_S = 0.05; main()"
    foreign = tmp_path / "foreign.jsonl"  # what is learned makes this less likely
    foreign.write_text(json.dumps({"tokens": list(range(64)), "train": [0] + [1] * 63}) + "\n")
    run = ["--val", foreign, "--eval-every", "8", "--steps", "32", *RUN, "--lr", "0.1", "--run-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(rows), "-m", str(tiny), *map(str, run)], cwd=tmp_path,
        env=environment(), capture_output=True, check=False,
    )  # fmt: skip
    told = done.stderr.decode()
    assert done.returncode == 0 and "\r" not in told and "|" not in told, told
    said = [re.fullmatch(r"fabric train: step (\d+) of 32 \((\d+) %\): (.*)", text) for text in told.splitlines()]
    timed = [found for found in said if found]
    assert len(timed) > 1 and any(re.search(r"loss .*lr .* tokens/s, .* left", one[3]) for one in timed), told
    for column in (1, 2):
        places = [int(found[column]) for found in timed]
        assert places == sorted(places)
    records = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["val_loss"] for record in records if "val_loss" in record}
    validated = re.findall(r"step (\d+) of 32: loss [\d.]+, validation ([\d.]+) \(([^)]*)\)", told)
    assert [int(step) for step, _, _ in validated] == [8, 16, 24, 32] == list(losses)
    for step, loss, note in validated:
        best, at = min((value, at) for at, value in losses.items() if at <= int(step))
        assert loss == f"{losses[int(step)]:.4f}"
        assert note == ("the best so far" if at == int(step) else f"best {best:.4f} at step {at}")
    assert any("at step" in note for _, _, note in validated), "no validation was worse than one before: nothing tested"


def test_a_finished_run_says_what_it_wrote_and_what_comes_next(tiny: Path, rows: Path, tmp_path: Path) -> None:
    texts = tmp_path / "my texts.jsonl"
    texts.write_text('{"text": "The ferry leaves at noon."}\n')
    full = fabric("train", texts, "-m", tiny, "--full", "-o", "my model.gguf", "--steps", "1", *RUN[2:], cwd=tmp_path)
    assert full.code == 0, full.err
    *_, wrote, tried, served = full.err.splitlines()
    assert "wrote the model (" in wrote and "to my model.gguf; run directory .fabric/runs/" in wrote
    assert tried.endswith("fabric generate -m 'my model.gguf' --raw --prompt TEXT")
    assert served.endswith("llama-server -m 'my model.gguf'")
    run = ["train", rows, "-m", tiny, "--steps", "1", *RUN]
    named = fabric(*run, "-o", tmp_path / "a.gguf", "--run-dir", tmp_path / "r", "--json")
    assert json.loads(named.out)["output"] == str(tmp_path / "a.gguf")
    assert json.loads(named.out)["run_dir"] == str(tmp_path / "r")
    kept = json.loads(fabric(*run, "--json", cwd=tmp_path).out)
    assert (tmp_path / kept["output"]).exists() and kept["output"].startswith(kept["run_dir"])
    silent = fabric(*run, "-q", cwd=tmp_path)
    assert (silent.code, silent.err) == (0, "")


def test_each_line_of_a_pipe_names_its_command(tiny: Path, rows: Path, tmp_path: Path) -> None:
    ended = shell(
        f"fabric train {rows} -m {tiny} --val 0.2 --steps 2 {' '.join(RUN)} -o - | fabric merge -m {tiny} -a - "
        "| fabric quantize --type q8_0 --errors -o q.gguf",
        tmp_path,
    )
    assert ended.code == 0, ended.err
    lines = ended.err.splitlines()
    assert all(re.match("fabric (train|merge|quantize): ", line) for line in lines), ended.err
    assert {line.split(":")[0] for line in lines} == {"fabric train", "fabric merge", "fabric quantize"}
    assert "llama-server" not in ended.err and "wrote the adapter" in ended.err
    code, seen = on_terminal("prepare", rows, stream="stderr")
    assert code == 0 and "\r12 rows read" in seen, "alone on a terminal, a command needs no name"
