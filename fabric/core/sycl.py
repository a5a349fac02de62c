"""The shim between the core and SYCL, `native/backends/sycl/shim.cpp`: compiled on this machine when first needed, by
the C++ compiler that is here, against the SYCL runtime that is installed; kept beside the built kernels."""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

from fabric.core._native import ffi, lib
from fabric.printable import printable

SOURCES = ("shim.cpp", "shim.h")
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-DSYCL_DISABLE_FSYCL_SYCLHPP_WARNING")


class Missing(Exception):
    """Why SYCL cannot be used here, in one sentence."""


def find_sycl(cache: Path | None, oneapi: Path | None) -> None:
    """Tells the core where the shim is, or why there is none. Costs seconds where it has to be compiled. cache: where
    built kernels are kept, the beginning of a file name; oneapi: the folder of a compiler that the user names."""
    try:
        found, missing = ffi.new("char[]", os.fsencode(shim(cache, oneapi))), ffi.NULL
    except Missing as error:
        found, missing = ffi.NULL, ffi.new("char[]", f"no SYCL: {error}".encode())
    lib.fb_backend_find(b"sycl", found, missing)


def runtime(oneapi: Path | None) -> Path:
    """The folder that holds `include` and `lib` of a SYCL runtime: the one that the user names, or the package's."""
    if sys.platform != "linux":
        raise Missing("this backend runs on Linux")
    named = [oneapi] if oneapi else []
    for place in [*named, Path(sys.prefix), Path(site.getuserbase())]:
        if (place / "include" / "sycl" / "sycl.hpp").exists() and (place / "lib" / "libsycl.so").exists():
            return place
    raise Missing("Intel's runtime is not installed; pip install 'fabric-llm[sycl]'")


def shim(cache: Path | None, oneapi: Path | None) -> Path:
    """The library, made first where it is not there yet. Raises Missing."""
    place = runtime(oneapi)
    library = (place / "lib" / "libsycl.so").resolve()
    texts = {name: ffi.string(lib.fb_text(name.encode())) for name in SOURCES}
    seen = library.stat()
    origin = repr((texts, FLAGS, str(place), library.name, seen.st_size, seen.st_mtime_ns))
    key = hashlib.sha256(origin.encode()).hexdigest()[:16]
    if cache is None:
        raise Missing("there is no folder for what it builds")
    folder = cache.with_name(f"sycl-{key}")
    made = folder / "shim.so"
    if not made.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                compile_shim(place, texts, Path(scratch), folder / "kernels").replace(made)
        except OSError as error:
            raise Missing(f"{error.strerror}: {printable(str(error.filename or folder))}") from None
    return made


def compile_shim(place: Path, texts: dict[str, bytes], folder: Path, kernels: Path) -> Path:
    """Writes the texts into a folder and compiles them there. Raises Missing."""
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        raise Missing("its shim is compiled when first used, and no C++ compiler is here; install g++ or clang++")
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    opencl = place / "lib" / "libintelocl.so"
    places = {"SHIM_CACHE": kernels, "SHIM_OPENCL": opencl if opencl.exists() else ""}
    macros = [f'-D{name}="{value}"' for name, value in places.items()]
    out, lib_folder = folder / "shim.so", place / "lib"
    command = [
        compiler, *FLAGS, *macros, "-isystem", str(place / "include"), str(folder / "shim.cpp"), "-o", str(out),
        f"-L{lib_folder}", "-lsycl", f"-Wl,-rpath,{lib_folder}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        told = next((line for line in done.stderr.splitlines() if "error" in line), "no word from it")
        raise Missing(f"{Path(compiler).name} does not compile its shim ({printable(told)[:200]})")
    return out
