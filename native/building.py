"""The build backend that pyproject.toml names: setuptools, and a shader compiler where the Vulkan kernels lack one."""

from __future__ import annotations

from typing import Any

import spirv
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What is to be installed before a build."""
    return spirv.requires()


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel
__all__ = build_meta.__all__
