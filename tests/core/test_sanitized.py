"""The graph, the planners, the kernels behind them and the merging of words under AddressSanitizer and
UndefinedBehaviorSanitizer: the other tests of this folder, and a minute of random models, on a core that was built to
notice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a module of Python beside a core that was built to notice."""
    library, place = runtime(), tmp_path_factory.mktemp("sanitized")
    for name in ("fabric", "native", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    environment = {**os.environ, "FABRIC_CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined", "CC": "gcc"}
    environment["PYTHONPATH"] = str(place)
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    environment |= {"LD_PRELOAD": library, "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_no_graph_reads_or_writes_outside_its_memory(
    sanitized: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    files = [f"tests/core/test_{name}.py" for name in ("constants", "gradients", "plan", "safety", "words")]
    done = sanitized("pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_no_model_makes_the_core_do_so(sanitized: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = sanitized("tests.fuzz.fuzz", "models", "--seconds", "60")
    assert done.returncode == 0, done.stderr[-6000:]
    assert json.loads(done.stdout)["runs"] > 20
