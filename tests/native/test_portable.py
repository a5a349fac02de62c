"""The portable kernels in the dialects whose devices are not here: their CUDA and Metal text runs on the host, a thread
a fiber, and their SYCL text on the processor through Intel's OpenCL, against the same op test as every backend.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.native.test_ops import FLAGS, ROOT, SOURCES

EMULATED = ROOT / "tests" / "native" / "emulated"
sys.path.insert(0, str(ROOT / "tools"))


def compile_each(jobs: list[list[str]]) -> None:
    """Compiler calls, two at a time."""

    def one(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, jobs))


def build(dialect: str, folder: Path) -> Path:
    from spirv import KERNELS, expanded

    ahead = {"cuda": f'#include "{EMULATED}/cuda.h"\n', "metal": ""}[dialect]
    ahead += expanded(KERNELS / f"{dialect}.prelude") + expanded(KERNELS / "common.prelude")
    ahead = ahead.replace("[[threadgroup(0)]]", "")  # the host has a macro of that name
    jobs, objects = [], []
    for path in sorted(KERNELS.glob("*.kernel")):
        source = folder / f"{path.stem}.cpp"
        source.write_text(ahead + expanded(path))
        objects.append(source.with_suffix(".o"))
        jobs.append(
            ["g++", "-std=c++17", "-O1", "-w", f"-I{EMULATED}/metal", f"-Drun=emulated_{path.stem}",
             f"-Dfb_kernel=kernel_{path.stem}", "-c", str(source),
             "-o", str(objects[-1])]
        )  # fmt: skip
    compile_each(jobs)
    defines = ["-DFB_EMULATED", *(["-DEMULATED_METAL"] if dialect == "metal" else [])]
    sources = [*SOURCES, EMULATED / "emulated.c"]
    out = folder / "ops"
    compile_each(
        [[os.environ.get("CC", "cc"), *FLAGS, *defines, "-O1", *map(str, sources), *map(str, objects), "-o", str(out),
          "-lm", "-lpthread", "-ldl", "-lstdc++", "-Wl,--allow-multiple-definition"]]
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dialect", ["cuda", "metal"])
def test_every_op_is_right_in_the_text_of(dialect: str, tmp_path: Path) -> None:
    done = subprocess.run([str(build(dialect, tmp_path)), "emulated"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def sycl(folder: Path) -> tuple[Path, dict[str, str]]:
    """The op test with a backend that builds SYCL text when it runs, and its environment; skips without the package."""
    from spirv import KERNELS, expanded

    here = Path(sys.prefix)
    if not (here / "include" / "sycl" / "sycl.hpp").exists():
        pytest.skip("SYCL is not there: pip install intel-sycl-rt intel-opencl-rt")
    ahead, common = expanded(KERNELS / "sycl.prelude"), expanded(KERNELS / "common.prelude")
    for path in sorted(KERNELS.glob("*.kernel")):
        (folder / f"{path.stem}.sycl").write_text(ahead + common + expanded(path))
    host, out = str(folder / "sycl.o"), folder / "ops"
    define, include = "-DSYCL_DISABLE_FSYCL_SYCLHPP_WARNING", f"-I{here}/include"
    libraries = [f"-L{here}/lib", "-lsycl", f"-Wl,-rpath,{here}/lib", "-lm", "-lpthread", "-ldl", "-lstdc++"]
    sources = [*map(str, SOURCES), host]
    compile_each([["g++", "-std=c++17", "-O1", define, include, "-c", str(EMULATED / "sycl.cpp"), "-o", host]])
    compile_each([[os.environ.get("CC", "cc"), *FLAGS, "-DFB_EMULATED", "-O1", *sources, "-o", str(out), *libraries]])
    return out, {"OCL_ICD_FILENAMES": str(here / "lib" / "libintelocl.so"), "SYCL_KERNELS": str(folder)}


def test_every_op_is_right_in_the_text_of_sycl_on_the_processor(tmp_path: Path) -> None:
    program, environment = sycl(tmp_path)
    done = subprocess.run(
        [str(program), "quick", "emulated"], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels built: " in done.stdout


def constants(kernel: str) -> str:
    """The list of its constants."""
    from spirv import KERNELS

    text = re.sub(r"\\\n", "", (KERNELS / "names.h").read_text(encoding="utf-8"))
    found = re.search(rf"#define {kernel}_CONSTANTS(?: (\w+)_CONSTANTS|.*\n)", text)
    assert found is not None
    return constants(found[1]) if found[1] else found[0]


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler from its package; it needs no card."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            for other in library.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(library))
    pytest.skip("NVRTC is not there: pip install nvidia-cuda-nvrtc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_nvrtc_compiles_every_kernel_for_a_real_card(architecture: str) -> None:
    from spirv import KERNELS, expanded

    compiler = nvrtc()
    for path in sorted(KERNELS.glob("*.kernel")):
        text = expanded(KERNELS / "cuda.prelude") + expanded(KERNELS / "common.prelude") + expanded(path)
        tiles = re.findall(r"TILE\((\d), \w+, (\w+)\)", constants(path.stem))
        sizes = {2: "0xffffu", **{int(n): most for n, most in tiles}}
        macros = [f"-DSPEC_{n}={sizes.get(n, f'{n}u')}" for n in range(1, 10)]
        flags = ["--device-as-default-execution-space", f"--gpu-architecture={architecture}", "-std=c++17", *macros]
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), path.stem.encode(), 0, None, None)
        given = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        code = compiler.nvrtcCompileProgram(program, len(flags), given)
        compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        compiler.nvrtcGetProgramLog(program, log)
        compiler.nvrtcDestroyProgram(ctypes.byref(program))
        assert code == 0, f"{path.stem}: {log.value.decode()[:2000]}"
