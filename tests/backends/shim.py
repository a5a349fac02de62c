"""Builds shim.c, which stands before libvulkan, and reads what it tells of a command that ran behind it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.devices import vulkan

SOURCE = Path(__file__).with_name("shim.c")


def build_shim(folder: Path) -> Path:
    """The library; skips where there is no Vulkan to stand before."""
    vulkan()
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    real = re.search(r"libvulkan\.so\.1 .*=> (.*)", known)
    if real is None:
        pytest.skip("libvulkan.so.1 is not where ldconfig knows it")
    out = folder / "libshim.so"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
               f'-DREAL="{real[1]}"', "-Wl,-soname,libvulkan.so.1", str(SOURCE), "-o", str(out), "-ldl"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def behind(shim: Path, log: Path | None = None, **settings: str) -> dict[str, str]:
    """The environment of a command behind the shim; settings such as SHIM_FAIL."""
    return {"LD_PRELOAD": str(shim), **({"SHIM_LOG": str(log)} if log else {}), **settings}


def events(log: Path, kind: str) -> list[list[float]]:
    """The numbers of every event of a kind."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [[float(number) for number in line[1:]] for line in lines if line[0] == kind]
