"""The portable kernels in the CUDA dialect, whose devices are not here: their text runs on the host, a thread a fiber,
against the same op test as every backend. Metal's and SYCL's texts run behind those backends (tests/backends).
"""

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fabric.core.cuda import nvrtc as native_nvrtc
from tests.native.test_ops import FLAGS, ROOT, SOURCES

EMULATED = ROOT / "tests" / "native" / "emulated"
sys.path.insert(0, str(ROOT / "native"))

from texts import texts  # noqa: E402


def compile_together(jobs: list[list[str]]) -> None:
    """Compiler calls, two at a time."""

    def one(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, jobs))


def emulated_objects(folder: Path) -> list[Path]:
    """Every kernel's CUDA text, compiled for the processor: a function emulated_NAME each."""
    from spirv import KERNELS, expanded

    ahead = (
        f'#include "{EMULATED}/cuda.h"\n' + expanded(KERNELS / "cuda.prelude") + expanded(KERNELS / "common.prelude")
    )
    jobs, objects = [], []
    for path in sorted(KERNELS.glob("*.kernel")):
        source = folder / f"{path.stem}.cpp"
        source.write_text(ahead + expanded(path))
        objects.append(source.with_suffix(".o"))
        jobs.append(
            ["g++", "-std=c++17", "-O1", "-w", "-fPIC", f"-Drun=emulated_{path.stem}",
             f"-Dfb_kernel=kernel_{path.stem}", "-c", str(source), "-o", str(objects[-1])]
        )  # fmt: skip
    compile_together(jobs)
    return objects


def build(folder: Path) -> Path:
    objects = emulated_objects(folder)
    sources = [*SOURCES, EMULATED / "emulated.c"]
    out = folder / "ops"
    compile_together(
        [[os.environ.get("CC", "cc"), *FLAGS, "-DFB_EMULATED", "-O1", *map(str, sources), *map(str, objects),
          "-o", str(out), "-lm", "-lpthread", "-ldl", "-lstdc++", "-Wl,--allow-multiple-definition"]]
    )  # fmt: skip
    return out


def test_every_op_is_right_in_the_text_of_cuda(tmp_path: Path) -> None:
    done = subprocess.run([str(build(tmp_path)), "emulated"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def constants(kernel: str) -> str:
    """The list of its constants."""
    from spirv import KERNELS

    text = re.sub(r"\\\n", "", (KERNELS / "names.h").read_text(encoding="utf-8"))
    found = re.search(rf"#define {kernel}_CONSTANTS(?: (\w+)_CONSTANTS|.*\n)", text)
    assert found is not None
    return constants(found[1]) if found[1] else found[0]


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler from its package; it needs no card."""
    library = native_nvrtc()
    if library is None:
        pytest.skip("NVRTC is not there: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(library))


def architectures(compiler: ctypes.CDLL, least: int) -> list[int]:
    """Those of cards that are met, as far as the compiler knows them."""
    n = ctypes.c_int()
    compiler.nvrtcGetNumSupportedArchs(ctypes.byref(n))
    known = (ctypes.c_int * n.value)()
    compiler.nvrtcGetSupportedArchs(known)
    return [a for a in (75, 80, 86, 89, 90, 100, 120) if a >= least and a in set(known)]


def compile_text(compiler: ctypes.CDLL, text: str, options: list[str]) -> None:
    """Fails with the compiler's log; the text includes the embedded ones, as on a user's machine."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    included = texts()
    headers = (ctypes.c_char_p * len(included))(*included.values())
    names = (ctypes.c_char_p * len(included))(*(name.encode() for name in included))
    compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel", len(included), headers, names)
    flags = ["-std=c++17", "--device-as-default-execution-space", *options]
    code = compiler.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    assert code == 0, f"{text} {options}: {log.value.decode()[:2000]}"
    assert "serialized" not in log.value.decode(), f"{text} {options}: {log.value.decode()[:2000]}"


def test_nvrtc_compiles_every_portable_kernel_for_every_card() -> None:
    from spirv import KERNELS

    compiler = nvrtc()
    for architecture in architectures(compiler, 75):
        for path in sorted(KERNELS.glob("*.kernel")):
            sizes = {0: 128, 3: 128 if "attention" in path.stem else 1, 5: 64, 6: 64, 7: 4, 8: 4, 9: 1}
            if path.stem == "product_few":
                sizes |= {0: 64, 3: 8, 5: 8, 6: 4}
            constants = [f"-DSPEC_{n}={sizes.get(n, 0xFFFF if n == 2 else n)}u" for n in range(10)]
            text = f'#include "cuda.prelude"\n#include "common.prelude"\n#include "{path.name}"\n'
            compile_text(compiler, text, [f"--gpu-architecture=sm_{architecture}", *constants])
