"""What a program loses if the Python interface fails: its examples must run, and give what the commands give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fabric as package
from fabric.errors import UsageError
from tests.cli.shell import environment, fabric
from tests.support.paths import REPOSITORY


def test_the_examples_of_the_page_run_and_agree_with_the_commands(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").symlink_to(tiny)
    (tmp_path / "rows.jsonl").symlink_to(rows)
    examples = re.findall(r"(?s)```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text())
    assert len(examples) == 4
    text = "\n".join(examples).replace("batch=2", 'batch=2, device="cpu"')
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment(), capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b"" and len(done.stdout.splitlines()) >= 4
    flags = ["--rank", "4", "--steps", "3", "--ctx", "64", "--batch", "2", "--run-dir", "other", "-o", "other.gguf"]
    assert fabric("train", "rows.jsonl", "-m", "base.gguf", *flags, cwd=tmp_path).code == 0
    assert (tmp_path / "other.gguf").read_bytes() == (tmp_path / "adapter.gguf").read_bytes()
    merge = ["merge", "-m", "base.gguf", "-a", "other.gguf", "-o", "other-merged.gguf"]
    assert fabric(*merge, cwd=tmp_path).code == 0
    assert (tmp_path / "other-merged.gguf").read_bytes() == (tmp_path / "merged.gguf").read_bytes()


def test_every_public_name_is_there_and_no_other() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="trian"):
        package.trian  # noqa: B018
    with pytest.raises(UsageError, match="--rank must be at least 1"):
        package.train(package.TrainSettings(data="rows.jsonl", model="base.gguf", rank=0))
