"""The C op test as pytest sees it: built by the plain compiler, run on every instruction set this machine has."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devices import VALIDATED, swiftshader, vulkan

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c11", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
TEXTS = ROOT / "build" / "texts.c"  # the kernels that are compiled on a user's machine, as a build embeds them
TEXTS.parent.mkdir(exist_ok=True)
subprocess.run([sys.executable, str(ROOT / "native" / "spirv.py")], check=True)
subprocess.run([sys.executable, str(ROOT / "native" / "texts.py"), str(TEXTS)], check=True)
SOURCES = [
    ROOT / "native" / "os.c",
    ROOT / "native" / "graph" / "error.c",
    *sorted((ROOT / "native" / "backends" / "cpu").glob("*.c")),
    *sorted((ROOT / "native" / "quant").glob("*.c")),
    *sorted((ROOT / "native" / "kernels").glob("*.c")),
    *sorted((ROOT / "native" / "backends" / "vulkan").glob("*.c")),
    *sorted((ROOT / "native" / "backends" / "cuda").glob("*.c")),
    *sorted((ROOT / "native" / "backends" / "sycl").glob("*.c")),
    *sorted((ROOT / "native" / "backends" / "metal").glob("*.c")),
    TEXTS,
    ROOT / "tests" / "native" / "ops.c",
]


def build(compiler: str, out: Path, *flags: str) -> Path:
    """One compiler call for everything, as the extension is built."""
    command = [compiler, *FLAGS, *flags, *map(str, SOURCES), "-o", str(out), "-lm", "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_op_is_right_on_every_instruction_set_and_thread_count(tmp_path: Path) -> None:
    output = run(str(build(os.environ.get("CC", "cc"), tmp_path / "ops", "-O3")))
    assert "instruction set: generic" in output


@pytest.mark.parametrize("driver", ["installed", "swiftshader"])
def test_every_op_is_right_on_vulkan_without_a_word_from_the_validation_layer(driver: str, tmp_path: Path) -> None:
    vulkan()
    chosen = swiftshader(tmp_path) if driver == "swiftshader" else {}
    done = subprocess.run(
        [str(build(os.environ.get("CC", "cc"), tmp_path / "ops", "-O1")), "quick", "vulkan"],
        capture_output=True, text=True, check=False, env={**os.environ, **VALIDATED, **chosen},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("SwiftShader" in done.stdout) == (driver == "swiftshader")
    assert 'Insert instance layer "VK_LAYER_KHRONOS_validation"' in done.stderr
    assert not re.search("VUID|Validation (Error|Warning)", done.stdout + done.stderr), done.stdout


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
def test_clang_alone_builds_kernels_that_are_right(tmp_path: Path) -> None:
    run(str(build("clang", tmp_path / "ops", "-O2")), "quick")


def test_no_op_reads_or_writes_outside_its_operands(tmp_path: Path) -> None:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    run(str(build(os.environ.get("CC", "cc"), tmp_path / "ops", *flags)), "quick")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="the plain test runs these kernels here")
def test_arm_kernels_are_right_and_chosen_by_what_the_processor_has(tmp_path: Path) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("aarch64-linux-gnu-gcc or qemu-aarch64-static is not installed")
    program = build(compiler, tmp_path / "ops", "-O2", "-static")
    for cpu, bf16 in {"max": True, "neoverse-n1": False, "cortex-a53": False}.items():
        output = run(emulator, "-cpu", cpu, str(program), "quick")
        assert "instruction set: neon\n" in output
        assert ("instruction set: neon_bf16\n" in output) == bf16
