"""The stand-ins that several files meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.cuda_standin import build_standin


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of CUDA whose kernels do nothing."""
    return build_standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose portable kernels run."""
    return build_standin(tmp_path_factory.mktemp("card"), emulated=True)
