"""The Vulkan kernels lie in the package as SPIR-V; a build compiles them anew where they were changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

COMPILER = """#!/bin/sh
for last; do :; done
printf '\\003\\002\\043\\007' > "$last"
"""
COMPILED = "native/kernels/spirv.inc"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the SPIR-V is made of, by compilers that write one number whatever they read."""
    for folder in ("native", "tools"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    (tmp_path / "fabric" / "core").mkdir(parents=True)
    shutil.copy(REPOSITORY / "fabric/core/build.py", tmp_path / "fabric/core/build.py")
    (tmp_path / "bin").mkdir()
    for name in ("glslc", "glslang"):
        (tmp_path / "bin" / name).write_text(COMPILER)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def build(checkout: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Reads build.py, as setup.py does before it compiles any C."""
    env = {**os.environ, "PATH": path, "GLSLANG": str(checkout / "bin" / "glslang")}
    code = "import runpy; runpy.run_path('fabric/core/build.py')"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=checkout, env=env, text=True, capture_output=True, check=False)


def test_a_build_takes_the_kernels_as_they_were_compiled(checkout: Path) -> None:
    before = (checkout / COMPILED).read_bytes()
    done = build(checkout, "/nowhere")
    assert done.returncode == 0, done.stderr
    assert (checkout / COMPILED).read_bytes() == before


def test_a_build_compiles_changed_kernels_or_says_what_it_needs(checkout: Path) -> None:
    kernel = next((checkout / "native/kernels").glob("*.kernel"))
    kernel.write_text(kernel.read_text() + "\n/* changed */\n")
    before = (checkout / COMPILED).read_bytes()
    done = build(checkout, "/nowhere")
    assert done.returncode != 0 and "to compile them glslc is needed" in done.stderr
    assert (checkout / COMPILED).read_bytes() == before
    done = build(checkout, f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert f"static const uint32_t {kernel.stem}[] = {{\n119734787}};" in (checkout / COMPILED).read_text()
