"""`fabric prepare` as a process: pipes, exit codes, files that appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import shell
from tests.cli.shell import Ended
from tests.data.preparing import chat, write

ROW = b'{"question": "Hi", "answer": "Hello", "label": "x"}\n'


def fabric(*arguments: str, stdin: bytes = b"") -> Ended:
    return shell.fabric("prepare", *arguments, stdin=stdin)


def test_rows_flow_through_a_pipe() -> None:
    done = fabric(stdin=ROW * 3)
    assert done.code == 0, done.err
    assert [json.loads(line) for line in done.out.splitlines()] == [chat("Hi", "Hello", label="x")] * 3


def test_flags_reach_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "ask,say,kind\n" + "".join(f"ask {i},say {i},{i % 2}\n" for i in range(40)))
    out, held = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    done = fabric(
        str(tmp_path / "a.csv"), "-o", str(out), "--field", "prompt=ask", "--field", "completion=say", "--system", "S",
        "--shuffle", "--seed", "7", "--holdout", f"{held}=0.1", "--stratify", "kind", "--keep-fields", "kind", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["held_out"] == {str(held): 4}
    rows = [json.loads(line) for path in (out, held) for line in path.read_text().splitlines()]
    assert len(rows) == 40 and all(len(row["messages"]) == 3 and row["kind"] in "01" for row in rows)


def test_a_bad_row_ends_with_65_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = fabric("-o", str(out), stdin=ROW + b"{\n" + ROW)
    assert (done.code, done.out, list(tmp_path.iterdir())) == (65, b"", [])
    assert "stdin:2: the line is not JSON" in done.err and done.err.count("\n") == 1
    done = fabric("-o", str(out), "--on-error", "skip", stdin=ROW + b"{\n" + ROW)
    assert done.code == 0 and len(out.read_bytes().splitlines()) == 2
    assert "stdin:2" in done.err and "1 bad" in done.err


def test_errors_have_their_exit_codes(tmp_path: Path) -> None:
    assert fabric(str(tmp_path / "none.jsonl")).code == 66
    assert fabric(stdin=b"just words\n").code == 2
    assert fabric("-o", str(tmp_path / "no" / "out.jsonl"), stdin=ROW).code == 74
    assert fabric("-o", "/dev/full", stdin=ROW).code == 74
    assert fabric(stdin=b"").code == 65


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"'{sys.executable}' -m fabric prepare | head -c 100"
    bash = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(bash, input=ROW * 100_000, capture_output=True, env=shell.environment(), timeout=60)
    assert len(done.stdout) == 100 and done.stderr == b""


PEAK = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in units of Linux")
def test_rows_that_wait_lie_on_disk_and_their_index_is_small(tmp_path: Path) -> None:
    """Rows of 50 MB that are shuffled, balanced and divided take a few MB more than a few rows."""

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as out:
            for i in range(rows):
                out.write(json.dumps({"prompt": f"{i} " + "x" * 900, "completion": "y", "label": "ab"[i % 2]}) + "\n")
        command = [*shell.FABRIC, "prepare", str(path), "-o", str(tmp_path / "out.jsonl"), "--shuffle", "-q"]
        command += ["--holdout", f"{tmp_path / 'v.jsonl'}=0.1", "--stratify", "label", "--balance", "label"]
        line = [sys.executable, "-c", PEAK, *command]
        told = subprocess.run(line, env=shell.environment(), capture_output=True, check=True, timeout=300)
        return int(told.stdout)

    assert peak(50_000) - peak(100) < 16 << 20
    assert sum(len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("out", "v")) == 100


def test_every_shape_of_row_passes_every_filter(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "one"},
        {"instruction": "b", "input": "c", "output": "two"},
        {"conversations": [{"from": "human", "value": "d"}, {"from": "gpt", "value": "three"}]},
        {"question": "e?", "text": "Q: e?\nA: Four.", "label": "x"},
        {"prompt": "a", "completion": "one", "label": "other"},  # a copy
        {"prompt": "f", "completion": "s"},  # too short
        {"prompt": "g", "completion": "long " * 9},  # too long
        {"prompt": "cafe\u0301\u00a0?  ", "completion": "five\r\n"},
    ]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "more.csv", "question,answer\nh,six\n")
    write(tmp_path / "more.tsv", "question\tanswer\ni\tseven\n")
    files = [str(tmp_path / name) for name in ("rows.jsonl", "more.csv", "more.tsv")]
    done = fabric(*files, "-", "--normalize", "--dedup", "--min-chars", "4", "--max-chars", "40", stdin=ROW)
    assert done.code == 0, done.err
    assert [json.loads(line) for line in done.out.splitlines()] == [
        chat("a", "one"), chat("b\n\nc", "two"), chat("d", "three"), chat("e?", "Four.", label="x"),
        chat("caf\u00e9 ?", "five"), chat("h", "six"), chat("i", "seven"), chat("Hi", "Hello", label="x"),
    ]  # fmt: skip
    assert done.err == "fabric prepare: 11 rows read, 8 written, 1 duplicates, 1 too short, 1 too long\n"


def test_as_many_rows_of_each_value_stay_as_the_rarest_has(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": str(i), "completion": "y", "kind": "ab"[i % 3 == 0]} for i in range(30)])
    flags = ["--balance", "kind", "--shuffle"]
    first, again, other = (
        fabric(str(tmp_path / "a.jsonl"), *flags, "--seed", seed).out.splitlines() for seed in ("1", "1", "2")
    )
    kinds = [json.loads(line)["kind"] for line in first]
    assert kinds.count("a") == kinds.count("b") == 10 and first == again != other
    asked = [int(json.loads(line)["messages"][0]["content"]) for line in first]
    assert asked != sorted(asked)
