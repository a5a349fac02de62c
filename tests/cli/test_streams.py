"""The manners of a filter: what goes where, and what happens when a neighbour in the pipe goes away."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, environment, fabric, on_terminal, one_sentence, shell

QUICK = "--steps 2 --rank 2 --ctx 64 --batch 4 --run-dir run"


def test_the_whole_pipeline_runs_through_pipes_and_equals_the_way_over_files(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    piped = shell(
        f"fabric prepare {rows} | fabric template -m {tiny} | fabric train -m {tiny} -o - {QUICK} "
        f"| fabric merge -m {tiny} -a - -o - | fabric quantize --type q8_0 -o tuned.gguf",
        tmp_path,
    )
    assert piped.code == 0, piped.err
    assert piped.out == b""
    filed = shell(
        f"fabric prepare {rows} -o p.jsonl && fabric template p.jsonl -m {tiny} -o t.jsonl && "
        f"fabric train t.jsonl -m {tiny} -o a.gguf {QUICK}2 && fabric merge -m {tiny} -a a.gguf -o m.gguf && "
        f"fabric quantize m.gguf --type q8_0 -o filed.gguf",
        tmp_path,
    )
    assert filed.code == 0, filed.err
    assert (tmp_path / "tuned.gguf").read_bytes() == (tmp_path / "filed.gguf").read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        "fabric prepare many.jsonl | head -c 100",
        "fabric template many.jsonl -m {tiny} | head -c 100",
        "fabric merge -m {tiny} -a {adapter} | head -c 100",
        "fabric quantize {tiny} | head -c 100",
        "fabric inspect {tiny} --tensors | head -c 100",
        "fabric inspect {tiny} {adapter} | head -c 1",
        "fabric generate many.jsonl -m {tiny} --max-tokens 1 | head -n 1",
        "fabric generate --chat -m {tiny} --max-tokens 1 < many.jsonl | head -n 1",
        "fabric plot m.jsonl -o - | head -c 1",
        "fabric train {rows} -m {tiny} -o - {QUICK} | head -c 100",
        "fabric train {rows} -m {tiny} -o a.gguf --metrics - {QUICK}2 | true",
    ],
)
def test_a_reader_that_leaves_early_ends_the_command_without_a_word(
    line: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "many.jsonl").write_text(rows.read_text() * 500)
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 1}\n')
    command = line.format(tiny=tiny, rows=rows, adapter=adapter, QUICK=QUICK)
    first = command.index("fabric")
    ended = shell(command[:first] + command[first:].replace(" | ", " -q | ", 1), tmp_path)
    assert ended.err == ""
    assert ended.code in (0, 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "line", ["merge -m {tiny} -a {adapter}", "inspect {tiny}", "devices", "train {rows} -m {tiny} -o - {QUICK} -q"]
)
def test_a_closed_stdout_is_a_failed_write_and_no_traceback(
    line: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    command = line.format(tiny=tiny, rows=rows, adapter=adapter, QUICK=QUICK)
    one_sentence(shell(f"fabric {command} >&-", tmp_path), 74, "bad file descriptor")


def test_a_closed_stderr_leaves_stdout_to_the_result(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    merged = f"merge -m {tiny} -a {adapter}"
    ended = shell(f"fabric {merged} > whole.gguf && fabric {merged} 2>&- > quiet.gguf", tmp_path)
    assert ended.code == 0
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "quiet.gguf").read_bytes()
    assert shell("fabric quantize nowhere.gguf 2>&-", tmp_path).out == b""


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("fabric train {rows} -m {tiny} --dry-run --json | jq '.peak_bytes > 1000'", "true\n"),
        (
            "fabric train {rows} -m {tiny} -o a.gguf --metrics - {QUICK} | jq -r '[.step,.loss]|@tsv' | cut -f 1",
            "1\n2\n",
        ),
        ("sh -c '{python} -m fabric train - -m {tiny} -o - {QUICK}' < {rows} > a.gguf && fabric inspect a.gguf --json "
         "| jq -r .kind", "adapter\n"),
        ("fabric eval {rows} -m {tiny} -a {adapter} --json | jq -e '.perplexity < 1e9'", "true\n"),
        ("fabric generate {rows} -m {tiny} --max-tokens 2 | jq -r .finish | wc -l", "12\n"),
        ("fabric inspect {adapter} --json | jq -r '.history[].command'", "train\n"),
        ("fabric train {rows} -m {tiny} -o a --metrics - {QUICK} | fabric plot -o m.svg && head -c 4 m.svg", "<svg"),
        ("fabric prepare < {rows} | fabric eval -m {tiny} --markdown | sed -n 1p | cut -c 1", "|\n"),
    ],
)  # fmt: skip
def test_commands_and_tools_of_the_shell_work_together(
    line: str, out: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    if "jq" in line and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    command = line.replace("{tiny}", str(tiny)).replace("{rows}", str(rows)).replace("{adapter}", str(adapter))
    ended = shell(command.replace("{python}", sys.executable).replace("{QUICK}", QUICK), tmp_path)
    assert (ended.code, ended.out.decode()) == (0, out), ended.err
    gate = shell(f"fabric eval {rows} -m {tiny} --json | jq -e '.perplexity < 1'", tmp_path) if "-e" in line else None
    assert gate is None or (gate.code, gate.out) == (1, b"false\n")


def test_a_short_stream_is_refused_by_whoever_reads_it(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    cut = shell(f"fabric merge -m {tiny} -a {adapter} | head -c 20000 | fabric quantize -o out.gguf", tmp_path)
    assert cut.code == 65 and "cut short" in cut.err
    assert list(tmp_path.iterdir()) == []


def test_results_go_to_stdout_and_everything_else_to_stderr(tiny: Path, rows: Path, adapter: Path) -> None:
    told = fabric("prepare", rows)
    assert len(told.out.splitlines()) == 12 and "12 rows" in told.err
    merged = fabric("merge", "-m", tiny, "-a", adapter)
    assert merged.out[:4] == b"GGUF" and "merged" in merged.err
    assert json.loads(fabric("inspect", tiny, "--json").out)["architecture"] == "llama"
    assert fabric("merge", "-m", tiny, "-a", adapter, "-q").err == ""


def test_json_reports_go_to_stdout_unless_the_result_is_there(tiny: Path, tmp_path: Path) -> None:
    filed = fabric("quantize", tiny, "-o", tmp_path / "q.gguf", "--json")
    assert json.loads(filed.out)["type"].lower() == "q8_0"
    piped = fabric("quantize", tiny, "--json")
    assert piped.out[:4] == b"GGUF" and json.loads(piped.err)["type"].lower() == "q8_0"


def test_metrics_on_stdout_are_one_object_a_step(tiny: Path, rows: Path, tmp_path: Path) -> None:
    told = shell(f"fabric train {rows} -m {tiny} -o a.gguf --metrics - {QUICK} -q", tmp_path)
    records = [json.loads(line) for line in told.out.splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["loss"] > 0 and record["tokens_per_s"] > 0 for record in records)


def test_two_inputs_never_share_stdin_and_two_outputs_never_stdout(tiny: Path, rows: Path) -> None:
    one_sentence(fabric("merge", "-m", "-", "-a", "-", "-o", "x"), 2, "stdin")
    one_sentence(fabric("train", rows, "-m", tiny, "-o", "-", "--metrics", "-"), 2, "stdout")
    one_sentence(fabric("train", rows, "-m", tiny, "-o", "/dev/stdout", "--metrics", "-"), 2, "stdout")
    one_sentence(fabric("train", "-", "-m", "-", "-o", "x"), 2, "stdin")
    one_sentence(fabric("train", "-", "-m", "/dev/stdin", "-o", "x"), 2, "stdin")


@pytest.mark.parametrize(
    "command",
    [
        "merge -m {tiny} -a {adapter}",
        "quantize {tiny}",
        "train {rows} -m {tiny} -o -",
        "train {rows} -m {tiny} -o /dev/stdout",
        "plot x -o -",
    ],
)
def test_binary_never_reaches_a_terminal(command: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    arguments = command.format(tiny=tiny, adapter=adapter, rows=rows).split()
    code, seen = on_terminal(*arguments, stream="stdout", cwd=tmp_path)
    assert code == 2 and seen == ""
    assert not (tmp_path / ".fabric").exists()


def test_a_filter_with_nothing_piped_in_says_so_instead_of_waiting(tiny: Path) -> None:
    for arguments in (["prepare"], ["template", "-m", str(tiny)], ["quantize"], ["eval", "-m", str(tiny)], ["plot"]):
        code, seen = on_terminal(*arguments, stream="stdin")
        assert code == 2 and "nothing to read" in seen


def test_a_bar_is_drawn_on_a_terminal_only_and_not_when_silence_is_asked_for(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    def bar(number: int, *more: str, columns: int = 160, **env: str) -> str:
        arguments = ["train", str(rows), "-m", str(tiny), "-o", str(tmp_path / "a.gguf"), *QUICK.split()[:-2]]
        run = ["--run-dir", str(tmp_path / f"run{number}")]
        return on_terminal(*arguments, *run, *more, stream="stderr", env=env, cwd=tmp_path, columns=columns)[1]

    drawn = bar(0)
    assert "loss" in drawn and "tokens/s" in drawn and "% of peak" in drawn and re.search(r"\d/2", drawn)
    for columns in (80, 160):  # everything is to be seen
        drawn = bar(columns, columns=columns)
        assert re.search(r"2/2 .* loss \S+ lr \S+ \d+ tokens/s \d+ % of peak \S+ MiB", drawn.replace(",", "")), drawn
    assert "% of peak" not in bar(1, TERM="dumb")
    assert "% of peak" not in bar(2, "--json")
    assert bar(3, "-q") == ""
    told = fabric(
        "train", rows, "-m", tiny, "-o", tmp_path / "b.gguf", *QUICK.split()[:-2], "--run-dir", tmp_path / "r"
    )
    assert "\r" not in told.err and "% of peak" not in told.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(
    number: signal.Signals, code: int, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    flags = [
        "--steps",
        "4000",
        "--rank",
        "2",
        "--ctx",
        "64",
        "--batch",
        "2",
        "--run-dir",
        "run",
        "--schedule",
        "constant",
    ]
    process = subprocess.Popen(
        [*FABRIC, "train", str(rows), "-m", str(tiny), "-o", "a.gguf", *flags, "--metrics", "m.jsonl"],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        (tmp_path / "m.jsonl").exists() and (tmp_path / "m.jsonl").stat().st_size
    ):
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told.decode()
    assert b"stopping" in told and b"fabric resume run" in told
    assert not (tmp_path / "a.gguf").exists() and list((tmp_path / "run").glob("step-*.ckpt"))


def test_a_run_whose_terminal_goes_away_checkpoints(tiny: Path, rows: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    flags = ["--steps", "40000", "--rank", "2", "--ctx", "64", "--batch", "2", "--run-dir", "run"]
    process = subprocess.Popen(
        ["setsid", "--ctty", *FABRIC, "train", str(rows), "-m", str(tiny), *flags], cwd=tmp_path,
        env=environment({"TERM": "xterm"}), stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"loss" not in seen:
        seen += os.read(master, 65536)
    os.close(master)
    process.wait(60)
    assert list((tmp_path / "run").glob("step-*.ckpt"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["generate many.jsonl --max-tokens 400 -o out", "eval many.jsonl"])
def test_a_stopped_reader_of_rows_ends_at_once_and_leaves_nothing(
    command: str, number: signal.Signals, code: int, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "many.jsonl").write_text(rows.read_text() * 3000)
    process = subprocess.Popen(
        [*FABRIC, *command.split(), "-m", str(tiny)], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(2)
    process.send_signal(number)
    out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert told.decode() in ("", f"fabric {command.split()[0]}: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["many.jsonl"]


def test_a_killed_merge_leaves_no_file_behind(tiny: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    process = subprocess.Popen([*FABRIC, "quantize", "-", "-o", "q.gguf"], cwd=tmp_path, env=environment(), stdin=read)
    os.write(write, tiny.read_bytes()[:1000])
    while struct.unpack("i", fcntl.ioctl(read, termios.FIONREAD, bytes(4)))[0]:  # until it has read them
        time.sleep(0.02)
    os.close(read)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    os.close(write)
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_sees_what_trains_and_the_rest_dimmed(tiny: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi \x1b[31mred"}, {"role": "assistant", "content": "so\nit is"}]
    rows = [
        {"messages": chat},
        {"prompt": "one ", "completion": "two"},
        {"text": "all"},
        {"tokens": [5, 6], "train": [0, 1]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("template", tmp_path / "rows.jsonl", "-m", tiny)
    code, seen = on_terminal(*line, stream="stdout")
    seen = seen.replace("\r\n", "\n")
    assert code == 0 and "so\nit is<|im_end|>\x1b[2m\n\x1b[0m" in seen, seen
    assert "\x1b[2m<|im_start|>user\nhi \\x1b[31mred<|im_end|>\n<|im_start|>assistant\n\x1b[0mso" in seen
    assert "\x1b[2mone \x1b[0mtwo\n\nall\n" in seen and '"tokens":[5,6]' in seen
    code, plain = on_terminal(*line, stream="stdout", env={"NO_COLOR": "1"})
    assert code == 0 and "\x1b" not in plain and "assistant\n[so\nit is<|im_end|>]" in plain.replace("\r\n", "\n")
    assert "one [two]" in plain
    code, checked = on_terminal(*line, "--check", stream="stdout")
    assert code == 0 and "the rest is dim" in checked and "\x1b[2m<|im_start|>user\r\nhi \\x1b[31mred" in checked, (
        checked
    )
    piped = fabric(*line)
    assert json.loads(piped.out.splitlines()[0])["train"] and b"\x1b" not in piped.out


def test_a_check_counts_rows_beyond_the_context_and_what_trains(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "x " * m}, {"role": "assistant", "content": "y " * n}]}
        for m, n in ((1, 2), (1, 90), (90, 2))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("template", tmp_path / "rows.jsonl", "-m", tiny, "--check")
    told = json.loads(fabric(*line, "--ctx", "64", "--json").out)
    assert (told["over_context"], told["context"], told["answers"], told["nothing_to_train"]) == (2, 64, 2, 1)
    assert told["tokens"] < 128 and told["lengths"]["max"] > 90, "lengths are those of whole rows"
    whole = json.loads(fabric(*line, "--json").out)
    assert (whole["over_context"], whole["answers"]) == (0, 3) and whole["lengths"] == told["lengths"]
    assert whole["context"] > 90 and whole["lengths"]["max"] > 90
    text = fabric(*line, "--ctx", "64").out.decode()
    assert "in 2 spans" in text and "2 rows are longer than the context of 64 tokens" in text


def test_a_template_is_a_file_or_stdin_and_keeps_to_its_limits(tiny: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    line = ("template", tmp_path / "rows.jsonl", "-m", tiny, "--template", "-")
    plain = b"{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    told = fabric(*line, stdin=plain + b"{% if add_generation_prompt %}assistant: {% endif %}")
    assert json.loads(told.out)["text"] == "user: hi<|im_end|>assistant: yo<|im_end|>", told.err
    for source, said in (
        (b"{{ 'x' * 10000000000 }}", "memory"),
        (b"{{ messages.__class__.__mro__ }}", "unsafe"),
        (b"{% include '/etc/passwd' %}", "loader"),
        (b"{% for m in messages %}", "line 1"),
        (b"\xff", "not UTF-8"),
    ):
        one_sentence(fabric(*line, stdin=source), 65, said)
