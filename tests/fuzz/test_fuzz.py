"""Bytes of strangers end in a result or in one sentence: a fixed number of mutated inputs for every reader, or a minute
of them where everything must run. To look further, by hand: python -m tests.fuzz.fuzz NAME.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import fuzz
from tests.support.paths import REPOSITORY

RUNS = {
    "gguf": 400,
    "rows": 300,
    "toml": 200,
    "checkpoints": 150,
    "folders": 400,
    "adapters": 400,
    "template": 25,
    "models": 40,
}


@pytest.mark.parametrize("name", RUNS)
def test_no_input_crashes_hangs_or_fills_memory(name: str) -> None:
    effort = ["--seconds", "60"] if os.environ.get("FABRIC_CI") else ["--runs", str(RUNS[name])]
    line = [sys.executable, "-m", "tests.fuzz.fuzz", name, *effort]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    if fuzz.TARGETS[name].files:
        assert told["steps"] > 50 and told["kept"] > len(fuzz.TARGETS[name].seeds()), "coverage leads nowhere"


def hidden(folder: Path, data: bytes) -> None:
    """Goes wrong behind three letters in a row."""
    if data[:1] != b"k":
        return
    if data[1:2] != b"e":
        return
    if data[2:3] == b"y":
        raise KeyError("found")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (hidden, "KeyError"),
        (lambda folder, data: bytearray(50 << 20) if len(data) > 20 else None, "MiB"),
        (lambda folder, data: sys.exit(3) if b"~" in data else None, "SystemExit"),
    ],
)
def test_the_search_finds_what_is_wrong(
    run: object, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    letters = tuple(bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyz!~")
    planted = fuzz.Target(run, ("test_fuzz.py",), lambda: [b"abcdef"], letters)  # type: ignore[arg-type]
    monkeypatch.setitem(fuzz.TARGETS, "planted", planted)
    with pytest.raises(SystemExit):
        fuzz.search("planted", 20_000, 1)
    assert said in capsys.readouterr().err
    assert len(list((tmp_path / "build/fuzz").iterdir())) == 1
