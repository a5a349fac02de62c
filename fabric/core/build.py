"""Builds `fabric.core._native`: every C file under native/ compiled into one abi3 extension by cffi.

Run by setup.py; needs a C11 compiler (gcc or clang) and nothing else. In a checkout whose Vulkan kernels were changed
it compiles those too, by tools/spirv.py; what is shipped has them compiled.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from cffi import FFI

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[2]))
HEADER = ROOT / "native" / "include" / "fabric.h"
TEXTS = ROOT / "build" / "texts.c"
SOURCES = [*sorted(str(path) for path in (ROOT / "native").rglob("*.c")), str(TEXTS)]

if sys.platform == "win32":
    FLAGS = ["/O2", "/std:c11"]
else:
    FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
    FLAGS += os.environ.get("FABRIC_CFLAGS", "-Wall -Wextra").split()

SPIRV = ROOT / "tools" / "spirv.py"


def spirv(*flags: str) -> int:
    """Runs the tool, which tells what is wrong; its exit code."""
    return subprocess.run([sys.executable, SPIRV, *flags], check=False).returncode


if SPIRV.exists() and spirv("--check") and spirv():
    sys.exit("The Vulkan kernels could not be compiled.")

TEXTS.parent.mkdir(exist_ok=True)
subprocess.run([sys.executable, ROOT / "native" / "texts.py", TEXTS], check=True)

declarations = re.sub(r"^\s*#.*$", "", HEADER.read_text(encoding="utf-8"), flags=re.MULTILINE)

ffi = FFI()
ffi.cdef(declarations)
ffi.set_source(
    "fabric.core._native",
    '#include "fabric.h"',
    sources=SOURCES,
    include_dirs=[str(HEADER.parent)],
    depends=sorted(str(path) for path in (ROOT / "native").rglob("*") if path.suffix in (".h", ".inc")),
    extra_compile_args=FLAGS,
    libraries=[] if sys.platform == "win32" else ["m", "pthread", "dl"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
