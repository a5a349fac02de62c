"""What a run needs to go on: inputs that came through a pipe, from any folder, and only if nothing has changed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, environment, fabric, on_terminal, one_sentence, shell

RUN = ("--steps", "4", "--lr", "2e-4", "--rank", "2", "--ctx", "64", "--batch", "4")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("flag", ["DATA", "--val", "--adapter", "--template"])
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_what_came_through_a_pipe_is_there_to_resume(
    name: str, flag: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    piped = {"--adapter": adapter.read_bytes(), "--template": TEMPLATE.encode()}.get(flag, rows.read_bytes())
    where = [name] if flag == "DATA" else [str(rows), flag, name]
    done = fabric("train", *where, "-m", tiny, "-o", "a.gguf", "--run-dir", "run", *RUN, stdin=piped, cwd=tmp_path)
    assert done.code == 0, done.err
    goes_on_elsewhere(tmp_path)


def goes_on_elsewhere(tmp_path: Path) -> None:
    """The run in `run` without its last checkpoint ends with the file that it wrote, from another folder."""
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert isinstance(told["data_sha256"], str)
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").unlink()
    for newer in (tmp_path / "run").glob("step-*4.ckpt"):
        newer.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = (tmp_path / "run").rename(elsewhere / "moved")
    resumed = fabric("resume", moved.name, cwd=elsewhere)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "a.gguf").read_bytes() == whole


def test_what_came_through_pipes_with_names_is_there_to_resume(
    tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    line = (
        f"fabric train fifo --val <(cat {rows}) -a <(cat {adapter}) -m {tiny} -o a.gguf --run-dir run {' '.join(RUN)}"
    )
    ended = shell(f"mkfifo fifo; cat {rows} > fifo & {line}; code=$?; rm fifo; exit $code", tmp_path)
    assert ended.code == 0, ended.err
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"data.jsonl", "val.jsonl", "start.gguf"} <= kept
    (tmp_path / "run" / "val.jsonl").rename(tmp_path / "val.jsonl")
    one_sentence(fabric("resume", "run", "-q", cwd=tmp_path), 66, "val.jsonl")
    (tmp_path / "val.jsonl").rename(tmp_path / "run" / "val.jsonl")
    goes_on_elsewhere(tmp_path)


def test_a_base_from_a_pipe_comes_through_it_again(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = f"-o a.gguf --run-dir run {' '.join(RUN)}"
    assert shell(f"fabric train {rows} -m <(cat {tiny}) {line}", tmp_path).code == 0
    again = fabric("resume", "run", "-o", "b.gguf", cwd=tmp_path, stdin=tiny.read_bytes())
    assert again.code == 0, again.err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_result_on_stdout_goes_there_again_and_never_to_a_terminal(tiny: Path, rows: Path, tmp_path: Path) -> None:
    first = fabric("train", rows, "-m", tiny, "-o", "-", "--run-dir", "run", *RUN, cwd=tmp_path)
    assert first.code == 0, first.err
    (tmp_path / "run" / "adapter.gguf").unlink()
    steps = sorted((tmp_path / "run").glob("step-*.ckpt"))
    steps[-1].unlink()
    code, seen = on_terminal("resume", "run", stream="stdout", cwd=tmp_path)
    assert (code, seen) == (2, "")
    assert not steps[-1].exists() and not (tmp_path / "run" / "adapter.gguf").exists(), "refused before the first step"
    for flags in ([], ["-o", "/dev/stdout"]):
        again = fabric("resume", "run", "--json", *flags, cwd=tmp_path)
        assert again.code == 0 and again.out == first.out
        *before, report = again.err.splitlines()
        assert "the adapter goes to " in before[0] and "stdout" in before[0]
        assert json.loads(report)["output"] in ("-", "/dev/stdout")


def test_files_edited_while_a_run_goes_on_are_named_and_not_told_as_its_own(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    for name, source in (("rows", rows), ("val", rows), ("base", tiny)):
        (tmp_path / name).write_bytes(source.read_bytes())
    inputs = {"data": "rows", "val": "val", "model": "base"}
    hashes = {name: hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for name, path in inputs.items()}
    flags = ["--steps", "150", "--rank", "2", "--ctx", "64", "--batch", "2", "--eval-every", "150"]
    process = subprocess.Popen(
        [*FABRIC, "train", "rows", "--val", "val", "-m", "base", "--run-dir", "run", *flags],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    run = tmp_path / "run"
    until(lambda: (run / "run.json").exists() and bool((run / "metrics.jsonl").read_bytes()))
    with (tmp_path / "base").open("r+b") as base:  # in place, as `cp` does
        base.seek(-1, os.SEEK_END)
        base.write(b"\1")
    (tmp_path / "rows").write_bytes(rows.read_bytes() * 2)
    (tmp_path / "val").unlink()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    for sentence in ("base has changed", "rows has changed", "val has been removed", "may be of both"):
        assert sentence in said.decode(), said.decode()
    history = json.loads(fabric("inspect", run / "adapter.gguf", "--json").out)["history"][-1]
    told = json.loads((run / "run.json").read_text())
    assert history["inputs"] == hashes == {name: told[f"{name}_sha256"] for name in hashes}


def until(there: Callable[[], bool]) -> None:
    """Waits for it."""
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rates(folder: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_goes_on_to_a_later_end(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = ["--rank", "2", "--ctx", "64", "--batch", "4", "--val", "0.2", "--lr", "1e-3"]
    for name, epochs in (("run", "1"), ("whole", "3")):
        done = fabric("train", rows, "-m", tiny, "--run-dir", name, *flags, "--epochs", epochs, cwd=tmp_path)
        assert done.code == 0, done.err
    run = tmp_path / "run"
    first = (run / "metrics.jsonl").read_text()
    longer = fabric("resume", "run", "--epochs", "3", "-o", "long.gguf", cwd=tmp_path)
    assert longer.code == 0, longer.err
    steps, every = len(rates(tmp_path / "whole")), len(first.splitlines())
    assert f"going on from step {every} to {steps}" in longer.err and "cosine" in longer.err
    assert (run / "metrics.jsonl").read_text().startswith(first)
    assert rates(run)[every:] == rates(tmp_path / "whole")[every:], "the schedule is that of the longer run"
    history = json.loads(fabric("inspect", tmp_path / "long.gguf", "--json").out)["history"][-1]
    assert history["settings"]["epochs"] == 3.0 and history["settings"]["extended"] == [[every, every]]
    result = (tmp_path / "long.gguf").read_bytes()
    (run / f"step-{steps:08d}.ckpt").unlink()
    again = fabric("resume", "run", "-o", "again.gguf", cwd=tmp_path)
    assert again.code == 0 and "going on" not in again.err
    assert (tmp_path / "again.gguf").read_bytes() == result, "from the middle of what was added"
    for path in run.glob("step-*.ckpt"):
        path.unlink()
    assert fabric("resume", "run", "-q", "-o", "again.gguf", cwd=tmp_path).code == 0
    assert (tmp_path / "again.gguf").read_bytes() == result, "from the start"
    one_sentence(fabric("resume", "run", "--steps", str(every), cwd=tmp_path), 2, "steps already")
    one_sentence(fabric("resume", "run", "--steps", "9", "--epochs", "2", cwd=tmp_path), 2, "leave one out")


def test_a_run_that_lost_patience_goes_on_when_told_to(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = ["--rank", "2", "--ctx", "64", "--batch", "4", "--val", "0.2", "--eval-every", "1", "--patience", "1"]
    flags += ["--steps", "60", "--lr", "1e-30"]  # so that nothing gets better
    done = fabric("train", rows, "-m", tiny, "--run-dir", "run", *flags, cwd=tmp_path)
    assert done.code == 0 and len(rates(tmp_path / "run")) == 2, done.err
    assert fabric("resume", "run", cwd=tmp_path).code == 0 and len(rates(tmp_path / "run")) == 2
    longer = fabric("resume", "run", "--steps", "61", cwd=tmp_path)
    assert longer.code == 0 and "going on from step 2 to 61" in longer.err, longer.err
    assert len(rates(tmp_path / "run")) == 3


def test_a_stopped_validation_writes_its_loss_when_it_is_resumed(tiny: Path, rows: Path, tmp_path: Path) -> None:
    row = json.dumps({"tokens": list(range(200)), "train": [0] + [1] * 199})
    (tmp_path / "val.jsonl").write_text(f"{row}\n" * 600)  # some seconds of work
    flags = ["--val", "val.jsonl", "--steps", "2", "--eval-every", "1", "--rank", "2", "--batch", "4"]
    process = subprocess.Popen(
        [*FABRIC, "train", rows, "-m", tiny, "--run-dir", "run", *flags, "--metrics", "m.jsonl"], cwd=tmp_path,
        env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while b"parameters train" not in process.stderr.readline():
        pass
    time.sleep(0.5)  # by now its first step has ended
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert len(lines) == 1 and "val_loss" not in lines[0]
    resumed = fabric("resume", "run", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    for path in (tmp_path / "m.jsonl", tmp_path / "run" / "metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["step"] for record in records] == [1, 2]
        assert all("val_loss" in record for record in records)
        assert records[0]["loss"] == json.loads(lines[0])["loss"]


def test_equal_runs_can_start_together(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = f"fabric train {rows} -m {tiny} -q {' '.join(RUN)}"
    ended = shell(f"{line} & {line} & {line} & wait", tmp_path)
    assert ended.err == ""
    assert len(list((tmp_path / ".fabric" / "runs").glob("*/adapter.gguf"))) == 3


@pytest.fixture
def ended(tiny: Path, rows: Path, tmp_path: Path) -> Path:
    """A run directory beside its own data and model."""
    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "base.gguf").write_bytes(tiny.read_bytes())
    done = fabric("train", "rows.jsonl", "-m", "base.gguf", "--run-dir", "run", *RUN, cwd=tmp_path)
    assert done.code == 0, done.err
    return tmp_path


def test_a_changed_input_is_named(ended: Path) -> None:
    rows, base = ended / "rows.jsonl", ended / "base.gguf"
    before = rows.read_bytes()
    rows.write_bytes(before + before)
    one_sentence(fabric("resume", ended / "run"), 65, "data has changed")
    rows.write_bytes(before)
    content = bytearray(base.read_bytes())
    content[-100] ^= 1
    base.write_bytes(content)
    one_sentence(fabric("resume", ended / "run"), 65, "model has changed")
    base.unlink()
    one_sentence(fabric("resume", ended / "run"), 66, "base.gguf")


def test_changed_rows_of_validation_and_templates_are_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    texts = {"val": rows.read_text(), "template": TEMPLATE}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    files = ["--val", "val", "--template", "template"]
    assert fabric("train", rows, "-m", tiny, *files, "--run-dir", "run", *RUN, cwd=tmp_path).code == 0
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "\n")
        one_sentence(fabric("resume", "run", cwd=tmp_path), 65, f"the {name} has changed")
        (tmp_path / name).write_text(text)
    assert fabric("resume", "run", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 1e-3), ("rank", 8), ("rank", "x"), ("seed", None), ("modules", 7), ("colour", "red")]
)
def test_changed_settings_are_refused(key: str, value: object, ended: Path) -> None:
    path = ended / "run" / "run.json"
    run = json.loads(path.read_text())
    run["settings"][key] = value
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "run.json", "settings")


def test_every_changed_setting_is_named(ended: Path) -> None:
    path = ended / "run" / "run.json"
    run = json.loads(path.read_text())
    run["settings"] |= {"lr": 1e-3, "dropout": 0.5, "threads": 1, "keep": 7}
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "(dropout, lr)")
    del run["fingerprints"]
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "settings")


def test_a_run_whose_disk_filled_up_goes_on_to_the_same_bits(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = f"fabric train {rows} -m {tiny} -o a.gguf -q --checkpoint-every 1 {' '.join(RUN)} --rank 4 --run-dir"
    assert shell(f"{line} whole", tmp_path).code == 0
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").unlink()
    size = (tmp_path / "whole" / "step-00000004.ckpt").stat().st_size // 1024
    for blocks in (size // 2, size - 1):  # the limit is of each file, as where a disk has so much left
        full = shell(f"ulimit -f {blocks}; {line} full-{blocks}", tmp_path)
        one_sentence(full, 74, ".ckpt", "too large", f"fabric resume full-{blocks}")
        assert not list((tmp_path / f"full-{blocks}").glob("*.ckpt*")) and not (tmp_path / "a.gguf").exists()
        again = shell(f"ulimit -f {blocks}; fabric resume -q full-{blocks}", tmp_path)
        one_sentence(again, 74, ".ckpt")
        assert shell(f"fabric resume -q full-{blocks}", tmp_path).code == 0
        assert (tmp_path / "a.gguf").read_bytes() == whole
        (tmp_path / "a.gguf").unlink()
