"""A step allocates nothing on the host: memory that grows with the steps would end a run of days."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.test_ops import TEXTS

ROOT = Path(__file__).parents[2]
WRAPPED = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "mmap")


@pytest.mark.skipif(sys.platform != "linux", reason="the linker's --wrap counts the calls")
def test_a_step_allocates_nothing(tmp_path: Path) -> None:
    sources = [*sorted((ROOT / "native").rglob("*.c")), TEXTS, Path(__file__).with_name("allocations.c")]
    out = tmp_path / "allocations"
    flags = ["-std=gnu11", f"-I{ROOT}/native/include", "-Wall", "-Wextra", "-Werror"]
    wrapped = [f"-Wl,--wrap={name}" for name in WRAPPED]
    command = [os.environ.get("CC", "cc"), *flags, *map(str, sources), "-o", str(out), *wrapped]
    command += ["-lm", "-lpthread", "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    done = subprocess.run([str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, later = map(int, done.stdout.split())
    assert before > 20 and later == 0
