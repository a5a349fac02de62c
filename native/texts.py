"""Writes the text of every kernel that is compiled on the user's machine as a C file: python texts.py OUT.c"""

import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
FOLDERS = tuple(
    NATIVE / name
    for name in ("kernels", "kernels/matrix", "backends/cuda", "backends/metal", "backends/sycl", "graph", "quant")
)
NAMES = (
    "*.kernel",
    "*.prelude",
    "*.cu",
    "*.metal",
    "args.h",
    "formats.h",
    "names.h",
    "operands.h",
    "shim.h",
    "shim.cpp",
)

LOOKUP = """#include <string.h>
const char *fb_text(const char *name) {
    for (int i = 0; name && i < fb_text_count; i++)
        if (!strcmp(fb_text_names[i], name)) return fb_texts[i];
    return NULL;
}
"""


def texts() -> dict[str, bytes]:
    """By file name, as the kernels include each other."""
    return {path.name: path.read_bytes() for folder in FOLDERS for name in NAMES for path in sorted(folder.glob(name))}


def written() -> str:
    """The C file. Texts are numbers, since compilers bound the length of a string."""
    lines = ["/* Made by native/texts.py. */"]
    for i, text in enumerate(texts().values()):
        lines.append(f"static const char text_{i}[] = {{{','.join(map(str, text))},0}};")
    lines += [f"const char *const fb_text_names[] = {{{','.join(chr(34) + name + chr(34) for name in texts())}}};"]
    lines += [f"const char *const fb_texts[] = {{{','.join(f'text_{i}' for i in range(len(texts())))}}};"]
    lines += [f"const int fb_text_count = {len(texts())};"]
    return "\n".join([*lines, LOOKUP])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(written(), encoding="ascii")
