"""Where devices find what is the user's. Leans on nothing, for every command sets it before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Places:
    """Where devices find what is the user's; a command sets them, and None is nowhere."""

    profiles: Path | None = None
    kernel_cache: Path | None = None
    """Built kernels, kept from run to run: the beginning of a file name."""
    cuda_toolkit: Path | None = None
    oneapi: Path | None = None
    """A oneAPI compiler's folder."""


places = Places()
