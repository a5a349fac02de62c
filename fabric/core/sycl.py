"""The shim between the core and SYCL, `native/backends/sycl/shim.cpp`: that of the wheel, or compiled on this machine
when first needed, by the C++ compiler that is here, against the SYCL runtime that is installed; kept beside the built
kernels."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import site
import sys
import tempfile
from os import fsencode
from pathlib import Path

from fabric.core._native import ffi, lib
from fabric.core.shim import FLAGS, compile_shim, needed
from fabric.printable import printable

SOURCES = ("shim.cpp", "shim.h")


class Missing(Exception):
    """Why SYCL cannot be used here, in one sentence."""


def find_sycl(cache: Path | None, oneapi: Path | None) -> None:
    """Tells the core where the shim is, or why there is none. Costs seconds where it has to be compiled. cache: where
    built kernels are kept, the beginning of a file name; oneapi: the folder of a compiler that the user names."""
    try:
        found, missing = ffi.new("char[]", fsencode(shim(cache, oneapi))), ffi.NULL
    except Missing as error:
        found, missing = ffi.NULL, ffi.new("char[]", f"no SYCL: {error}".encode())
    lib.fb_backend_find(b"sycl", found, missing)


def runtime(oneapi: Path | None) -> Path:
    """The folder that holds `include` and `lib` of a SYCL runtime: the one that the user names, or the package's."""
    if sys.platform != "linux":
        raise Missing("this backend runs on Linux")
    named = [oneapi] if oneapi else []
    for place in [*named, Path(sys.prefix), Path(site.getuserbase())]:
        if needed(place):
            return place
    raise Missing("Intel's runtime is not installed; pip install 'fabric-llm[sycl]'")


def shim(cache: Path | None, oneapi: Path | None) -> Path:
    """The library, made first where it is not there yet. Raises Missing."""
    place = runtime(oneapi)
    library = (place / "lib" / "libsycl.so").resolve()
    texts = {name: ffi.string(lib.fb_text(name.encode())) for name in SOURCES}
    built = Path(__file__).with_name(
        f"shim-{needed(place)}.so"
    )  # of a wheel: for this version of the runtime, or not there
    seen = library.stat()
    origin = repr((texts, FLAGS, str(place), library.name, seen.st_size, seen.st_mtime_ns, built.exists()))
    key = hashlib.sha256(origin.encode()).hexdigest()[:16]
    if cache is None:
        raise Missing("there is no folder for what it builds")
    folder = cache.with_name(f"sycl-{key}")
    made = folder / "shim.so"
    try:
        if built.exists():  # which does not know where its runtime is, and finds one that is loaded
            ctypes.CDLL(str(place / "lib" / str(needed(place))), mode=ctypes.RTLD_GLOBAL)
        if not made.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                make(place, texts, built, Path(scratch)).replace(made)
    except OSError as error:
        where = printable(str(error.filename or folder))
        raise Missing(f"{error.strerror}: {where}" if error.strerror else printable(str(error))) from None
    return made


def make(place: Path, texts: dict[str, bytes], built: Path, folder: Path) -> Path:
    """The library in a folder: a copy of what is built, or compiled there. Raises Missing."""
    out = folder / "shim.so"
    if built.exists():
        return Path(shutil.copyfile(built, out))
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    if lacking := compile_shim(place, folder / "shim.cpp", out):
        raise Missing(printable(lacking))
    return out
