"""The graph, the planners, the kernels behind them and the merging of words under AddressSanitizer and
UndefinedBehaviorSanitizer: the other tests of this folder, run again on a core that was built to notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Werror"


def runtime() -> str:
    """gcc's AddressSanitizer, which has to be loaded before the interpreter's own memory functions."""
    try:
        told = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("gcc is not here")
    if not Path(told.stdout.strip()).is_absolute():
        pytest.skip("gcc has no AddressSanitizer here")
    return told.stdout.strip()


def test_no_graph_reads_or_writes_outside_its_memory(tmp_path: Path) -> None:
    library = runtime()
    for name in ("fabric", "native", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "FABRIC_CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined", "CC": "gcc"}
    environment["PYTHONPATH"] = str(tmp_path)
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    environment |= {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/core/test_gradients.py",
         "tests/core/test_plan.py", "tests/core/test_words.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
