"""How the shim between the core and SYCL is compiled: by setup.py for a wheel, by sycl.py where the wheel has none.
Leans on nothing, since a build reads it before the core is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-DSYCL_DISABLE_FSYCL_SYCLHPP_WARNING")


def needed(place: Path) -> str | None:
    """The name by which programs load the SYCL runtime of a folder; None where there is none."""
    if not ((place / "lib" / "libsycl.so").exists() and (place / "include" / "sycl" / "sycl.hpp").exists()):
        return None
    versions = (path.suffix[1:] for path in (place / "lib").glob("libsycl.so.*") if path.stem == "libsycl.so")
    return f"libsycl.so.{max(map(int, filter(str.isdigit, versions)), default='')}".rstrip(".")


def compile_shim(place: Path, source: Path, out: Path) -> str | None:
    """Compiles shim.cpp against the SYCL of a folder. Returns why it cannot, or None."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        return "its shim is compiled when first used, and no C++ compiler is here; install g++ or clang++"
    command = [compiler, *FLAGS, "-isystem", str(place / "include"), str(source), "-o", str(out)]
    command += [f"-L{place / 'lib'}", "-lsycl", "-ldl", f"-Wl,-rpath,{place / 'lib'}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    told = next((line for line in done.stderr.splitlines() if "error" in line), "no word from it")
    return f"{Path(compiler).name} does not compile its shim ({told[:200]})"
