"""Builds the training core with cffi into one abi3 extension; everything else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class Abi3Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "cp310", "abi3", platform


setup(cffi_modules=["fabric/core/build.py:ffi"], cmdclass={"bdist_wheel": Abi3Wheel})
