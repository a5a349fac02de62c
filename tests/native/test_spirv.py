"""A build compiles the Vulkan kernels by the compiler that is there; a source package carries them compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import environment
from tests.support.paths import REPOSITORY

COMPILED = "native/kernels/spirv.inc"
# Writes one number whatever it reads; one of the two knows no cooperative matrices.
COMPILER = """#!/bin/sh
for last; do text=$before; before=$last; done
for argument; do case $argument in *.comp) grep -q '%s' "$argument" && exit 1;; esac; done
printf '\\003\\002\\043\\007' > "$last"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the core is built of, and no kernels that are compiled."""
    shutil.copytree(REPOSITORY / "native", tmp_path / "native", ignore=shutil.ignore_patterns("spirv.inc"))
    shutil.copytree(REPOSITORY / "fabric", tmp_path / "fabric", ignore=shutil.ignore_patterns("*.so", "*.o"))
    script = tmp_path / "native" / "spirv.py"  # the compiler of PyPI may be here, and is not to be seen
    script.write_text(script.read_text().replace("cmeel.prefix", "nowhere.prefix"))
    for name, refused in (("new", "no text has this"), ("old", "GL_KHR_cooperative_matrix")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "glslc").write_text(COMPILER % refused)
        (tmp_path / name / "glslc").chmod(0o755)
    return tmp_path


def build(checkout: Path, compiler: str, then: str = "") -> str:
    """Reads build.py, as setup.py does before it compiles any C, with a compiler or none; what it says."""
    tools = checkout / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "grep", "gcc", "as", "ld"):
        if not (tools / name).exists():
            (tools / name).symlink_to(str(shutil.which(name)))
    env = {**os.environ, "PATH": f"{checkout / compiler}{os.pathsep}{tools}", "CC": "gcc", "FABRIC_CFLAGS": "-O0"}
    code = f"import runpy; ffi = runpy.run_path('fabric/core/build.py')['ffi']; {then}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_build_compiles_what_the_compiler_knows_and_says_what_is_missing(checkout: Path) -> None:
    compiled = checkout / COMPILED
    told = build(checkout, "nowhere")
    assert "In this build Vulkan is not there" in told and told.count("\n") == 1
    told = build(checkout, "old")
    assert "In this build Vulkan uses no matrix units" in told and told.count("\n") == 1
    assert "product[] = {\n119734787}" in compiled.read_text() and "matrix_product" not in compiled.read_text()
    before = compiled.read_bytes()
    build(checkout, "nowhere")  # as from a source package that such a build has made
    assert compiled.read_bytes() == before
    assert build(checkout, "new") == ""
    assert "matrix_product[] = {" in compiled.read_text()
    before = compiled.read_bytes()
    assert build(checkout, "nowhere") == "" and compiled.read_bytes() == before
    kernel = checkout / "native/kernels/product.kernel"
    kernel.write_text(kernel.read_text() + "\n/* changed */\n")
    build(checkout, "new")
    assert compiled.read_bytes().split(b"\n")[0] != before.split(b"\n")[0]


def test_a_build_without_a_compiler_has_no_vulkan_and_says_so(checkout: Path) -> None:
    build(checkout, "nowhere", "ffi.compile()")
    done = subprocess.run(
        [sys.executable, "-m", "fabric", "devices"], cwd=checkout, env=environment({"PYTHONPATH": str(checkout)}),
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no Vulkan kernels: fabric was built without a shader compiler" in done.stderr
