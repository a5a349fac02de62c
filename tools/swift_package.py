"""Writes the core as a Swift package, for apps on iOS and macOS: its C, the kernels that it embeds, a module map.

python tools/swift_package.py FOLDER        the folder is made

`import CFabric` then has the whole API of native/include/fabric.h. It needs no Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "native"
MANIFEST = """// swift-tools-version:5.7
import PackageDescription

let package = Package(
    name: "CFabric",
    platforms: [.macOS(.v13), .iOS(.v16)],
    products: [.library(name: "CFabric", targets: ["CFabric"])],
    targets: [.target(name: "CFabric")],
    cLanguageStandard: .c11
)
"""
MODULE = """module CFabric {
    header "fabric.h"
    export *
}
"""


def main() -> None:
    """Fills the folder."""
    package = Path(sys.argv[1])
    target = package / "Sources" / "CFabric"
    target.mkdir(parents=True)
    subprocess.run([sys.executable, NATIVE / "spirv.py"], check=True)
    subprocess.run([sys.executable, NATIVE / "texts.py", target / "texts.c"], check=True)
    for path in sorted(NATIVE.rglob("*")):
        if path.suffix in (".c", ".h", ".inc"):
            copy = target / path.relative_to(NATIVE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    (target / "include" / "module.modulemap").write_text(MODULE, encoding="utf-8")
    (package / "Package.swift").write_text(MANIFEST, encoding="utf-8")
    shutil.copyfile(ROOT / "LICENSE", package / "LICENSE")


if __name__ == "__main__":
    main()
