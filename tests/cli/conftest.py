"""A tiny model and rows for it, made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import fabric


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama model of 2 layers."""
    pytest.importorskip("gguf", reason="the tiny model is written by the gguf package")
    from tests.support.random_models import write_model

    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chat records, 12 of them."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for i in range(12):
        label = ("Odd", "Even")[i % 2]
        chat = [{"role": "user", "content": f"Is {i} odd?"}, {"role": "assistant", "content": f"{label}: {i}."}]
        lines.append(json.dumps({"messages": chat, "label": label}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of very different lengths, so that no two steps have equally many tokens."""
    path = tmp_path_factory.mktemp("uneven") / "rows.jsonl"
    records = [{"prompt": "Count " + "up " * (i % 3) + "to", "completion": " one" * (1 + 2 * i)} for i in range(12)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def adapter(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three steps on the tiny model gave."""
    folder = tmp_path_factory.mktemp("adapter")
    run = ["--run-dir", folder / "run", "--steps", "3", "--rank", "4", "--ctx", "64", "--batch", "4", "--lr", "2e-4"]
    done = fabric("train", rows, "-m", tiny, "-o", folder / "adapter.gguf", *map(str, run))
    assert done.code == 0, done.err
    return folder / "adapter.gguf"
