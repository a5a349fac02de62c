"""Where NVIDIA's libraries lie: of a toolkit that is named, or the newest of a package of pip."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def _newest(toolkit: Path | None, of_toolkit: tuple[str, ...], of_package: tuple[str, ...]) -> Path | None:
    places = [(toolkit, pattern) for pattern in of_toolkit] if toolkit else []
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        places += [(Path(folder), pattern) for pattern in of_package]
    for place, pattern in places:
        if found := sorted(path for path in place.glob(pattern) if ".alt." not in path.name):
            return found[-1]
    return None


def nvrtc(toolkit: Path | None = None) -> Path | None:
    """CUDA's run-time compiler; None: wherever the system finds one."""
    windows = "bin/**/nvrtc64_*.dll"
    return _newest(toolkit, ("lib64/libnvrtc.so.*", windows), ("*/lib/libnvrtc.so.*", f"*/{windows}"))


def nccl(toolkit: Path | None = None) -> Path | None:
    """The library that adds up over several cards; None: wherever the system finds one."""
    return _newest(toolkit, ("lib64/libnccl.so.2",), ("nccl/lib/libnccl.so.2",))
