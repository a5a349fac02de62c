"""The kernels for matrix units where there are none: their text runs on any Vulkan device with the units' part in plain
arithmetic, against the same op test. The units themselves are held by `benchmarks/gpu.sh`, on a real card.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.native.test_ops import FLAGS, ROOT, SOURCES
from tests.support.devices import VALIDATED, vulkan

sys.path.insert(0, str(ROOT / "native"))


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The op test on emulated units of BF16 or F16, each built once."""
    vulkan()
    return cache(lambda units: build(units, tmp_path_factory.mktemp("matrix")))


def build(units: str, folder: Path) -> Path:
    import spirv

    compiler, _ = spirv.best()
    if compiler is None:
        pytest.skip("neither glslang nor glslc is installed")
    plain = {name: spirv.in_plain_arithmetic(text) for name, text in spirv.sources().items()}
    kernels = {name: spirv.compiled(compiler, {"plain": text})["plain"] for name, text in plain.items()}
    table = folder / "spirv.c"
    table.write_text(f'#include "{ROOT}/native/kernels/kernels.h"\n{spirv.table(kernels)}')
    sources = [table, *(source for source in SOURCES if source.name != "spirv.c")]
    out = folder / "ops"
    command = [
        os.environ.get("CC", "cc"),
        *FLAGS,
        "-O1",
        "-DFB_MATRIX_EMULATED",
        f"-DFB_MATRIX_FIRST={int(units == 'f16')}",
        "-DFB_SLAB_BYTES=16384",
        *map(str, sources),
        "-o",
        str(out),
    ]
    done = subprocess.run([*command, "-lm", "-lpthread", "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


BF16 = ["linear", "linear_dx", "linear_dw", "attention", "attention_dq", "attention_dkv"]
F16 = ["linear", "small_dx"]  # what F16 units serve: sums along rows


@pytest.mark.parametrize(("units", "op"), [*(("bf16", op) for op in BF16), *(("f16", op) for op in F16)])
def test_the_kernel_is_right(units: str, op: str, ops: Callable[[str], Path]) -> None:
    command = [str(ops(units)), "quick", "vulkan", op]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **VALIDATED})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" {units} matrix units" in done.stdout
    assert not re.search("VUID|Validation (Error|Warning)", done.stdout + done.stderr), done.stdout
