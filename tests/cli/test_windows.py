"""The commands on a stand-in for Windows (tests/support/windows), which lacks what Windows lacks."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, environment, fabric, on_terminal, one_sentence, shell
from tests.cli.test_signals import script, stop
from tests.support.paths import REPOSITORY

STANDIN = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests/support/windows"), str(REPOSITORY)])}
BRIEF = ["--steps", "3", "--rank", "2", "--ctx", "64", "--batch", "4"]


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows as a spreadsheet there writes them, and a model."""
    folder = tmp_path_factory.mktemp("home") / "Größe und 日本"
    folder.mkdir()
    lines = ["question,answer", *(f"Is {i} odd – é?,{('No', 'Yes')[i % 2]}: {i}." for i in range(12))]
    (folder / "my rows.csv").write_bytes("\r\n".join(lines).encode())
    records = [{"prompt": f"Is {i} odd – é?", "completion": f"{('No', 'Yes')[i % 2]}: {i}."} for i in range(12)]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records)
    (folder / "my rows.jsonl").write_bytes(text.encode())
    (folder / "tiny.gguf").symlink_to(tiny)
    return folder


def test_the_pipeline_in_a_folder_with_spaces_and_letters_of_the_world(place: Path) -> None:
    line = " ".join(BRIEF)
    ended = shell(
        f"""fabric prepare 'my rows.csv' | fabric template -m tiny.gguf > 'größe 1.jsonl' &&
        fabric train - -m tiny.gguf -o 'a b é.gguf' --run-dir 'läuft hier' {line} --json \
            --checkpoint-every 1 < 'größe 1.jsonl' &&
        fabric resume 'läuft hier' --steps 4 -o - > c.gguf &&
        fabric merge -m tiny.gguf -a 'a b é.gguf' -o - | fabric quantize --type q8_0 -o 'größe.gguf' &&
        fabric convert 'a b é.gguf' -m tiny.gguf -o 'für andere' && fabric runs 'läuft hier' --json &&
        fabric prepare 'my rows.csv' --json -o rows.jsonl && fabric inspect 'größe.gguf' --json""",
        place, STANDIN, timeout=300,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert b"\r" not in ended.out and "läuft hier".encode() in ended.out, ended.out
    assert b"\r" not in (place / "rows.jsonl").read_bytes() and "– é".encode() in (place / "rows.jsonl").read_bytes()
    assert (place / "c.gguf").stat().st_size and (place / "für andere" / "adapter_config.json").exists()
    assert len(list((place / "läuft hier").glob("step-*.ckpt"))) == 2
    assert not [path.name for path in place.iterdir() if path.name.endswith(".partial")]


def test_what_killed_commands_left_is_removed_and_what_others_write_is_not(place: Path) -> None:
    names = ["dead", "young", "open", "folder", "held"]
    left = {name: place / f".{name}.{i:08x}.partial" for i, name in enumerate(names)}
    for name in ("dead", "young", "open"):
        left[name].touch()
    for name in ("folder", "held"):
        left[name].mkdir()
        (left[name] / ".held").touch()
    for name in set(names) - {"young"}:
        os.utime(left[name], (1, 1))
    with left["open"].open(), (left["held"] / ".held").open():
        assert fabric("prepare", "my rows.csv", "-o", "out.jsonl", env=STANDIN, cwd=place).code == 0
    assert [name for name in names if left[name].exists()] == ["young", "open", "held"]


def test_a_result_that_another_program_has_open_is_waited_for_a_moment(place: Path) -> None:
    target = place / "looked at.jsonl"
    target.touch()
    watcher = "import sys, time; f = open(sys.argv[1]); print(flush=True); time.sleep(float(sys.argv[2]))"
    codes, said = [], ""
    for seconds in ("1", "60"):
        with subprocess.Popen([sys.executable, "-c", watcher, target, seconds], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            ended = fabric("prepare", "my rows.csv", "-o", target, env=STANDIN, cwd=place)
            codes, said = [*codes, ended.code], ended.err
            other.kill()
    assert codes == [0, 74], said
    assert "looked at.jsonl cannot be written: it is open in another program; close it there" in said


def test_a_run_is_held_and_seen_to_be(place: Path, tiny: Path) -> None:
    run = place / "held run"
    start = ["train", "my rows.jsonl", "-m", "tiny.gguf", "-o", "b d.gguf", "--run-dir", run, *BRIEF]
    ended = fabric(*start, env=STANDIN, cwd=place)
    assert ended.code == 0 and 'fabric generate -m tiny.gguf -a "b d.gguf"' in ended.err, ended
    states = []
    with (run / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        states += [json.loads(fabric("runs", run, "--json", env=STANDIN, cwd=place).out)]
        one_sentence(fabric("resume", run, "--steps", "9", env=STANDIN, cwd=place), 74, "in use by another process")
    states += [json.loads(fabric("runs", run, "--json", env=STANDIN, cwd=place).out)]
    assert ["running" in json.dumps(state) for state in states] == [True, False]
    assert fabric("runs", run, "--prune", env=STANDIN, cwd=place).code == 0 and not run.exists()
    failed = fabric(*start, "--device", "cpu:9", env=STANDIN, cwd=place)
    assert failed.code == 69 and not run.exists(), failed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGQUIT, 75)])
def test_ctrl_c_and_ctrl_break_end_a_run_that_goes_on_later(place: Path, number: signal.Signals, code: int) -> None:
    run = place / f"stopped by {number}"
    long = [*BRIEF, "--steps", "100000"]
    with subprocess.Popen(
        [*FABRIC, "train", "my rows.jsonl", "-m", "tiny.gguf", "-o", "c.gguf", "--run-dir", str(run), *long],
        cwd=place, env=environment(STANDIN), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code and list(run.glob("step-*.ckpt")), err
    assert f'continue with: fabric resume "{run}"' in err, err


def test_a_second_ctrl_break_ends_at_once_with_the_code_of_the_signal(place: Path) -> None:
    process = script("held", "60", str(place / "never"), env=STANDIN)
    process.send_signal(signal.SIGQUIT)
    time.sleep(0.3)
    assert process.poll() is None
    assert stop(process, signal.SIGQUIT).code == 128 + signal.SIGQUIT


def test_a_reader_that_goes_away_ends_a_command_quietly(place: Path) -> None:
    (place / "many.txt").write_bytes(b"A line.\r\n\r\n" * 50_000)
    ended = shell("fabric prepare many.txt | head -c 10; echo ${PIPESTATUS[0]}", place, STANDIN)
    assert ended.out.endswith(b"141\n") and "rror" not in ended.err, ended
    ended = shell("fabric inspect tiny.gguf | true; echo ${PIPESTATUS[0]}", place, STANDIN)
    assert ended.out in (b"141\n", b"0\n") and "rror" not in ended.err, ended


@pytest.mark.parametrize("console", ["new", "old"])
def test_a_console_gets_a_bar_where_it_understands_what_draws_one(place: Path, console: str) -> None:
    line = ["train", "my rows.jsonl", "-m", "tiny.gguf", "-o", f"{console}.gguf", *BRIEF]
    code, seen = on_terminal(*line, stream="stderr", env={**STANDIN, "CONSOLE": console}, cwd=place)
    assert code == 0 and ("%|" in seen) == (console == "new"), seen


def test_templates_render_in_a_job_that_limits_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from fabric.text import sandbox

    calls: dict[str, tuple[object, ...]] = {}

    def function(name: str, result: int) -> object:
        def called(*arguments: object) -> int:
            calls[name] = arguments
            return result

        return called

    names = {"CreateJobObjectW": 7, "GetCurrentProcess": 8, "SetInformationJobObject": 1, "AssignProcessToJobObject": 1}
    kernel = types.SimpleNamespace(**{name: function(name, result) for name, result in names.items()})
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)
    sandbox._limit_memory()
    job, kind, limits, size = calls["SetInformationJobObject"]
    given = bytes(limits._obj)  # type: ignore[attr-defined]
    assert (job.value, kind, size.value, len(given)) == (7, 9, 144, 144)  # type: ignore[attr-defined]
    assert int.from_bytes(given[16:20], "little") == 0x100  # the flag, and of what
    assert int.from_bytes(given[112:120], "little") == sandbox.MEMORY_BYTES
    assert [one.value for one in calls["AssignProcessToJobObject"]] == [7, 8]  # type: ignore[attr-defined]
