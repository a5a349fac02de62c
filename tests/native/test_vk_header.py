"""Our declarations of Vulkan beside the Khronos header: every structure, member and value is the same."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "native" / "backends" / "vulkan" / "vk.h"
NEWER = OURS.with_name("vk_matrix.h")
THEIRS = Path("/usr/include/vulkan/vulkan_core.h")


def facts(header: Path) -> list[str]:
    """C expressions whose values must agree."""
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.DOTALL).replace(
        "VK_INFO;", "int sType;"
    )
    found = []
    for name, body in re.findall(r"typedef struct (Vk\w+) \{\n(.*?)\n\} \1;", text, re.DOTALL):
        found.append(f"sizeof({name})")
        flat = re.sub(r"struct \{.*?\}", "int", body)
        for member in re.findall(r"(\w+)(?:\[\d+\])?\s*[,;]", flat):
            if not re.match(r"before|after|features|sparseProperties|minImageTransferGranularity", member):
                found.append(f"offsetof({name}, {member})")
    values = re.findall(r"\b(VK_(?!STYPE|INFO)[A-Z0-9_]+) =", text)
    return found + values


def values(facts: list[str], header: str, include: str, folder: Path) -> list[str]:
    lines = "".join(f'printf("%s %lld\\n", "{fact}", (long long){fact});' for fact in facts)
    source = folder / "facts.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#define VK_NO_PROTOTYPES\n#include {header}\n"
        f"int main(void) {{{lines}}}"
    )
    subprocess.run(["cc", include, str(source), "-o", str(folder / "facts")], check=True)
    return subprocess.run([str(folder / "facts")], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("header", "least"), [(OURS, 180), (NEWER, 30)])
def test_every_layout_is_the_interfaces_own(header: Path, least: int, tmp_path: Path) -> None:
    if not THEIRS.exists():
        pytest.skip("the Khronos header is not installed: libvulkan-dev")
    known, found = THEIRS.read_text(encoding="utf-8"), facts(header)
    assert len(found) > least
    # What a distribution's header is too old for cannot be compared.
    found = [fact for fact in found if all(name in known for name in re.findall(r"Vk\w+|VK_\w+", fact))]
    ours = values(found, f'"{header}"', "-I.", tmp_path)
    assert ours == values(found, f"<{THEIRS.parent.name}/{THEIRS.name}>", f"-I{THEIRS.parents[1]}", tmp_path)
