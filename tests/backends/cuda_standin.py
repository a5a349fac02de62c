"""Builds standin.c, which stands in for NVIDIA's driver, compiler and NCCL; the environment of a command with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.native.test_ops import FLAGS, SOURCES
from tests.native.test_portable import emulated_objects

SOURCE = Path(__file__).with_name("standin.c")


def build_standin(folder: Path, emulated: bool = False) -> Path:
    """The folder of the libraries; with `emulated`, the portable kernels run, on the processor."""
    flags = [*FLAGS, "-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    command = [os.environ.get("CC", "cc"), *flags, str(SOURCE), "-o", str(folder / "libcuda.so.1")]
    if emulated:
        sources = [str(path) for path in SOURCES if path.parent.name != "cuda" and path.name != "ops.c"]
        command += ["-DSTANDIN_EMULATED", *sources, *map(str, emulated_objects(folder))]
        command += ["-lm", "-lpthread", "-ldl", "-lrt", "-lstdc++", "-Wl,--allow-multiple-definition"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "lib64").mkdir()
    for name in (
        "libnvrtc.so.13",
        "lib64/libnvrtc.so.13",
        "libnccl.so.2",
        "lib64/libnccl.so.2",
    ):  # one library under all names
        (folder / name).symlink_to(folder / "libcuda.so.1")
    return folder


def beside(standin: Path, **settings: str) -> dict[str, str]:
    """The environment of a command that finds it; settings such as STANDIN_ARCH."""
    return {"LD_LIBRARY_PATH": str(standin), "CUDA_HOME": str(standin), **settings}
