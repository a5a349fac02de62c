"""The tiny model and its rows, and the library that stands before libvulkan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.shim import build_shim
from tests.cli.conftest import rows, tiny

__all__ = ["rows", "shim", "tiny"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skips where there is no Vulkan."""
    return build_shim(tmp_path_factory.mktemp("shim"))
