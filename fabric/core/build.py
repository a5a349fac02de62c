"""Builds `fabric.core._native`: every C file under native/ compiled into one abi3 extension by cffi.

Run by setup.py; needs a C11 compiler (gcc or clang) and, in a checkout, one for the Vulkan kernels (native/spirv.py); a
source package has them compiled.
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

TEXTS.parent.mkdir(exist_ok=True)
for script in (["spirv.py"], ["texts.py", str(TEXTS)]):
    if subprocess.run([sys.executable, ROOT / "native" / script[0], *script[1:]], check=False).returncode:
        sys.exit(f"The kernels could not be made ready: native/{script[0]} failed.")

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
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],  # a library of that name is not everywhere
    libraries=[] if sys.platform == "win32" else ["m", "dl"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
