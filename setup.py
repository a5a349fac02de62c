"""Builds the training core with cffi into one abi3 extension, and the SYCL shim where FABRIC_SYCL names the folder of a
SYCL runtime; says where man pages and completions are installed. Everything else is in pyproject.toml."""

import os
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class Abi3Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "cp310", "abi3", platform


class WithShim(build_py):
    def run(self) -> None:
        super().run()
        if named := os.environ.get("FABRIC_SYCL"):
            shim, place = runpy.run_path("fabric/core/shim.py"), Path(named)
            name = shim["needed"](place)
            out = Path(self.build_lib, "fabric", "core", f"shim-{name}.so")
            if lacking := shim["compile_shim"](place, Path("native/backends/sycl/shim.cpp"), out) if name else named:
                raise SystemExit(f"FABRIC_SYCL: no SYCL shim was built: {lacking}")


PAGES = {
    "share/man/man1": "man/*.1",
    "share/man/man5": "man/*.5",
    "share/bash-completion/completions": "completions/fabric.bash",
    "share/zsh/site-functions": "completions/_fabric",
    "share/fish/vendor_completions.d": "completions/fabric.fish",
}

setup(
    cffi_modules=["fabric/core/build.py:ffi"],
    cmdclass={"bdist_wheel": Abi3Wheel, "build_py": WithShim},
    data_files=[(place, sorted(map(str, Path().glob(files)))) for place, files in PAGES.items()],
)
