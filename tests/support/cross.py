"""Programs for other systems: a compiler that has their headers, and what runs them here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def zig(target: str, folder: Path, sources: Sequence[Path | str], *flags: str) -> None:
    """Compiles C for another system, in a folder, without a warning. Skips where there is no such compiler."""
    command = [sys.executable, "-m", "ziglang", "cc"]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("a compiler for other systems is not there: pip install ziglang")
    command += ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined", "-target", target, *flags]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[:4000]


class Wine:
    """Windows programs, in a Windows of their own. Skips where Wine is not there."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("wine"):
            pytest.skip("Wine is not installed")
        self.env = {**os.environ, "WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
        subprocess.run(["wineboot", "--init"], env=self.env, capture_output=True, check=True)

    def run(
        self, program: Path, *words: str | Path, cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """One to its end."""
        return subprocess.run(
            ["wine", str(program), *map(str, words)], capture_output=True, text=True, check=False, timeout=300,
            env={**self.env, **extra}, cwd=cwd,
        )  # fmt: skip

    def stop(self) -> None:
        """Ends what Wine runs in the background."""
        subprocess.run(["wineserver", "-k"], env=self.env, capture_output=True, check=False)
