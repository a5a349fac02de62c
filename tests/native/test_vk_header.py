"""Our declarations of Vulkan beside the Khronos header: every structure, member and value is the same."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "native" / "backends" / "vulkan" / "vk.h"
THEIRS = Path("/usr/include/vulkan/vulkan_core.h")


def facts() -> list[str]:
    """C expressions whose values must agree."""
    text = re.sub(r"/\*.*?\*/", "", OURS.read_text(encoding="utf-8"), flags=re.DOTALL).replace("VK_INFO;", "int sType;")
    found = []
    for name, body in re.findall(r"typedef struct (Vk\w+) \{\n(.*?)\n\} \1;", text, re.DOTALL):
        found.append(f"sizeof({name})")
        flat = re.sub(r"struct \{.*?\}", "int", body)
        for member in re.findall(r"(\w+)(?:\[\d+\])?\s*[,;]", flat):
            if not re.match(r"before|after|sparseProperties|minImageTransferGranularity", member):
                found.append(f"offsetof({name}, {member})")
    values = re.findall(r"\b(VK_(?!STYPE|INFO)[A-Z0-9_]+) =", text)
    assert len(found) > 150
    assert len(values) > 30
    return found + values


def values(header: str, include: str, folder: Path) -> list[str]:
    lines = "".join(f'printf("%s %lld\\n", "{fact}", (long long){fact});' for fact in facts())
    source = folder / "facts.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#define VK_NO_PROTOTYPES\n#include {header}\n"
        f"int main(void) {{{lines}}}"
    )
    subprocess.run(["cc", include, str(source), "-o", str(folder / "facts")], check=True)
    return subprocess.run([str(folder / "facts")], capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_layout_is_the_interfaces_own(tmp_path: Path) -> None:
    if not THEIRS.exists():
        pytest.skip("the Khronos header is not installed: libvulkan-dev")
    ours = values(f'"{OURS}"', "-I.", tmp_path)
    assert ours == values(f"<{THEIRS.parent.name}/{THEIRS.name}>", f"-I{THEIRS.parents[1]}", tmp_path)
