"""Devices that a test needs beside the CPU."""

from __future__ import annotations

import pytest

from fabric.core import missing_devices

# Vulkan calls are checked by the Khronos layer, and the loader says that it took it.
VALIDATED = {"VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation", "VK_LOADER_DEBUG": "layer"}


def vulkan() -> str:
    """The name to open, else the test is skipped; a software driver is enough."""
    for sentence in missing_devices():
        if "Vulkan" in sentence:
            pytest.skip(sentence)
    return "vulkan"
