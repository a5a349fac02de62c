"""Devices that a test needs beside the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

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


def swiftshader(folder: Path) -> dict[str, str]:
    """The environment in which SwiftShader is the only Vulkan driver, else the test is skipped: a weak device, without
    16-bit floats, with subgroups of 4 and workgroups of 256 threads."""
    here = os.environ.get("FABRIC_SWIFTSHADER", "/usr/lib/chromium")
    library = Path(here) / "libvk_swiftshader.so"
    if not library.exists():
        pytest.skip(
            "SwiftShader is not there: libvk_swiftshader.so of chromium-common, where FABRIC_SWIFTSHADER points"
        )
    told = {"file_format_version": "1.0.0", "ICD": {"library_path": str(library), "api_version": "1.1.0"}}
    (folder / "icd.json").write_text(json.dumps(told))
    return {"VK_DRIVER_FILES": str(folder / "icd.json"), "VK_ICD_FILENAMES": str(folder / "icd.json")}
