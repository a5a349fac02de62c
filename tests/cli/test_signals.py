"""Ctrl-C and SIGTERM are heard within a second, whatever a command is at; a second one ends it at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, Ended, environment, one_sentence

HEARD_S = 3.0  # a second, on a machine that has other work too; every case here has far more to do
TICKS = os.sysconf("SC_CLK_TCK")
LONG = 50_000  # tokens of a row: seconds in single launches


@pytest.fixture(scope="module")
def work(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that take long."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "many.jsonl").write_text(rows.read_text() * 3000)
    row = {"tokens": [n % 300 for n in range(LONG)], "train": [0] + [1] * (LONG - 1)}
    (folder / "long.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def start(*arguments: object, cwd: Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*FABRIC, *map(str, arguments)], cwd=cwd, env=environment(), stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def busy(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits until it has used so much of the processor: beyond its imports."""
    wait(lambda: sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15])) / TICKS > seconds, process)


def wait(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> Ended:
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < HEARD_S
    return Ended(process.returncode, out, err.decode())


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("train many.jsonl -m {tiny} --run-dir {run}", signal.SIGINT),
        ("eval long.jsonl -m {tiny} --ctx 50000", signal.SIGTERM),
        ("bench -m {tiny} --ctx 50000", signal.SIGINT),
        ("quantize {tiny} --calibrate many.jsonl -o {run}", signal.SIGTERM),
    ],
)
def test_a_signal_is_heard_while_rows_are_read_and_inside_the_core(
    line: str, number: signal.Signals, work: Path, tiny: Path, tmp_path: Path
) -> None:
    process = start(*line.format(tiny=tiny, run=tmp_path / "run").split(), cwd=work)
    busy(process, 2.0)
    one_sentence(stop(process, number), 128 + number, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["-", "fifo", "/dev/stdin"])
def test_a_signal_is_heard_while_a_pipe_is_waited_for(source: str, tiny: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = start("train", source, "-m", tiny, "--run-dir", "run", cwd=tmp_path, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b'{"text": "one"}\n')
    process.stdin.flush()
    wait((tmp_path / "run" / "lock").exists, process)
    time.sleep(0.3)
    one_sentence(stop(process, signal.SIGINT), 130, "interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_signal_is_heard_inside_a_long_step_and_inside_validation(
    work: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    flags = ["-m", tiny, "--run-dir", tmp_path / "run", "--rank", "2", "--ctx", LONG, "--steps", "1"]
    step, validation = ["long.jsonl"], [rows, "--val", "long.jsonl"]
    for data, number, code in ((step, signal.SIGINT, 130), (validation, signal.SIGTERM, 75)):
        process = start("train", *data, *flags, cwd=work)
        assert process.stderr is not None
        while b"parameters train" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1.0)
        ended = stop(process, number)
        assert ended.code == code and "stopping" in ended.err and "fabric resume" in ended.err, ended
        resumed = start("resume", tmp_path / "run", cwd=work)
        busy(resumed, 1.5)
        again = stop(resumed, number)
        assert again.code == code and "fabric resume" in again.err, again
        for path in (tmp_path / "run").iterdir():
            path.unlink()


SCRIPT = """
import sys, time
from fabric import interrupts
from fabric.cli import signals
from fabric.core import Device
from fabric.files import open_output
signals.listen()
if len(sys.argv) > 3:
    result = open_output(sys.argv[3])
    result.__enter__().write(b"half of it")
print("ready", flush=True)
if sys.argv[1] == "deaf":
    Device("cpu").peak("f32", 60.0)  # a call that nothing cancels
with interrupts.held():
    began = time.monotonic()
    while time.monotonic() - began < float(sys.argv[2]):
        time.sleep(0.01)
print("asked" if interrupts.asked() else "not asked", flush=True)
"""


def script(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline().strip() == b"ready"
    time.sleep(0.3)
    return process


def test_a_call_that_cannot_be_cancelled_does_not_keep_a_command_and_leaves_nothing_half_written(
    tmp_path: Path,
) -> None:
    ended = stop(script("deaf", "0", str(tmp_path / "result")), signal.SIGTERM)
    assert (ended.code, ended.err) == (143, "fabric: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_the_second_signal_ends_at_once_and_one_that_comes_twice_is_one(tmp_path: Path) -> None:
    process = script("held", "60", str(tmp_path / "result"))
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    assert stop(process, signal.SIGINT).code == -signal.SIGINT
    assert not list(tmp_path.iterdir())
    process = script("held", "1")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"asked\n")
