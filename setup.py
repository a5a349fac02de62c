"""Builds the training core with cffi into one abi3 extension, and says where man pages and completions are installed;
everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class Abi3Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "cp310", "abi3", platform


PAGES = {
    "share/man/man1": "man/*.1",
    "share/man/man5": "man/*.5",
    "share/bash-completion/completions": "completions/fabric.bash",
    "share/zsh/site-functions": "completions/_fabric",
    "share/fish/vendor_completions.d": "completions/fabric.fish",
}

setup(
    cffi_modules=["fabric/core/build.py:ffi"],
    cmdclass={"bdist_wheel": Abi3Wheel},
    data_files=[(place, sorted(map(str, Path().glob(files)))) for place, files in PAGES.items()],
)
