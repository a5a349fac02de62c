"""CUDA's products on the matrix units of warps, as text that runs on the host: each way in which operands reach shared
memory, each op, with reductions in parts and whole. A card runs the op test of all backends."""

import shutil
import subprocess
from pathlib import Path

from tests.native.test_ops import ROOT
from tests.native.test_portable import EMULATED, compile_together

CUDA = ROOT / "native" / "backends" / "cuda"
F32, BF16 = 1, 2
# OP, BM, BN, WM, WN, X, W, OUT, ACC, X_RAW, W_RAW, PARTS
KERNELS = (
    (0, 64, 16, 16, 16, BF16, F32, F32, 0, 0, 1, 1),
    (1, 64, 16, 16, 16, F32, F32, F32, 0, 1, 1, 0),
    (2, 16, 64, 16, 16, F32, BF16, F32, F32, 1, 0, 1),
    (2, 64, 32, 16, 32, BF16, F32, F32, F32, 0, 1, 1),
    (0, 64, 64, 32, 32, BF16, F32, BF16, BF16, 0, 0, 1),
    (1, 64, 64, 32, 32, F32, BF16, BF16, F32, 0, 0, 0),
)
NAMES = ("OP", "BM", "BN", "WM", "WN", "X", "W", "OUT", "ACC", "X_RAW", "W_RAW", "PARTS")
ALWAYS = {"STAGES": 3, "U": 0, "BIAS": 0, "SCALED": 1, "X_WHOLE": 1, "W_WHOLE": 1, "PAIRS": 1}


def test_products_of_warps_are_right_in_their_own_text(tmp_path: Path) -> None:
    for path in (*(CUDA / name for name in ("product_mma.cu", "common.cu", "args.h")), *(EMULATED / "warps").iterdir()):
        shutil.copy(path, tmp_path)
    programs, jobs = [], []
    for number, values in enumerate(KERNELS):
        constants = {**dict(zip(NAMES, values, strict=True)), **ALWAYS}
        programs.append(tmp_path / f"products{number}")
        flags = [f"-D{name}={value}" for name, value in constants.items()]
        jobs.append(
            [
                "g++",
                "-std=c++20",
                "-O1",
                "-w",
                *flags,
                str(tmp_path / "products.cpp"),
                "-o",
                str(programs[-1]),
                "-lpthread",
            ]
        )
    compile_together(jobs)
    for program, values in zip(programs, KERNELS, strict=True):
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{values}: {done.stdout}{done.stderr}"
