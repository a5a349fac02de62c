"""A model that somebody cuts while it is mapped ends every command in one sentence and exit code 74."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.shell import FABRIC, Ended, environment, fabric, one_sentence

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut there")
LEFT = 8192  # bytes of the model; its tensors are behind them


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices are more than a pipe holds."""
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    return write_model(tmp_path_factory.mktemp("large") / "large.gguf", Shape(ffn=1024, vocab=640, context=4096))


@pytest.fixture
def model(large: Path, tmp_path: Path) -> Path:
    """A copy to cut."""
    return Path(shutil.copy(large, tmp_path / "model.gguf"))


def run_and_cut(model: Path, ready: Path | None, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Ended:
    """Runs a command and cuts the model: once the file `ready` has a line, or (None) once something came out."""
    process = subprocess.Popen(
        [*FABRIC, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(env)
    )
    assert process.stdout is not None
    if ready is None:
        os.read(process.stdout.fileno(), 1)
        time.sleep(0.3)  # until the pipe is full
    deadline = time.monotonic() + 60
    while ready is not None and not (ready.exists() and b"\n" in ready.read_bytes()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.truncate(model, LEFT)
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err.decode())


@pytest.mark.parametrize("traced", ["", "1"])
def test_training_ends_and_goes_on_when_the_file_is_back(
    traced: str, model: Path, large: Path, rows: Path, tmp_path: Path
) -> None:
    metrics, run = tmp_path / "metrics.jsonl", tmp_path / "run"
    settings = ["--steps", "2000", "--checkpoint-every", "1", "--threads", "2", "--ctx", "64", "-q"]
    ended = run_and_cut(
        model, metrics, "train", rows, "-m", model, "-o", tmp_path / "a.gguf", "--metrics", metrics, "--run-dir", run,
        *settings, env={"PYTHONFAULTHANDLER": traced},
    )  # fmt: skip
    one_sentence(ended, 74, "fabric train: ", "model.gguf became shorter", "put back the whole file")
    assert not (tmp_path / "a.gguf").exists()
    shutil.copy(large, model)
    resumed = subprocess.Popen([*FABRIC, "resume", str(run)], stderr=subprocess.PIPE, env=environment())
    seen = len(metrics.read_bytes())
    deadline = time.monotonic() + 60
    while len(metrics.read_bytes()) <= seen:
        assert resumed.poll() is None and time.monotonic() < deadline, resumed.communicate()
        time.sleep(0.01)
    resumed.kill()
    resumed.communicate()


@pytest.mark.parametrize(
    "line",
    [
        "generate -m MODEL --prompt hello --max-tokens 4000 --ctx 4096 --temperature 0",
        "quantize MODEL --type q8_0 -o -",
        "merge -m MODEL -a ADAPTER -o -",
        "merge -m MODEL -a ADAPTER --type keep -o -",
    ],
)
def test_every_other_command_ends_too(line: str, model: Path, large: Path, rows: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    if "ADAPTER" in line:
        steps = ["--steps", "1", "--ctx", "64", "--run-dir", tmp_path / "run"]
        assert fabric("train", rows, "-m", large, "-o", adapter, *steps).code == 0
    words = [{"MODEL": str(model), "ADAPTER": str(adapter)}.get(word, word) for word in line.split()]
    one_sentence(
        run_and_cut(model, None, *words), 74, f"fabric {words[0]}: ", " became shorter while it was being read"
    )
