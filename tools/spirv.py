"""Makes native/kernels/spirv.inc: every portable kernel compiled to SPIR-V by glslc (shaderc) and written as numbers.

python tools/spirv.py            writes the file
python tools/spirv.py --check    exit 1 when it was not made from the sources as they are now; needs no compiler
"""

import argparse
import hashlib
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / "native" / "kernels"
OUT = KERNELS / "spirv.inc"


def expanded(path: Path) -> str:
    """A source with what it includes in place."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r'#include "([\w.]+)"\n', lambda m: expanded(KERNELS / m[1]), text)


def sources() -> dict[str, str]:
    """Kernel name to GLSL text."""
    ahead = "#version 450\n" + expanded(KERNELS / "glsl.prelude") + expanded(KERNELS / "common.prelude")
    return {path.stem: ahead + expanded(path) for path in sorted(KERNELS.glob("*.kernel"))}


def digest(texts: dict[str, str]) -> str:
    """Of all sources."""
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()


def compiled(name: str, text: str, folder: Path) -> tuple[int, ...]:
    """SPIR-V words."""
    source, out = folder / f"{name}.comp", folder / f"{name}.spv"
    source.write_text(text, encoding="utf-8")
    subprocess.run(["glslc", "--target-env=vulkan1.1", "-Os", str(source), "-o", str(out)], check=True)
    data = out.read_bytes()
    return struct.unpack(f"<{len(data) // 4}I", data)


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
    arrays, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            words = compiled(name, text, Path(folder))
            lines = [",".join(map(str, words[i : i + 256])) for i in range(0, len(words), 256)]
            arrays.append(f"static const uint32_t {name}[] = {{\n" + ",\n".join(lines) + "};\n")
            rows.append(f"    [FB_KERNEL_{name}] = {{{name}, {len(words)}}},\n")
    table = "const fb_spirv fb_spirv_kernels[FB_KERNEL_COUNT] = {\n" + "".join(rows) + "};\n"
    OUT.write_text(first + "".join(arrays) + table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
