from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fabric.weights.adapter import Adapter, LoraPair, write_adapter
from fabric.weights.settings import AdapterInput
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import PRESETS

Writer = Callable[[str, Iterable[Any]], str]
SHAPE = PRESETS["tiny"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small llama of random weights: 320 tokens, ChatML."""
    return str(write_model(tmp_path_factory.mktemp("model") / "m.gguf", SHAPE, "F32"))


@pytest.fixture
def rows_file(tmp_path: Path) -> Writer:
    """Writes rows as JSONL and returns the path."""

    def write(name: str, rows: Iterable[Any]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., AdapterInput]:
    """Writes an adapter of the small model, its B drawn with `b_std` and multiplied by `times`."""

    def write(b_std: float = 0.2, times: float = 1.0, scale: float = 1.0, layers: int = SHAPE.layers) -> AdapterInput:
        path = tmp_path / f"a-{b_std}-{times}-{layers}.gguf"
        pairs = random_pairs(SHAPE, b_std=b_std)
        kept = {name: LoraPair(a, b * times) for name, (a, b) in pairs.items() if int(name.split(".")[1]) < layers}
        with path.open("wb") as out:
            write_adapter(out, Adapter("llama", 8.0, kept))
        return AdapterInput(str(path), scale)

    return write
